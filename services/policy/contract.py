"""The policy's HTTP interface: requests and answers of a process that holds the weights.

    GET    /healthz                     PolicyHealth; no key
    GET    /v1/policy                   PolicyInfo
    POST   /v1/sample                   SampleRequest   -> SampleResponse
    POST   /v1/score                    ScoreRequest    -> ScoreResponse
    POST   /v1/tokenize                 TokenizeRequest -> TokenIds
    POST   /v1/detokenize               DetokenizeRequest -> Text
    POST   /v1/pieces                   DetokenizeRequest -> Pieces
    POST   /v1/tokenize/batch           TokenizeBatch   -> TokenIdsBatch
    POST   /v1/answers/batch            AnswersBatch    -> AnswersRead
    POST   /v1/versions                 VersionCreate   -> Version
    POST   /v1/versions/{name}/prove    ProveRequest    -> Version
    POST   /v1/versions/{name}/serve                    -> Version
    DELETE /v1/versions/{name}                          -> 204

Every call but /healthz carries `Authorization: Bearer KEY` when the process was given a key. Errors are
problem documents. `version` is always optional and means the serving version; the answer names the one used.
Token ids are the policy's own and are never re-tokenised. Logprobs are natural logs, at the stated temperature,
of the full softmax. This module is light: it loads no torch and no tokenizer.
"""

from enum import StrEnum
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from services.contracts.answers import MAX_TOP_K
from services.contracts.base import Bool, Contract, Name, Sha256, StatusChanges, TokenId
from services.contracts.rollouts import MAX_ROLLOUT_CHARS, MAX_ROLLOUT_TOKENS
from services.contracts.tasks import Message

MAX_PROMPTS: Final = 256
MAX_SAMPLES_PER_PROMPT: Final = 256
MAX_SCORE_ITEMS: Final = 1024
MAX_PROBE_ROWS: Final = 64
MAX_TEXTS: Final = 256
MAX_BODY_BYTES: Final = 32 * 1024 * 1024

BASE_VERSION: Final = "base"
"""The name of the weights the process was started with; always loaded, proved and never deleted."""

CLOSING_FENCE: Final = "\n```"
"""The one stop string with a meaning of its own: it ends the answer only once a fenced block has been opened."""

TokenIdList = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_ROLLOUT_TOKENS)]
MessageList = Annotated[list[Message], Field(min_length=1, max_length=200)]
LogProb = Annotated[float, Field(le=1e-3)]


class VersionStatus(StrEnum):
    """Exactly one version is serving. A version serves only after a probe proved its logprobs.

    A version that was `proved` and served before stays `proved` when another one takes over.
    """

    LOADED = "loaded"
    REFUSED = "refused"
    PROVED = "proved"
    SERVING = "serving"


VERSION_CHANGES: StatusChanges[VersionStatus] = {
    VersionStatus.LOADED: frozenset({VersionStatus.PROVED, VersionStatus.REFUSED}),
    VersionStatus.REFUSED: frozenset({VersionStatus.PROVED, VersionStatus.REFUSED}),
    VersionStatus.PROVED: frozenset({VersionStatus.PROVED, VersionStatus.REFUSED, VersionStatus.SERVING}),
    VersionStatus.SERVING: frozenset({VersionStatus.PROVED}),
}


class FinishReason(StrEnum):
    """`stop`: the policy ended its answer, or a stop string was completed. `length`: max_new_tokens were used up."""

    STOP = "stop"
    LENGTH = "length"


class PolicyHealth(Contract):
    """The process is up and its weights are loaded."""

    status: Literal["ok"] = "ok"


class SamplePrompt(Contract):
    """One prompt to be answered `n` times: chat messages, or token ids that are used as they are.

    Row i of the answers depends on (seed, i) only, up to floating-point noise: not on the rest of the batch.
    """

    id: Annotated[str, Field(min_length=1, max_length=200)]
    messages: MessageList | None = None
    token_ids: TokenIdList | None = None
    n: Annotated[int, Field(ge=1, le=MAX_SAMPLES_PER_PROMPT)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**63)]

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.messages is None) == (self.token_ids is None):
            raise ValueError("a prompt is either messages or token_ids")
        return self


