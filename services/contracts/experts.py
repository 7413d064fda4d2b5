"""The expert contract, protocol 1: descriptor, request and answers of a service."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, Literal, Self, TypeAlias
from uuid import UUID

from pydantic import AnyHttpUrl, AwareDatetime, Field, WithJsonSchema, model_validator

from services.contracts.answers import AnswerContent, AnswerKind, Feedback
from services.contracts.base import Bool, Contract, Float, Int, JsonObject, Name, Sha256, StatusChanges, TokenId, View
from services.contracts.tasks import Message

PROTOCOL: Literal[1] = 1


BY_HAND = "by hand"
"""The reason of a change for which no one gave another."""
MAX_REASON_CHARS: Final = 2_000


class ExpertStatus(StrEnum):
    """`probation`: consulted, weight 0. `active`: trains. `paused`: not asked. `quarantined`: the circuit breaker
    opened. `retired`: for good."""

    PROBATION = "probation"
    ACTIVE = "active"
    PAUSED = "paused"
    QUARANTINED = "quarantined"
    RETIRED = "retired"


EXPERT_CHANGES: StatusChanges[ExpertStatus] = {
    ExpertStatus.PROBATION: frozenset(
        {ExpertStatus.ACTIVE, ExpertStatus.PAUSED, ExpertStatus.QUARANTINED, ExpertStatus.RETIRED}
    ),
    ExpertStatus.ACTIVE: frozenset(
        {ExpertStatus.PROBATION, ExpertStatus.PAUSED, ExpertStatus.QUARANTINED, ExpertStatus.RETIRED}
    ),
    ExpertStatus.PAUSED: frozenset({ExpertStatus.PROBATION, ExpertStatus.ACTIVE, ExpertStatus.RETIRED}),
    ExpertStatus.QUARANTINED: frozenset({ExpertStatus.PROBATION, ExpertStatus.RETIRED}),
}


class OwnKind(StrEnum):
    """Our own experts, as our installer registers them. No other service becomes one by its name."""

    EXECUTION = "execution"
    TOOL_CALL = "tool-call"
    EXACT_MATCH = "exact-match"
    REFERENCE = "reference"
    PRECEDENTS = "precedents"
    REASONING_GYM = "reasoning-gym"
    SELF_EVALUATION = "self-evaluation"
    TEACHER = "teacher"
    HUMAN = "human"


class Descriptor(Contract):
    """An expert's description of itself, at `GET {endpoint}/v1/expert`.

    metadata_keys: the task metadata it needs; it sees only the keys that were granted.
    needs_answers: it answers *given* other experts' answers, so it is asked in the second stage.
    verifier: its score is a verdict on the rollout (it also judges evaluations).
    """

    protocol: Literal[1] = PROTOCOL
    name: Name
    version: Annotated[str, Field(min_length=1, max_length=100)]
    description: Annotated[str, Field(max_length=2_000)] = ""
    kinds: Annotated[list[AnswerKind], Field(min_length=1)]
    domains: Annotated[list[str], Field(min_length=1, max_length=100)]
    metadata_keys: Annotated[list[Name], Field(max_length=50)] = []
    deterministic: Bool
    needs_answers: Bool = False
    verifier: Bool = False
    answers_later: Bool = False
    max_concurrency: Annotated[Int, Field(ge=1, le=1024)] = 8
    usual_latency_seconds: Annotated[Float, Field(ge=0, le=604_800)] = 1.0

    @model_validator(mode="after")
    def _a_verifier_scores(self) -> Self:
        if self.verifier and AnswerKind.SCORE not in self.kinds:
            raise ValueError("a verifier must give scores")
        return self

    def matches(self, domain: str) -> bool:
        """Whether tasks of this domain are its business; `code/*` covers every domain under `code/`, `*` all."""
        return any(d in ("*", domain) or (d.endswith("/*") and domain.startswith(d[:-1])) for d in self.domains)


class ContextAnswer(Contract):
    """Another expert's answer, shown to one that answers given answers."""

    expert: str
    score: float | None = None
    feedback: Feedback | None = None
    solution: str | None = None


class Ask(Contract):
    """The kinds of answer that are wanted, and for distributions their size.

    prefixes: places of the rollout to go on from, as numbers of tokens kept, each with `num_samples` continuations.
    probabilities: with which each of them was drawn; empty where they were not drawn.
    """

    kinds: Annotated[list[AnswerKind], Field(min_length=1)]
    top_k: Annotated[Int, Field(ge=1, le=200)] = 20
    temperature: Annotated[Float, Field(gt=0, le=10)] = 1.0
    prefixes: list[Annotated[Int, Field(ge=0)]] = []
    probabilities: list[Annotated[Float, Field(gt=0, le=1)]] = []
    num_samples: Annotated[Int, Field(ge=1, le=64)] = 1
    context: list[ContextAnswer] = []

    @model_validator(mode="after")
    def _every_drawn_prefix_has_its_probability(self) -> Self:
        if self.probabilities and len(self.probabilities) != len(self.prefixes):
            raise ValueError("probabilities must have one entry a prefix")
        return self


