"""A consultation, the durable row behind a message: one expert is asked about one rollout."""

from datetime import datetime
from enum import StrEnum
from typing import Literal
from uuid import UUID

from services.contracts.base import Contract, StatusChanges, View


class ConsultationStatus(StrEnum):
    """Only `answered` can train. `waiting`: the expert said 202. `dead`: attempts or deadline used up."""

    PENDING = "pending"
    ASKED = "asked"
    ANSWERED = "answered"
    ABSTAINED = "abstained"
    INVALID = "invalid"
    WAITING = "waiting"
    DEAD = "dead"


CONSULTATION_CHANGES: StatusChanges[ConsultationStatus] = {
    ConsultationStatus.PENDING: frozenset({ConsultationStatus.ASKED, ConsultationStatus.DEAD}),
    ConsultationStatus.ASKED: frozenset(
        {
            ConsultationStatus.ANSWERED,
            ConsultationStatus.ABSTAINED,
            ConsultationStatus.INVALID,
            ConsultationStatus.WAITING,
            ConsultationStatus.PENDING,
            ConsultationStatus.DEAD,
        }
    ),
    ConsultationStatus.WAITING: frozenset(
        {
            ConsultationStatus.ANSWERED,
            ConsultationStatus.ABSTAINED,
            ConsultationStatus.INVALID,
            ConsultationStatus.DEAD,
        }
    ),
    ConsultationStatus.ANSWERED: frozenset({ConsultationStatus.WAITING}),  # a person took their correction back
    ConsultationStatus.DEAD: frozenset({ConsultationStatus.PENDING}),
}

SETTLED = frozenset(
    {
        ConsultationStatus.ANSWERED,
        ConsultationStatus.ABSTAINED,
        ConsultationStatus.INVALID,
        ConsultationStatus.DEAD,
    }
)


class InvalidAnswer(Contract):
    """An answer that broke the contract; kept as a reason, never as a score."""

    outcome: Literal["invalid"] = "invalid"
    reason: str


class Attempt(View):
    """One try at asking: `ok`, or `failed` with the reason."""

    number: int
    outcome: str | None
    reason: str | None
    started_at: datetime
    ended_at: datetime | None


class Consultation(View):
    """A stored consultation."""

    id: UUID
    rollout_id: UUID
    expert_id: UUID
    expert_name: str
    expert_version: str
    stage: int
    status: ConsultationStatus
    reason: str | None
    attempts: int
    deadline: datetime
    created_at: datetime
    settled_at: datetime | None


class Requeued(View):
    """How many dead ones are tried again. has_more: others may be left, for another call."""

    num_requeued: int
    has_more: bool


class ConsultationDetail(Consultation):
    """A consultation with its tries, oldest first."""

    tries: list[Attempt]