class SampleRequest(Contract):
    """Prompts to answer with the same settings.

    temperature 0 takes the likeliest token each time and reports logprobs at temperature 1. top_k 0 and top_p 1
    are off; they narrow the draw, never the reported logprobs. A sample ends after the token that completes
    a stop string; that token is kept.
    """

    version: Name | None = None
    prompts: Annotated[list[SamplePrompt], Field(min_length=1, max_length=MAX_PROMPTS)]
    max_new_tokens: Annotated[int, Field(ge=1, le=MAX_ROLLOUT_TOKENS)] = 64
    temperature: Annotated[float, Field(ge=0, le=10)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    stop: Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=8)] = []

    @model_validator(mode="after")
    def _ids_differ(self) -> Self:
        if len({prompt.id for prompt in self.prompts}) != len(self.prompts):
            raise ValueError("two prompts have the same id")
        return self


class Sample(Contract):
    """One answer. token_ids and logprobs: [T]; a closing end-of-sequence token is in token_ids and not in text."""

    token_ids: list[TokenId]
    logprobs: list[LogProb]
    text: str
    finish_reason: FinishReason


class SampledPrompt(Contract):
    """The answers to one prompt, in row order, with the exact ids the policy was shown."""

    id: str
    prompt_token_ids: list[TokenId]
    samples: list[Sample]


class SampleResponse(Contract):
    """The answers to all prompts of a request, in its order, all by one version."""

    version: str
    tokenizer_hash: Sha256
    prompts: list[SampledPrompt]


class ScoreItem(Contract):
    """A response to score token by token after a prompt: chat messages, or token ids."""

    messages: MessageList | None = None
    prompt_token_ids: TokenIdList | None = None
    response_token_ids: TokenIdList

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.messages is None) == (self.prompt_token_ids is None):
            raise ValueError("the prompt of an item is either messages or prompt_token_ids")
        return self


class ScoreRequest(Contract):
    """Responses to score. With top_k > 0 also the likeliest tokens at each position and the mass outside them."""

    version: Name | None = None
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    top_k: Annotated[int, Field(ge=0, le=MAX_TOP_K)] = 0
    items: Annotated[list[ScoreItem], Field(min_length=1, max_length=MAX_SCORE_ITEMS)]


class ScoredItem(Contract):
    """logprobs [T] of the response's own tokens; top_token_ids and top_logprobs [T][K], likeliest first;
    tail_logmass [T], the log of the probability outside the K. The last three are empty when top_k is 0."""

    logprobs: list[LogProb]
    top_token_ids: list[list[TokenId]] = []
    top_logprobs: list[list[LogProb]] = []
    tail_logmass: list[LogProb] = []


class ScoreResponse(Contract):
    """The scores of all items of a request, in its order, all by one version."""

    version: str
    tokenizer_hash: Sha256
    items: list[ScoredItem]


class TokenizeRequest(Contract):
    """Messages, rendered with the chat template up to where the policy would answer, or plain text."""

    messages: MessageList | None = None
    text: Annotated[str, Field(max_length=MAX_ROLLOUT_CHARS)] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.messages is None) == (self.text is None):
            raise ValueError("either messages or text")
        return self


class TokenIds(Contract):
    """Token ids under the tokenizer with this hash."""

    token_ids: list[TokenId]
    tokenizer_hash: Sha256


class DetokenizeRequest(Contract):
    """Token ids to be turned into text, special tokens included."""

    token_ids: Annotated[list[TokenId], Field(max_length=MAX_ROLLOUT_TOKENS)]


class Text(Contract):
    """The text of token ids."""

    text: str


class Pieces(Contract):
    """The characters that each token adds to the text before it; joined they are the whole text.

    A character made of several tokens belongs to the last of them, the others add nothing.
    """

    pieces: list[str]


