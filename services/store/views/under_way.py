"""Figures of the loop that are cheap at any size: what is under way, from indexes on status, counted up to a limit.

Nothing here counts what is finished: those rows are many. Rates of finished work are counters of the processes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import ScalarSelect, func, literal, select, text
from sqlalchemy.orm import InstrumentedAttribute, Session

from services.contracts.consultations import ConsultationStatus
from services.contracts.corrections import CorrectionStatus
from services.contracts.experts import ExpertStatus
from services.contracts.lessons import LessonStatus
from services.contracts.rollouts import GroupStatus, RolloutStatus
from services.store.ledger import policies, updates
from services.store.loop import groups
from services.store.loop import switches as loop
from services.store.tables.corrections import CorrectionRow
from services.store.tables.housekeeping import ProcessRow
from services.store.tables.ledger import LessonRow
from services.store.tables.loop import ConsultationRow, ExpertRow, GroupRow, RolloutRow

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
    switches = loop.get(session, lineage_id)
    serving = policies.serving(session, lineage_id)
    age = func.extract("epoch", func.now() - ProcessRow.beat_at)
    return Figures(
        counts={(noun, str(status)): int(count) for (noun, status), count in zip(keys, row, strict=True)},
        backlog=groups.backlog(session, lineage_id),
        num_updates=updates.last_number(session, lineage_id),
        serving_number=None if serving is None else serving.number,
        sampling=switches.sampling,
        training=switches.training,
        is_blocked=switches.blocked_by is not None,
        beats={name: float(seconds) for name, seconds in session.execute(select(ProcessRow.name, age))},
        database_bytes=int(session.scalar(text("SELECT pg_database_size(current_database())")) or 0),
    )


def _counts(lineage_id: UUID) -> Iterator[ScalarSelect[int]]:
    for status_of, lineage_of, statuses in LIVE.values():
        for status in statuses:
            some = select(literal(1)).where(status_of == str(status), lineage_of == lineage_id).limit(MOST).subquery()
            yield select(func.count()).select_from(some).scalar_subquery()
