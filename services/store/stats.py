"""The loop's state in a few cheap queries."""

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from services.contracts.rollouts import Purpose
from services.contracts.status import LoopState, PassRate, ProcessState, Status, TaskCount, UpdateSummary
from services.contracts.updates import UpdateStatus
from services.store import groups, loop, policies, processes, tasks, updates
from services.store.evaluations import PASS_SCORE
from services.store.models import (
    ConsultationRow,
    CorrectionRow,
    GroupRow,
    LessonRow,
    LineageRow,
    RolloutRow,
    TaskRow,
    UpdateRow,
)

RECENT_ROLLOUTS = 128  # a pass rate of the last few groups, not of the whole history
RECENT_UPDATES = 5


def status(session: Session, lineage: LineageRow) -> Status:
    """The state of the lineage's loop."""
    switches = loop.get(session, lineage.id)
    serving = policies.serving(session, lineage.id)
    train_groups = (GroupRow.lineage_id == lineage.id, GroupRow.purpose == Purpose.TRAIN.value)
    train_rollouts = (RolloutRow.lineage_id == lineage.id, RolloutRow.purpose == Purpose.TRAIN.value)
    return Status(
        lineage=lineage.name,
        model=lineage.model,
        serving=None if serving is None else serving.name,
        loop=LoopState(sampling=switches.sampling, training=switches.training, max_updates=switches.max_updates),
        tasks=[
            TaskCount(domain=domain, split=split, num_tasks=count)
            for domain, split, count in tasks.count_by_split(session, lineage.id)
        ],
        backlog=groups.backlog(session, lineage.id),
        groups=_by_status(session, GroupRow.status, *train_groups),
        rollouts=_by_status(session, RolloutRow.status, *train_rollouts),
        consultations=_by_status(session, ConsultationRow.status, ConsultationRow.lineage_id == lineage.id),
        lessons=_by_status(session, LessonRow.status, LessonRow.lineage_id == lineage.id),
        corrections=_by_status(session, CorrectionRow.status, CorrectionRow.lineage_id == lineage.id),
        num_updates=updates.last_number(session, lineage.id),
        last_updates=_last_updates(session, lineage),
        pass_rates=_pass_rates(session, lineage),
        processes=[
            ProcessState(
                name=row.name,
                pid=row.pid,
                activity=row.activity,
                counters=row.counters,
                started_at=row.started_at,
                beat_at=row.beat_at,
            )
            for row in processes.latest(session)
        ],
    )


def _by_status(session: Session, status_of: InstrumentedAttribute[str], *where: ColumnElement[bool]) -> dict[str, int]:
    rows = session.execute(select(status_of, func.count()).where(*where).group_by(status_of))
    return {str(word): int(count) for word, count in rows}


def _last_updates(session: Session, lineage: LineageRow) -> list[UpdateSummary]:
    rows = session.scalars(
        select(UpdateRow)
        .where(UpdateRow.lineage_id == lineage.id, UpdateRow.status == UpdateStatus.APPLIED.value)
        .order_by(UpdateRow.number.desc())
        .limit(RECENT_UPDATES)
    )
    return [
        UpdateSummary(id=row.id, number=row.number, metrics=row.metrics, applied_at=row.applied_at)
        for row in rows
        if row.applied_at is not None
    ]


def _pass_rates(session: Session, lineage: LineageRow) -> list[PassRate]:
    newest = (
        select(RolloutRow.task_id, RolloutRow.score)
        .where(
            RolloutRow.lineage_id == lineage.id,
            RolloutRow.purpose == Purpose.TRAIN.value,
            RolloutRow.score.is_not(None),
        )
        .order_by(RolloutRow.id.desc())
        .limit(RECENT_ROLLOUTS)
        .subquery()
    )
    passed = func.count().filter(newest.c.score > PASS_SCORE)
    rows = session.execute(
        select(TaskRow.domain, func.count(), passed)
        .join(newest, newest.c.task_id == TaskRow.id)
        .group_by(TaskRow.domain)
        .order_by(TaskRow.domain)
    )
    return [PassRate(domain=d, num_judged=n, pass_rate=int(p) / int(n)) for d, n, p in rows]
