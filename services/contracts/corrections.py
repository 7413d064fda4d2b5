"""Corrections: items of the human queue, from claim to the update that used them."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import Field, model_validator

from services.contracts.answers import MAX_SOLUTION_CHARS, FeedbackSpan
from services.contracts.base import Contract, StatusChanges, View
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
    CorrectionStatus.SUBMITTED: frozenset({CorrectionStatus.WITHDRAWN}),
    CorrectionStatus.SKIPPED: frozenset({CorrectionStatus.OPEN, CorrectionStatus.WITHDRAWN}),
    CorrectionStatus.WITHDRAWN: frozenset({CorrectionStatus.OPEN}),  # its question is asked once more
}


class CorrectionCreate(Contract):
    """Ask for a correction of one rollout of a train task, ahead of the queue's own choice."""

    rollout_id: UUID


class CorrectionSubmit(Contract):
    """What the person decided: the answer as it should be, or that it is fine as it is; with remarks if any."""

    verdict: Literal["corrected", "fine"]
    text: Annotated[str, Field(min_length=1, max_length=MAX_SOLUTION_CHARS)] | None = None
    comment: Annotated[str, Field(max_length=5_000)] = ""
    spans: list[FeedbackSpan] = []

    @model_validator(mode="after")
    def _a_correction_has_text(self) -> Self:
        if (self.verdict == "corrected") != (self.text is not None):
            raise ValueError("`corrected` needs the corrected text; `fine` has none")
        if self.text is not None and not self.text.strip():
            raise ValueError("the corrected text is blank; skip the item if there is no answer to give")
        return self


class CorrectionSkip(Contract):
    """Leave the item to someone else, and why."""

    reason: Annotated[str, Field(min_length=1, max_length=1_000)]


class Correction(View):
    """An item of the human queue as a person sees it."""

    id: UUID
    rollout_id: UUID
    consultation_id: UUID
    status: CorrectionStatus
    person_id: UUID | None
    lease_until: datetime | None
    verdict: str | None
    text: str | None
    comment: str | None
    skip_reason: str | None
    created_at: datetime
    decided_at: datetime | None


class CorrectionItem(Correction):
    """A claimed item with what is needed to correct it."""

    messages: list[Message]
    rollout_text: str


class CorrectionOutcome(Correction):
    """What became of a correction: the updates that used it."""

    update_numbers: list[int]
