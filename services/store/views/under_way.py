"""The running loop at a glance: how fast it goes, what waits in which queue, and its gauges.

Every query reads a bounded number of rows, whatever the tables hold: gauges are counted from indexes on status, up to
a limit, and leave out what is finished.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import Float, ScalarSelect, Select, cast, func, literal, select, text
from sqlalchemy.orm import InstrumentedAttribute, Session

from services.contracts.consultations import ConsultationStatus
from services.contracts.corrections import CorrectionStatus
from services.contracts.experts import ExpertStatus
from services.contracts.ids import first_id_of
from services.contracts.lessons import LessonStatus
from services.contracts.rollouts import GroupStatus, Purpose, RolloutStatus
from services.contracts.updates import UpdateStatus
from services.store.core import row_counts
from services.store.ledger import policies, updates
from services.store.loop import groups, switches
from services.store.tables.corrections import CorrectionRow
from services.store.tables.housekeeping import ProcessRow
from services.store.tables.ledger import LessonRow, UpdateRow
from services.store.tables.loop import AnswerRow, ConsultationRow, ExpertRow, GroupRow, RolloutRow

RATE_WINDOW = timedelta(minutes=2)
MAX_COUNTED = 2000  # rows; when so many came within the window, the rate is that of their own, shorter time
UPDATES_WINDOW = timedelta(hours=1)
MOST: Final = 10_000
"""Where counting stops: a figure this large means "at least"."""

LIVE: Final[dict[str, tuple[InstrumentedAttribute[str], InstrumentedAttribute[UUID], tuple[str, ...]]]] = {
    "groups": (GroupRow.status, GroupRow.lineage_id, (GroupStatus.PENDING, GroupStatus.ASKED, GroupStatus.DEAD)),
    "rollouts": (RolloutRow.status, RolloutRow.lineage_id, (RolloutStatus.OPEN,)),
    "consultations": (
        ConsultationRow.status,
        ConsultationRow.lineage_id,
        (
            ConsultationStatus.PENDING,
            ConsultationStatus.ASKED,
            ConsultationStatus.WAITING,
            ConsultationStatus.DEAD,
        ),
    ),
    "lessons": (
        LessonRow.status,
        LessonRow.lineage_id,
        (LessonStatus.OPEN, LessonStatus.READY, LessonStatus.CLAIMED),
    ),
    "corrections": (CorrectionRow.status, CorrectionRow.lineage_id, (CorrectionStatus.OPEN, CorrectionStatus.CLAIMED)),
    "experts": (ExpertRow.status, ExpertRow.lineage_id, tuple(s.value for s in ExpertStatus)),
}
"""By noun: its statuses that are under way (or wait for a person), which an index finds."""


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
    """The rows that wait in each queue."""

    draws: int
    consultations: int
    people: int
    lessons: int
    late_lessons: int
    claimed: int
    corrections: int
    dead_consultations: int
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
    """The lengths of the queues."""
    told = row_counts.read(session, lineage_id, ("rollout_group", "consultation", "lesson", "correction"))
    draws, asked = row_counts.by_word(told["rollout_group"]), row_counts.by_word(told["consultation"])
    lessons, late = row_counts.by_word(told["lesson"], ""), row_counts.by_word(told["lesson"], "late")
    corrections = row_counts.by_word(told["correction"])
    return Queues(
        draws=draws.get(GroupStatus.PENDING.value, 0) + draws.get(GroupStatus.ASKED.value, 0),
        consultations=asked.get(ConsultationStatus.PENDING.value, 0) + asked.get(ConsultationStatus.ASKED.value, 0),
        people=asked.get(ConsultationStatus.WAITING.value, 0),
        lessons=lessons.get(LessonStatus.READY.value, 0),
        late_lessons=late.get(LessonStatus.READY.value, 0),
        claimed=lessons.get(LessonStatus.CLAIMED.value, 0) + late.get(LessonStatus.CLAIMED.value, 0),
        corrections=corrections.get(CorrectionStatus.OPEN.value, 0)
        + corrections.get(CorrectionStatus.CLAIMED.value, 0),
        dead_consultations=asked.get(ConsultationStatus.DEAD.value, 0),
        dead_draws=draws.get(GroupStatus.DEAD.value, 0),
    )


@dataclass(frozen=True)
class Figures:
    """The loop at one moment. counts: by noun and status, at most `MOST` each. beats: seconds since a process spoke."""

    counts: dict[tuple[str, str], int]
    backlog: int
    num_updates: int
    serving_number: int | None
    sampling: bool
    training: bool
    is_blocked: bool
    beats: dict[str, float]
    database_bytes: int


def read(session: Session, lineage_id: UUID) -> Figures:
    """The figures of a lineage."""
    keys = [(noun, status) for noun, (_, _, statuses) in LIVE.items() for status in statuses]
    row = session.execute(select(*_counts(lineage_id))).one()
    switched = switches.get(session, lineage_id)
    serving = policies.serving(session, lineage_id)
    age = func.extract("epoch", func.now() - ProcessRow.beat_at)
    return Figures(
        counts={(noun, str(status)): int(count) for (noun, status), count in zip(keys, row, strict=True)},
        backlog=groups.backlog(session, lineage_id),
        num_updates=updates.last_number(session, lineage_id),
        serving_number=None if serving is None else serving.number,
        sampling=switched.sampling,
        training=switched.training,
        is_blocked=switched.blocked_by is not None,
        beats={name: float(seconds) for name, seconds in session.execute(select(ProcessRow.name, age))},
        database_bytes=int(session.scalar(text("SELECT pg_database_size(current_database())")) or 0),
    )


def _counts(lineage_id: UUID) -> Iterator[ScalarSelect[int]]:
    for status_of, lineage_of, statuses in LIVE.values():
        for status in statuses:
            some = select(literal(1)).where(status_of == str(status), lineage_of == lineage_id).limit(MOST).subquery()
            yield select(func.count()).select_from(some).scalar_subquery()