class TokenizeBatch(Contract):
    """Several things to be tokenised; if one is refused, all are."""

    items: Annotated[list[TokenizeRequest], Field(min_length=1, max_length=MAX_TEXTS)]


class TokenIdsBatch(Contract):
    """Their token ids, in order, under the tokenizer with this hash."""

    token_ids: list[list[TokenId]]
    tokenizer_hash: Sha256


class AnswerTokens(Contract):
    """A rollout's tokens, and which of them the policy chose; all of them where `action_mask` is absent."""

    token_ids: TokenIdList
    action_mask: list[Bool] | None = None


class AnswersBatch(Contract):
    """Several rollouts whose answers are to be read; if one is refused, all are."""

    items: Annotated[list[AnswerTokens], Field(min_length=1, max_length=MAX_TEXTS)]


class AnswerRead(Contract):
    """The last turn of a rollout that the policy chose tokens of: its text, without the token that ends it; the turns
    before it in the rollout; the token at which it begins."""

    text: str
    turns: list[Message]
    start: int


class AnswersRead(Contract):
    """Their answers, in order."""

    answers: list[AnswerRead]


class VersionCreate(Contract):
    """Loads the LoRA adapter stored under `sha256` in the artifacts folder. A name is never used for other weights."""

    name: Name
    sha256: Sha256


class ProbeItem(Contract):
    """A response with the logprobs its tokens must have. Shapes: response_token_ids and logprobs [T]."""

    prompt_token_ids: TokenIdList
    response_token_ids: TokenIdList
    logprobs: list[LogProb]

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if len(self.logprobs) != len(self.response_token_ids):
            raise ValueError("logprobs must have one entry a response token")
        return self


class ProveRequest(Contract):
    """The trainer's logprobs on a probe; the version is proved if none differs by more than `tolerance` nats.

    draw: a request to sample from the version once it is proved, to see how long its answers are. All other work of
    the process waits meanwhile, so it is kept small; its `version` must be absent.
    """

    items: Annotated[list[ProbeItem], Field(min_length=1, max_length=64)]
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    tolerance: Annotated[float, Field(gt=0, le=1)] = 1e-3
    draw: SampleRequest | None = None

    @model_validator(mode="after")
    def _little_is_drawn(self) -> Self:
        if self.draw is not None and self.draw.version is not None:
            raise ValueError("draw.version: the version being proved is drawn from")
        if self.draw is not None and sum(prompt.n for prompt in self.draw.prompts) > MAX_PROBE_ROWS:
            raise ValueError(f"draw: at most {MAX_PROBE_ROWS} answers")
        return self


class ProbeResult(Contract):
    """How far this process's logprobs are from the expected ones, in nats.

    drawn_lengths: tokens of each drawn answer, in order; empty if none was drawn.
    """

    passed: bool
    max_difference: float
    mean_difference: float
    num_tokens: int
    tolerance: float
    drawn_lengths: list[int] = []


class Version(Contract):
    """Weights this process holds; sha256 is the adapter's, absent for the base."""

    name: Name
    sha256: Sha256 | None
    status: VersionStatus
    probe: ProbeResult | None = None


class Counters(Contract):
    """Counters since the process started, and its queue. busy_seconds: time the model was computing."""

    uptime_seconds: float
    busy_seconds: float
    tokens_sampled: int
    tokens_scored: int
    tokens_prefilled: int
    tokens_reused: int
    active_rows: int
    waiting_rows: int
    waiting_score_rows: int


class PolicyInfo(Contract):
    """The served model and versions. max_context bounds prompt plus new tokens.

    former_base_sha256: how a lineage begun by an earlier release, which looked at fewer files, knows the same base.
    """

    model: str
    base_sha256: Sha256
    former_base_sha256: Sha256
    tokenizer_hash: Sha256
    vocab_size: int
    eos_token_ids: list[TokenId]
    max_context: int
    device: str
    dtype: str
    serving: Name
    versions: list[Version]
    counters: Counters
