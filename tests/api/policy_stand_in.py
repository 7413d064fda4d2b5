"""A policy process over the real protocol that knows characters: one token a character, ids below 256.

It holds the versions it is told of: in each, every token has the one probability given for it, and the likeliest answer
is the version's name.
"""

import math
from collections.abc import Mapping

from fastapi import FastAPI, Response

from sandbox.http.problems import Problem
from sandbox.http.rendering import render
from services.contracts.tasks import Message
from services.policy.contract import (
    AnswerRead,
    AnswersBatch,
    AnswersRead,
    AnswerTokens,
    Counters,
    DetokenizeRequest,
    FinishReason,
    Pieces,
    PolicyInfo,
    Sample,
    SampledPrompt,
    SampleRequest,
    SampleResponse,
    ScoredItem,
    ScoreRequest,
    ScoreResponse,
    Text,
    TokenIds,
    TokenIdsBatch,
    TokenizeBatch,
    TokenizeRequest,
)

TOKENIZER = "a" * 64
VOCAB = 256
END = 4
MAX_CONTEXT = 1000


def create_app(probabilities: Mapping[str, float] | None = None) -> FastAPI:
    """The process's app. probabilities: of every token, by loaded version."""
    app = FastAPI()
    loaded = {"base": 0.5} if probabilities is None else probabilities

    @app.get("/v1/policy")
    def info() -> PolicyInfo:
        return PolicyInfo(
            model="tiny",
            base_sha256="b" * 64,
            former_base_sha256="b" * 64,
            tokenizer_hash=TOKENIZER,
            vocab_size=VOCAB,
            eos_token_ids=[END],
            max_context=MAX_CONTEXT,
            device="cpu",
            dtype="float32",
            serving="base",
            versions=[],
            counters=Counters.model_validate(dict.fromkeys(Counters.model_fields, 0)),
        )

    @app.post("/v1/tokenize")
    def tokenize(body: TokenizeRequest) -> TokenIds:
        text = body.text if body.messages is None else "\n".join(m.content for m in body.messages)
        assert text is not None
        return TokenIds(token_ids=[min(ord(c), VOCAB - 1) for c in text], tokenizer_hash=TOKENIZER)

    @app.post("/v1/detokenize")
    def detokenize(body: DetokenizeRequest) -> Text:
        return Text(text="".join(map(chr, body.token_ids)))

    @app.post("/v1/pieces")
    def split(body: DetokenizeRequest) -> Pieces:
        return Pieces(pieces=[chr(i) for i in body.token_ids])

    @app.post("/v1/score", response_model=ScoreResponse)
    def score(body: ScoreRequest) -> ScoreResponse | Response:
        version = body.version or "base"
        if version not in loaded:
            return _not_loaded(version)
        logprob = math.log(loaded[version])
        items = [ScoredItem(logprobs=[logprob] * len(item.response_token_ids)) for item in body.items]
        return ScoreResponse(version=version, tokenizer_hash=TOKENIZER, items=items)

    @app.post("/v1/sample", response_model=SampleResponse)
    def sample(body: SampleRequest) -> SampleResponse | Response:
        version = body.version or "base"
        if version not in loaded:
            return _not_loaded(version)
        text = version[: body.max_new_tokens]
        ids, ended = [ord(c) for c in text], FinishReason.STOP if text == version else FinishReason.LENGTH
        said = Sample(token_ids=ids, logprobs=[-0.1] * len(ids), text=text, finish_reason=ended)
        prompts = [
            SampledPrompt(id=prompt.id, prompt_token_ids=prompt.token_ids or [1], samples=[said] * prompt.n)
            for prompt in body.prompts
        ]
        return SampleResponse(version=version, tokenizer_hash=TOKENIZER, prompts=prompts)

    @app.post("/v1/tokenize/batch")
    def tokenize_batch(body: TokenizeBatch) -> TokenIdsBatch:
        return TokenIdsBatch(token_ids=[tokenize(item).token_ids for item in body.items], tokenizer_hash=TOKENIZER)

    @app.post("/v1/answers/batch")
    def read_answers(body: AnswersBatch) -> AnswersRead:
        return AnswersRead(answers=[_read_answer(item) for item in body.items])

    return app


def _read_answer(rollout: AnswerTokens) -> AnswerRead:
    """Turns end with `END`, and a `T` begins a tool's."""
    *before, answer = "".join(map(chr, rollout.token_ids)).removesuffix(chr(END)).split(chr(END))
    turns = [
        Message(role="tool" if turn.startswith("T") else "assistant", content=turn.removeprefix("T")) for turn in before
    ]
    return AnswerRead(text=answer, turns=turns, start=sum(len(turn) + 1 for turn in before))


def _not_loaded(version: str) -> Response:
    detail = f"version {version!r} is not loaded"
    return render(
        Problem(type="urn:preceptor:problem:version-not-found", title="Not loaded", status=404, detail=detail)
    )
