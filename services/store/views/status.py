"""The loop's state in a few queries, none of which takes longer the more rows there are."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from services.contracts.lessons import LessonStatus
from services.contracts.rollouts import GroupStatus, Purpose, RolloutStatus
from services.contracts.status import LoopState, ProcessState, Status, TaskCount, UpdateSummary
from services.contracts.tasks import Split
from services.contracts.updates import UpdateStatus
from services.store.core import row_counts
from services.store.core.row_counts import RowCount
from services.store.ledger import fallbacks, policies, updates
from services.store.loop import coverage, groups, pass_rates, processes, waiting
from services.store.loop import switches as loop
from services.store.tables.base import LineageRow
from services.store.tables.ledger import UpdateRow
from services.store.tables.loop import GroupRow, LoopRow, TaskRow

RECENT_UPDATES = 5
NOUNS = ("task", "rollout_group", "rollout", "consultation", "lesson", "correction")
PAUSED = "the loop is paused: nothing is drawn and nothing is trained; `preceptor loop on` starts it"
BACKLOG_FULL = "the backlog is full: no draws until the trainer has used some of it"
BACKLOG_OPEN = "the backlog is full: no draws until experts have answered about some of it"


def status(
    session: Session,
    lineage: LineageRow,
    *,
    max_backlog: int,
    max_groups_per_task: int,
    group_size: int,
    shortage: str | None = None,
) -> Status:
    """The state of the lineage's loop; the three limits are those the sampler plans with.

    shortage: too little room on a disk, as the caller sees it now; the last sweep may not have been able to write it.
    """
    switches = loop.get(session, lineage.id)
    serving = policies.serving(session, lineage.id)
    backlog = groups.backlog(session, lineage.id)
    told = row_counts.read(session, lineage.id, NOUNS)
    train_groups = row_counts.by_word(told["rollout_group"], Purpose.TRAIN.value)
    num_updates = updates.last_number(session, lineage.id)
    waited_for = waiting.read(session, lineage.id)
    refused = fallbacks.describe(fallbacks.refusals(session, lineage.id), serving)
    waits_for = [
        *([refused] if refused is not None else []),
        *_waits_of_switches(switches, num_updates, shortage),
        *_waits_of_draws(session, lineage.id),
        *_waits_of_tasks(session, lineage.id, max_groups_per_task, group_size),
        *waiting.describe(waited_for, datetime.now(UTC)),
        *([_say_full(told["rollout"], told["lesson"])] if max_backlog - backlog < group_size else []),
        *_dead_draws(session, lineage.id, train_groups),
    ]
    return Status(
        lineage=lineage.name,
        model=lineage.model,
        serving=None if serving is None else serving.name,
        loop=LoopState(sampling=switches.sampling, training=switches.training, max_updates=switches.max_updates),
        tasks=[TaskCount(domain=tally.kind, split=tally.word, num_tasks=tally.num) for tally in told["task"]],
        backlog=backlog,
        waits_for=waits_for,
        waited_for=waited_for,
        unjudged=coverage.explain_domains(session, lineage.id, (tally.kind for tally in told["task"] if tally.num > 0)),
        groups=train_groups,
        rollouts=row_counts.by_word(told["rollout"], Purpose.TRAIN.value),
        consultations=row_counts.by_word(told["consultation"]),
        lessons=row_counts.by_word(told["lesson"]),
        corrections=row_counts.by_word(told["correction"]),
        num_updates=num_updates,
        last_updates=_last_updates(session, lineage),
        pass_rates=pass_rates.of_domains(session, lineage.id),
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


def _waits_of_switches(switches: LoopRow, num_updates: int, shortage: str | None) -> Iterator[str]:
    if not switches.sampling and not switches.training:
        yield PAUSED
    elif not switches.sampling:
        yield "sampling is off"
    elif not switches.training:
        yield "training is off"
    if (blocked := switches.blocked_by or shortage) is not None:
        yield blocked
    if switches.max_updates is not None and num_updates >= switches.max_updates:
        yield f"stopped after update {switches.max_updates}, as requested"


def _waits_of_draws(session: Session, lineage_id: UUID) -> Iterator[str]:
    """Why draws that could be made now are not: the policy server lacks the version they need, or is away."""
    waits = (
        GroupRow.lineage_id == lineage_id,
        GroupRow.status == GroupStatus.PENDING.value,
        GroupRow.reason.is_not(None),
    )
    num, reason = session.execute(select(func.count(), func.max(GroupRow.reason)).where(*waits)).one()
    if num:
        yield f"{num} {'draw waits' if num == 1 else 'draws wait'}: {reason}"


def _waits_of_tasks(session: Session, lineage_id: UUID, max_groups_per_task: int, group_size: int) -> Iterator[str]:
    left = TaskRow.num_rollouts < max_groups_per_task * group_size
    of_train = (TaskRow.lineage_id == lineage_id, TaskRow.split == Split.TRAIN.value)
    if session.scalar(select(exists().where(*of_train, left))):
        return
    if session.scalar(select(exists().where(*of_train))):
        yield (
            f"every train task was drawn {max_groups_per_task} times; "
            "import more or raise PRECEPTOR_MAX_GROUPS_PER_TASK"
        )
    else:
        yield "there are no train tasks; import some"


def _say_full(rollouts: Sequence[RowCount], lessons: Sequence[RowCount]) -> str:
    """Who has to go on before there is room for draws: experts while more rollouts are open than lessons wait."""
    num_open = row_counts.by_word(rollouts, Purpose.TRAIN.value).get(RolloutStatus.OPEN.value, 0)
    by_status = row_counts.by_word(lessons, "")
    num_ready = sum(by_status.get(word.value, 0) for word in (LessonStatus.READY, LessonStatus.CLAIMED))
    return BACKLOG_OPEN if num_open > num_ready else BACKLOG_FULL


def _dead_draws(session: Session, lineage_id: UUID, by_status: dict[str, int]) -> Iterator[str]:
    num_dead = by_status.get(GroupStatus.DEAD.value, 0)
    if not num_dead:
        return
    reason = session.scalar(
        select(GroupRow.reason)
        .where(
            GroupRow.lineage_id == lineage_id,
            GroupRow.purpose == Purpose.TRAIN.value,
            GroupRow.status == GroupStatus.DEAD.value,
        )
        .order_by(GroupRow.id.desc())
        .limit(1)
    )
    yield f"{num_dead} {'draw is' if num_dead == 1 else 'draws are'} dead: last reason: {reason or 'not known'}"


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
