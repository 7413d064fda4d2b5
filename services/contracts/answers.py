"""An expert's answer: any of a score, feedback, a solution, precedents, a distribution, evidence.

The checks here need only the rollout's own length and tokenizer; a distribution that fails them makes the
consultation `invalid`, never a score of zero.
"""

import math
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, Self, TypeAlias
from uuid import UUID

from pydantic import Field, model_validator

from services.contracts.base import Bool, Contract, Float, Int, JsonObject, Sha256, StatusChanges, TokenId, View
from services.contracts.tasks import Precedent, Precedents

MAX_FEEDBACK_CHARS = 20_000
MAX_SOLUTION_CHARS = 100_000
MAX_TOP_K = 200
PASS_SCORE = 0.5
"""A score above this is a pass; execution and executed calls score 0 or 1."""
NORMALISATION_TOLERANCE = 5e-3  # half-precision log-probabilities of a 200-token support sum to 1 within this

LogProb = Annotated[Float, Field(le=1e-3)]


def passes(score: float | None) -> bool:
    """Whether there is a score, and it is a pass."""
    return score is not None and score > PASS_SCORE


class AnswerKind(StrEnum):
    """The parts an answer may have."""

    SCORE = "score"
    FEEDBACK = "feedback"
    SOLUTION = "solution"
    PRECEDENTS = "precedents"
    TOPK = "topk"
    SAMPLES = "samples"
    EVIDENCE = "evidence"


class AnswerStatus(StrEnum):
    """`withdrawn` when its author, expert version or the answer itself was revoked."""

    CURRENT = "current"
    WITHDRAWN = "withdrawn"


ANSWER_CHANGES: StatusChanges[AnswerStatus] = {AnswerStatus.CURRENT: frozenset({AnswerStatus.WITHDRAWN})}


class FeedbackSpan(Contract):
    """A remark on the rollout's tokens [start, end)."""

    start: Annotated[Int, Field(ge=0)]
    end: Annotated[Int, Field(gt=0)]
    text: Annotated[str, Field(min_length=1, max_length=MAX_FEEDBACK_CHARS)]

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.end <= self.start:
            raise ValueError("a span needs end > start")
        return self


class Feedback(Contract):
    """What was said about the rollout, whole or on spans. `computed_from_rollout` marks feedback that is a function
    of this very rollout (a test run, say), for which later-cost credit is a heuristic."""

    text: Annotated[str, Field(max_length=MAX_FEEDBACK_CHARS)] = ""
    spans: Annotated[list[FeedbackSpan], Field(max_length=200)] = []
    computed_from_rollout: Bool = True

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.text.strip() and not self.spans:
            raise ValueError("feedback needs text or spans; abstain when there is nothing to say")
        return self


class TopKDistribution(Contract):
    """The expert's next-token probabilities at each of the rollout's tokens: top K and the mass left in the tail.

    token_ids, logprobs: [T][K]; tail_mass: [T], in probability. Row t is the distribution of token t given the
    tokens before it. The expert tempers *before* it truncates and states the temperature it used.
    """

    kind: Literal["topk"] = "topk"
    tokenizer_hash: Sha256
    temperature: Annotated[Float, Field(gt=0, le=10)] = 1.0
    token_ids: Annotated[list[list[TokenId]], Field(min_length=1)]
    logprobs: Annotated[list[list[LogProb]], Field(min_length=1)]
    tail_mass: Annotated[list[Annotated[Float, Field(ge=0, le=1)]], Field(min_length=1)]

    @model_validator(mode="after")
    def _rows_are_distributions(self) -> Self:
        if not len(self.token_ids) == len(self.logprobs) == len(self.tail_mass):
            raise ValueError("token_ids, logprobs and tail_mass must have one row a token")
        width = len(self.token_ids[0])
        if not 1 <= width <= MAX_TOP_K:
            raise ValueError(f"K must be between 1 and {MAX_TOP_K}")
        for t, (ids, logprobs, tail) in enumerate(zip(self.token_ids, self.logprobs, self.tail_mass, strict=True)):
            if len(ids) != width or len(logprobs) != width:
                raise ValueError(f"row {t} has not K = {width} entries")
            if len(set(ids)) != width:
                raise ValueError(f"row {t} names a token twice")
            total = math.fsum(math.exp(x) for x in logprobs) + tail
            if abs(total - 1) > NORMALISATION_TOLERANCE:
                raise ValueError(f"row {t} sums to {total:.4f}, not 1")
        return self


