"""The running loop at a glance: how fast it goes, what waits where, and how each policy version did.

Every query here reads a bounded number of rows, whatever the tables hold.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import Float, Select, cast, func, select
from sqlalchemy.orm import Session

from services.contracts.consultations import ConsultationStatus
from services.contracts.corrections import CorrectionStatus
from services.contracts.ids import first_id_of
from services.contracts.lessons import LessonStatus
from services.contracts.rollouts import GroupStatus, Purpose
from services.contracts.updates import UpdateStatus
from services.store.core import row_counts
from services.store.tables.ledger import UpdateRow
from services.store.tables.loop import AnswerRow, RolloutRow

RATE_WINDOW = timedelta(minutes=2)
MAX_COUNTED = 2000  # rows; when so many came within the window, the rate is that of their own, shorter time
UPDATES_WINDOW = timedelta(hours=1)


@dataclass(frozen=True)
class Rates:
    """How fast the loop goes now. seconds_per_update is the newest updates' mean, None before the first."""

    rollouts_per_minute: float
    answers_per_minute: float
    lessons_per_minute: float
    updates_per_hour: float
    seconds_per_update: float | None


@dataclass(frozen=True)
class Queues:
    """What waits where, in rows."""

    draws: int
    questions: int
    people: int
    lessons: int
    late_lessons: int
    claimed: int
    corrections: int
    dead_questions: int
    dead_draws: int


def rates(session: Session, lineage_id: UUID, now: datetime | None = None) -> Rates:
    """Rollouts drawn and answers got over the last two minutes, lessons used and updates over the last hour."""
    until = now or datetime.now(UTC)
    since = first_id_of(until - RATE_WINDOW)
    rollouts = select(RolloutRow.id, RolloutRow.created_at).where(
        RolloutRow.lineage_id == lineage_id, RolloutRow.purpose == Purpose.TRAIN.value, RolloutRow.id >= since
    )
    answers = select(AnswerRow.id, AnswerRow.created_at).where(
        AnswerRow.lineage_id == lineage_id, AnswerRow.id >= since
    )
    newest = (
        select(UpdateRow.metrics, UpdateRow.applied_at)
        .where(
            UpdateRow.lineage_id == lineage_id,
            UpdateRow.status == UpdateStatus.APPLIED.value,
            UpdateRow.applied_at >= until - UPDATES_WINDOW,
        )
        .order_by(UpdateRow.number.desc())
        .limit(MAX_COUNTED)
        .subquery()
    )
    seconds = cast(newest.c.metrics["seconds"].astext, Float)
    lessons = cast(newest.c.metrics["num_rows"].astext, Float)
    num_updates, oldest, mean_seconds, num_lessons = session.execute(
        select(func.count(), func.min(newest.c.applied_at), func.avg(seconds), func.coalesce(func.sum(lessons), 0))
    ).one()
    minutes = UPDATES_WINDOW.total_seconds() / 60
    if num_updates:  # a loop that began within the hour is not slower for that
        minutes = max(1.0, min(minutes, (until - oldest).total_seconds() / 60 + (mean_seconds or 0) / 60))
    return Rates(
        rollouts_per_minute=_per_minute(session, rollouts.order_by(RolloutRow.id.desc()), until),
        answers_per_minute=_per_minute(session, answers.order_by(AnswerRow.id.desc()), until),
        lessons_per_minute=float(num_lessons) / minutes,
        updates_per_hour=60 * num_updates / minutes,
        seconds_per_update=mean_seconds,
    )


def _per_minute(session: Session, newest: Select[UUID, datetime], until: datetime) -> float:
    counted = newest.limit(MAX_COUNTED).subquery()
    num, oldest = session.execute(select(func.count(), func.min(counted.c.created_at))).one()
    seconds = RATE_WINDOW.total_seconds()
    if num == MAX_COUNTED:
        seconds = max(1.0, min(seconds, (until - oldest).total_seconds()))
    return 60 * float(num) / seconds


def queues(session: Session, lineage_id: UUID) -> Queues:
    """What waits where."""
    told = row_counts.read(session, lineage_id, ("rollout_group", "consultation", "lesson", "correction"))
    draws, asked = row_counts.by_word(told["rollout_group"]), row_counts.by_word(told["consultation"])
    lessons, late = row_counts.by_word(told["lesson"], ""), row_counts.by_word(told["lesson"], "late")
    corrections = row_counts.by_word(told["correction"])
    return Queues(
        draws=draws.get(GroupStatus.PENDING.value, 0) + draws.get(GroupStatus.ASKED.value, 0),
        questions=asked.get(ConsultationStatus.PENDING.value, 0) + asked.get(ConsultationStatus.ASKED.value, 0),
        people=asked.get(ConsultationStatus.WAITING.value, 0),
        lessons=lessons.get(LessonStatus.READY.value, 0),
        late_lessons=late.get(LessonStatus.READY.value, 0),
        claimed=lessons.get(LessonStatus.CLAIMED.value, 0) + late.get(LessonStatus.CLAIMED.value, 0),
        corrections=corrections.get(CorrectionStatus.OPEN.value, 0)
        + corrections.get(CorrectionStatus.CLAIMED.value, 0),
        dead_questions=asked.get(ConsultationStatus.DEAD.value, 0),
        dead_draws=draws.get(GroupStatus.DEAD.value, 0),
    )
