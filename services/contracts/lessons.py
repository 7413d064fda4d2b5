"""A lesson: a rollout with the answers that may train it."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from services.contracts.base import StatusChanges, View


class LessonStatus(StrEnum):
    """`ready` lessons are claimed by a trainer under a lease and `used` by at most one applied update."""

    OPEN = "open"
    READY = "ready"
    CLAIMED = "claimed"
    USED = "used"
    SET_ASIDE = "set_aside"
    INVALID = "invalid"
    WITHDRAWN = "withdrawn"


LESSON_CHANGES: StatusChanges[LessonStatus] = {
    LessonStatus.OPEN: frozenset({LessonStatus.READY, LessonStatus.SET_ASIDE, LessonStatus.WITHDRAWN}),
    LessonStatus.READY: frozenset({LessonStatus.CLAIMED, LessonStatus.SET_ASIDE, LessonStatus.WITHDRAWN}),
    LessonStatus.CLAIMED: frozenset(
        {
            LessonStatus.READY,
            LessonStatus.USED,
            LessonStatus.SET_ASIDE,
            LessonStatus.INVALID,
            LessonStatus.WITHDRAWN,
        }
    ),
    LessonStatus.USED: frozenset({LessonStatus.READY, LessonStatus.WITHDRAWN}),
    LessonStatus.SET_ASIDE: frozenset({LessonStatus.WITHDRAWN}),
    LessonStatus.INVALID: frozenset({LessonStatus.WITHDRAWN}),
}


class Lesson(View):
    """A stored lesson. `late` ones hold only the terms of an answer that came after the rollout was ready."""

    id: UUID
    rollout_id: UUID
    group_id: UUID
    ordinal: int
    late: bool
    status: LessonStatus
    reason: str | None
    created_at: datetime