class Continuation(Contract):
    """One sample of how the expert would go on; ids when it shares our tokenizer, otherwise text."""

    text: Annotated[str, Field(max_length=MAX_SOLUTION_CHARS)] | None = None
    token_ids: Annotated[list[TokenId], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.text is None) == (self.token_ids is None):
            raise ValueError("a continuation is either text or token_ids")
        return self


class SamplesDistribution(Contract):
    """A black-box expert: M continuations from given prefixes of the rollout.

    prefixes: how many of the rollout's tokens each prefix keeps, [P]; continuations: [P][M];
    probabilities: with what probability each prefix was chosen, [P], absent when the set was fixed.
    """

    kind: Literal["samples"] = "samples"
    tokenizer_hash: Sha256 | None = None
    temperature: Annotated[Float, Field(gt=0, le=10)] = 1.0
    prefixes: Annotated[list[Annotated[Int, Field(ge=0)]], Field(min_length=1, max_length=4096)]
    continuations: Annotated[
        list[Annotated[list[Continuation], Field(min_length=1, max_length=64)]], Field(min_length=1)
    ]
    probabilities: list[Annotated[Float, Field(gt=0, le=1)]] | None = None

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if len(self.continuations) != len(self.prefixes):
            raise ValueError("continuations must have one list a prefix")
        if len(set(self.prefixes)) != len(self.prefixes):
            raise ValueError("a prefix is named twice")
        if self.probabilities is not None and len(self.probabilities) != len(self.prefixes):
            raise ValueError("probabilities must have one entry a prefix")
        if self.tokenizer_hash is None and any(c.token_ids for row in self.continuations for c in row):
            raise ValueError("continuations as token_ids need tokenizer_hash")
        return self


Distribution: TypeAlias = Annotated[TopKDistribution | SamplesDistribution, Field(discriminator="kind")]


class AnswerContent(Contract):
    """The content of a result; at least one part besides evidence."""

    score: Annotated[Float, Field(ge=0, le=1)] | None = None
    feedback: Feedback | None = None
    solution: Annotated[str, Field(min_length=1, max_length=MAX_SOLUTION_CHARS)] | None = None
    precedents: Precedents | None = None
    distribution: Distribution | None = None
    evidence: JsonObject | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        parts = (self.score, self.feedback, self.solution, self.precedents, self.distribution)
        if all(part is None for part in parts):
            raise ValueError(
                "a result needs a score, feedback, a solution, precedents or a distribution; otherwise abstain"
            )
        return self

    def kinds(self) -> set[AnswerKind]:
        """Which kinds of answer this is."""
        kinds = {
            kind
            for kind, part in (
                (AnswerKind.SCORE, self.score),
                (AnswerKind.FEEDBACK, self.feedback),
                (AnswerKind.SOLUTION, self.solution),
                (AnswerKind.PRECEDENTS, self.precedents),
                (AnswerKind.EVIDENCE, self.evidence),
            )
            if part is not None
        }
        if self.distribution is not None:
            kinds.add(AnswerKind(self.distribution.kind))
        return kinds


def check_against_rollout(
    content: AnswerContent, *, num_tokens: int, tokenizer_hash: str, vocab_size: int | None
) -> None:
    """Pass when the answer fits its rollout. Raises ValueError with the mismatch."""
    if content.feedback is not None:
        for span in content.feedback.spans:
            if span.end > num_tokens:
                raise ValueError(f"a span ends at token {span.end} of a rollout of {num_tokens} tokens")
    distribution = content.distribution
    if distribution is None:
        return
    if distribution.tokenizer_hash is not None and distribution.tokenizer_hash != tokenizer_hash:
        raise ValueError("the distribution is over another tokenizer's vocabulary")
    if isinstance(distribution, TopKDistribution):
        if len(distribution.token_ids) != num_tokens:
            raise ValueError(f"the distribution has {len(distribution.token_ids)} rows for {num_tokens} tokens")
        ids = (i for row in distribution.token_ids for i in row)
    else:
        if max(distribution.prefixes) >= num_tokens:
            raise ValueError(f"a prefix keeps {max(distribution.prefixes)} tokens of a rollout of {num_tokens}")
        ids = (i for row in distribution.continuations for c in row for i in c.token_ids or ())
    if vocab_size is not None and (largest := max(ids, default=0)) >= vocab_size:
        raise ValueError(f"token id {largest} is outside the vocabulary of {vocab_size}")


class Answer(View):
    """A stored answer."""

    id: UUID
    consultation_id: UUID
    rollout_id: UUID
    expert_id: UUID
    expert_version: str
    status: AnswerStatus
    score: float | None
    feedback: Feedback | None
    solution: str | None
    precedents: list[Precedent] | None
    distribution_kind: str | None
    evidence: JsonObject | None
    created_at: datetime