class AskedTask(Contract):
    """The task as the expert may see it: only metadata it declared and was granted."""

    id: UUID
    domain: str
    messages: list[Message]
    metadata: JsonObject = {}


class AskedRollout(Contract):
    """The rollout the consultation is about: text is the policy's last turn, without the token that ended it.

    turns: what was said in the rollout before that turn, after the task's messages; absent where nothing was. token_ids
    are those of the whole rollout, and spans count them.
    """

    id: UUID
    text: str
    turns: list[Message] | None = None
    token_ids: list[TokenId]
    tokenizer_hash: Sha256
    policy_version: str | None = None


class ConsultRequest(Contract):
    """The body of `POST {endpoint}/v1/consult`; asked twice with the same consultation id it gets the same answer."""

    protocol: Literal[1] = PROTOCOL
    consultation_id: UUID
    deadline: AwareDatetime
    ask: Ask
    task: AskedTask
    rollout: AskedRollout


class ConsultResult(AnswerContent):
    """`200`, the expert has an answer."""

    outcome: Literal["result"] = "result"


class ConsultAbstain(Contract):
    """`200`, the expert has no answer about this rollout, with the reason."""

    outcome: Literal["abstain"] = "abstain"
    reason: Annotated[str, Field(max_length=2_000)] = ""


class ConsultLater(Contract):
    """`202`: the answer will come to `POST /v1/consultations/{id}/answer`."""

    outcome: Literal["later"] = "later"
    reason: Annotated[str, Field(max_length=2_000)] = ""


ConsultResponse: TypeAlias = Annotated[ConsultResult | ConsultAbstain, Field(discriminator="outcome")]


Weight: TypeAlias = Annotated[Float, Field(ge=0, le=100)]


class ExpertCreate(Contract):
    """Register a service by its URL. `granted` names the metadata keys it may see; `trusted` skips probation.

    group_fraction, rollouts_per_group: how much it is asked; top_k, temperature: the distributions it is asked for.
    num_places, num_samples: at how many places of a rollout it is asked to go on, and how often at each, where it gives
    samples.
    """

    endpoint: Annotated[AnyHttpUrl, WithJsonSchema({"type": "string", "format": "uri"})]
    granted: Annotated[list[Name], Field(max_length=50)] = []
    trusted: Bool = False
    weight: Weight = 1.0
    group_fraction: Annotated[Float, Field(ge=0, le=1)] = 1.0
    rollouts_per_group: Annotated[Int, Field(ge=1)] | None = None
    top_k: Annotated[Int, Field(ge=1, le=200)] = 20
    temperature: Annotated[Float, Field(gt=0, le=10)] = 1.0
    num_places: Annotated[Int, Field(ge=1, le=4096)] = 8
    num_samples: Annotated[Int, Field(ge=1, le=64)] = 2
    signing_secret: Annotated[Annotated[str, Field(min_length=24, max_length=200)] | None, Field(repr=False)] = None

    @model_validator(mode="after")
    def _endpoint_is_a_plain_url(self) -> Self:
        url = self.endpoint
        if url.query is not None or url.fragment is not None or url.username is not None or url.password is not None:
            raise ValueError("endpoint must be a plain URL: no credentials, query or fragment")
        return self


class ConformanceCheck(Contract):
    """One case of the conformance suite: the check, whether it held, and what was seen."""

    name: str
    passed: bool
    detail: str = ""
    required: bool = True


class ConformanceReport(Contract):
    """The conformance suite's findings about one endpoint at one time."""

    endpoint: str
    descriptor: Descriptor | None
    checks: list[ConformanceCheck]

    @property
    def passed(self) -> bool:
        """Whether every required check held."""
        return self.descriptor is not None and all(c.passed for c in self.checks if c.required)


class Why(Contract):
    """Why an expert is paused or retired; shown with it."""

    reason: Annotated[str, Field(min_length=1, max_length=MAX_REASON_CHARS)] = BY_HAND


class ExpertWeight(Contract):
    """How much an expert's answers weigh in the loss beside those of other experts; 0: they do not train."""

    weight: Weight


class Expert(View):
    """A registered expert.

    share: of the loss of the newest updates, 0..1; null where it was not asked for. measured: what each of its sources
    was measured to teach, in words.
    """

    id: UUID
    name: str
    endpoint: str
    version: str
    descriptor: Descriptor
    status: ExpertStatus
    reason: str | None
    granted: list[str]
    trusted: bool
    weight: float
    group_fraction: float
    rollouts_per_group: int | None
    top_k: int
    temperature: float
    num_places: int
    num_samples: int
    consecutive_failures: int
    retry_at: datetime | None
    report: ConformanceReport
    own: OwnKind | None = None
    created_at: datetime
    share: float | None = None
    measured: list[str] = []

    @property
    def ungranted(self) -> list[str]:
        """The metadata keys that it declares to need and is not granted."""
        return [key for key in self.descriptor.metadata_keys if key not in self.granted]


class ExpertRegistered(Expert):
    """An expert as it was registered. changed: the settings that this registration changed, each with what it was and
    is; empty for a new expert. warnings: what its owner will want to know before it is asked."""

    changed: list[str] = []
    warnings: list[str] = []
