"""Corrections: items of the human queue, from claim to the update that used them."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import Field, field_validator, model_validator

from services.contracts.answers import MAX_FEEDBACK_CHARS, MAX_SOLUTION_CHARS, Feedback, FeedbackSpan
from services.contracts.base import Contract, Int, JsonObject, StatusChanges, View
from services.contracts.effects import CorrectionEffect
from services.contracts.tasks import Message


class CorrectionStatus(StrEnum):
    """An item is offered to one person at a time under a lease."""

    OPEN = "open"
    CLAIMED = "claimed"
    SUBMITTED = "submitted"
    SKIPPED = "skipped"
    WITHDRAWN = "withdrawn"


CORRECTION_CHANGES: StatusChanges[CorrectionStatus] = {
    CorrectionStatus.OPEN: frozenset({CorrectionStatus.CLAIMED, CorrectionStatus.WITHDRAWN}),
    CorrectionStatus.CLAIMED: frozenset(
        {
            CorrectionStatus.OPEN,
            CorrectionStatus.SUBMITTED,
            CorrectionStatus.SKIPPED,
            CorrectionStatus.WITHDRAWN,
        }
    ),
    CorrectionStatus.SUBMITTED: frozenset({CorrectionStatus.CLAIMED, CorrectionStatus.WITHDRAWN}),  # taken back
    CorrectionStatus.SKIPPED: frozenset({CorrectionStatus.OPEN, CorrectionStatus.WITHDRAWN}),
    CorrectionStatus.WITHDRAWN: frozenset({CorrectionStatus.OPEN}),  # its consultation is asked once more
}


MAX_COMMENT_CHARS = 5_000
MAX_SPANS = 200
MAX_HOLD_SECONDS = 600


class SkipKind(StrEnum):
    """Why people leave an item; `other` says it in words."""

    UNCLEAR = "unclear"
    NOT_MY_FIELD = "not_my_field"
    CANNOT_CHECK = "cannot_check"
    TOO_LONG = "too_long"
    BROKEN = "broken"
    HARMFUL = "harmful"
    OTHER = "other"


class CorrectionCreate(Contract):
    """Ask for a correction of one rollout of a train task, ahead of the queue's own choice."""

    rollout_id: UUID


class CorrectionSubmit(Contract):
    """A person's decision: the answer as it should be, or that it is fine as it is; with remarks if any.

    hold_seconds: how long the trainer leaves it alone, so that a slip noticed at once can be taken back for certain.
    draft_version: of the draft that these words were edited from, 0 where there was none; it keeps a newer draft with
    other words from being thrown away.
    """

    verdict: Literal["corrected", "fine"]
    text: Annotated[str, Field(min_length=1, max_length=MAX_SOLUTION_CHARS)] | None = None
    comment: Annotated[str, Field(max_length=MAX_COMMENT_CHARS)] = ""
    spans: Annotated[list[FeedbackSpan], Field(max_length=MAX_SPANS)] = []
    hold_seconds: Annotated[Int, Field(ge=0, le=MAX_HOLD_SECONDS)] = 0
    draft_version: Annotated[Int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _a_correction_has_text(self) -> Self:
        if (self.verdict == "corrected") != (self.text is not None):
            raise ValueError("`corrected` needs the corrected text; `fine` has none")
        if self.text is not None and not self.text.strip():
            raise ValueError("the corrected text is blank; skip the item if there is no answer to give")
        return self


class CorrectionSkip(Contract):
    """Leave the item to someone else, and why: a kind, words, or both."""

    kind: SkipKind = SkipKind.OTHER
    reason: Annotated[str, Field(max_length=1_000)] = ""

    @model_validator(mode="after")
    def _says_why(self) -> Self:
        if self.kind is SkipKind.OTHER and not self.reason.strip():
            raise ValueError("give a `reason`, or choose another `kind`")
        return self


class DraftSave(Contract):
    """A person's unfinished work on an item. version: of the draft it was edited from, 0 where there was none."""

    version: Annotated[Int, Field(ge=0)]
    text: Annotated[str, Field(max_length=MAX_SOLUTION_CHARS)]
    comment: Annotated[str, Field(max_length=MAX_COMMENT_CHARS)] = ""
    spans: Annotated[list[FeedbackSpan], Field(max_length=MAX_SPANS)] = []


class QuotedRemark(Contract):
    """A remark on a part of the policy's answer, found by the words that it quotes."""

    quote: Annotated[str, Field(min_length=1, max_length=MAX_FEEDBACK_CHARS)]
    text: Annotated[str, Field(min_length=1, max_length=MAX_FEEDBACK_CHARS)]

    @field_validator("text")
    @classmethod
    def _says_something(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("the remark is blank")
        return text.strip()


class Draft(View):
    """A draft as it is kept; every save makes a new version."""

    correction_id: UUID
    version: int
    text: str
    comment: str
    spans: list[FeedbackSpan]
    saved_at: datetime


class DraftSaved(Draft):
    """A saved draft, and whether its writer still holds the item; one who does not keeps the draft all the same."""

    held: bool
    lease_until: datetime | None


class Correction(View):
    """An item of the human queue as a person sees it.

    disagreement: how far apart the scores of independent experts are, 0..1. uncertainty: what the policy's own
    choices cost it, in nats a token; 0 where the sampler did not tell. The queue is ordered by priority (1: somebody
    asked for it), disagreement, uncertainty and age, the newest first. held_until: until when the trainer leaves a
    submitted one alone.
    """

    id: UUID
    rollout_id: UUID
    consultation_id: UUID
    status: CorrectionStatus
    priority: float
    disagreement: float
    uncertainty: float
    person_id: UUID | None
    lease_until: datetime | None
    verdict: str | None
    text: str | None
    comment: str | None
    skip_kind: SkipKind | None
    skip_reason: str | None
    created_at: datetime
    decided_at: datetime | None
    held_until: datetime | None


class Opinion(View):
    """Another expert's answer about the rollout. counted: its score is one of those that disagreement is about."""

    expert: str
    expert_version: str
    counted: bool
    score: float | None
    feedback: Feedback | None
    solution: str | None
    distribution_kind: str | None
    evidence: JsonObject | None


class CorrectionItem(Correction):
    """A claimed item with everything needed to correct it. chosen_because: why it came before the others."""

    domain: str
    messages: list[Message]
    rollout_text: str
    opinions: list[Opinion]
    chosen_because: str
    draft: Draft | None


class CorrectionOutcome(Correction):
    """The effect of a correction: the updates that used it, and the policy's answer before and after each.

    waits_for: why no update has used a submitted one; lists leave it out. undo_until: until when its person may take it
    back, where they still may.
    """

    update_numbers: list[int]
    waits_for: str | None
    effects: list[CorrectionEffect]
    undo_until: datetime | None
