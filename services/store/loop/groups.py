"""Groups: prompts to be drawn, and the leases of who draws them.

A group is the durable row behind a sampling message. A worker claims it, draws with no transaction open, and finishes
with its attempt number as the fence: a worker that lost its lease changes no row.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Final
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from services.contracts.lessons import LessonStatus
from services.contracts.rollouts import GroupStatus, Purpose, RolloutStatus, Sampling
from services.contracts.sources import ShownContext
from services.contracts.tasks import Message
from services.store.ledger import policies
from services.store.loop import contexts, tasks
from services.store.tables.ledger import LessonRow
from services.store.tables.loop import GroupRow, LoopRow, RolloutRow, TaskRow

LOOP_SHARE = 4  # one place in so many is the loop's while evaluations wait


@dataclass(frozen=True)
class Draw:
    """A claimed group: the draw to make, and the attempt that may finish it."""

    group_id: UUID
    lineage_id: UUID
    attempt: int
    task_id: UUID
    messages: tuple[Message, ...]
    size: int
    sampling: Sampling
    policy_version: str | None
    """The version to draw with: the one the group names, else the one that serves now; None where none does."""
    names_version: bool
    context: ShownContext | None
    """What the teacher is shown that draws the last `num_shown` rollouts; None where the policy alone draws."""
    num_shown: int


@dataclass(frozen=True)
class TeacherShare:
    """What a teacher draws of a group of `size`: its last `num_shown` rollouts, after the context."""

    context: ShownContext
    num_shown: int
    size: int


NO_SHARES: Final[Mapping[UUID, TeacherShare]] = MappingProxyType({})


def add(
    session: Session,
    task: TaskRow,
    *,
    purpose: Purpose,
    size: int,
    sampling: Sampling,
    evaluation_id: UUID | None = None,
    policy_version: str | None = None,
    context: ShownContext | None = None,
    num_shown: int = 0,
) -> GroupRow:
    """Plan one group, of which a teacher draws the last `num_shown` rollouts after its context; `take_due` says when
    its message may be sent."""
    if context is not None:
        context = contexts.prepare(session, context)
    row = GroupRow(
        lineage_id=task.lineage_id,
        task_id=task.id,
        split=task.split,
        purpose=purpose.value,
        evaluation_id=evaluation_id,
        policy_version=policy_version,
        size=size,
        sampling=_bound(sampling, task).model_dump(mode="json"),
        context=None if context is None else context.model_dump(mode="json"),
        num_shown=num_shown,
    )
    session.add(row)
    if purpose is Purpose.TRAIN:
        task.num_groups += 1
        task.num_rollouts += size
        task.drawn_at = func.clock_timestamp()
    session.flush()
    return row


def backlog(session: Session, lineage_id: UUID) -> int:
    """Train rollouts planned, open or waiting for the trainer: the count for back-pressure.

    Those from outside do not count: however many are sent, the policy's own go on being drawn.
    """
    planned = session.scalar(
        select(func.coalesce(func.sum(GroupRow.size), 0)).where(
            GroupRow.lineage_id == lineage_id,
            GroupRow.purpose == Purpose.TRAIN.value,
            GroupRow.status.in_([GroupStatus.PENDING.value, GroupStatus.ASKED.value]),
        )
    )
    unanswered = session.scalar(
        select(func.count())
        .select_from(RolloutRow)
        .join(GroupRow, GroupRow.id == RolloutRow.group_id)
        .where(
            RolloutRow.status == RolloutStatus.OPEN.value,
            RolloutRow.lineage_id == lineage_id,
            RolloutRow.purpose == Purpose.TRAIN.value,
            ~GroupRow.external,
        )
    )
    untrained = session.scalar(
        select(func.count())
        .select_from(LessonRow)
        .join(GroupRow, GroupRow.id == LessonRow.group_id)
        .where(
            LessonRow.lineage_id == lineage_id,
            LessonRow.status.in_([LessonStatus.OPEN.value, LessonStatus.READY.value, LessonStatus.CLAIMED.value]),
            ~LessonRow.late,
            ~GroupRow.external,
        )
    )
    return int(planned or 0) + int(unanswered or 0) + int(untrained or 0)


def _bound(sampling: Sampling, task: TaskRow) -> Sampling:
    """The sampling with no longer answers than the task wants."""
    most = tasks.find_most_tokens(task)
    if most is None or most >= sampling.max_new_tokens:
        return sampling
    return sampling.model_copy(update={"max_new_tokens": most})


def find_room(session: Session, lineage_id: UUID, *, max_backlog: int, size: int) -> int:
    """How many train groups of this size may be planned until the backlog is full."""
    return max(0, (max_backlog - backlog(session, lineage_id)) // size)


def plan(
    session: Session,
    chosen: Sequence[TaskRow],
    *,
    size: int,
    sampling: Sampling,
    seed: int,
    shares: Mapping[UUID, TeacherShare] = NO_SHARES,
) -> list[GroupRow]:
    """Plan the next train group of each of these tasks: of `size`, or as the share says that its teacher draws."""
    planned = []
    for task in chosen:
        share = shares.get(task.id)
        row = add(
            session,
            task,
            purpose=Purpose.TRAIN,
            size=size if share is None else share.size,
            sampling=sampling.model_copy(update={"seed": _seed(seed, task)}),
            context=None if share is None else share.context,
            num_shown=0 if share is None else share.num_shown,
        )
        planned.append(row)
    return planned


def _seed(seed: int, task: TaskRow) -> int:
    """A seed of its own for every draw of every task, the same in every run with the same seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{task.key}:{task.num_groups}".encode()).digest()[:4]) >> 1


def claim(session: Session, ids: Sequence[UUID], lease_seconds: float) -> list[Draw]:
    """Lease the still pending ones of these groups to this worker."""
    rows = session.scalars(
        select(GroupRow)
        .where(GroupRow.id.in_(ids), GroupRow.status == GroupStatus.PENDING.value, GroupRow.not_before <= func.now())
        .order_by(GroupRow.id)
        .with_for_update(skip_locked=True)
    ).all()
    draws = []
    serving = {lineage_id: policies.serving(session, lineage_id) for lineage_id in {row.lineage_id for row in rows}}
    for row in rows:
        row.status = GroupStatus.ASKED.value
        row.attempts += 1
        row.lease_until = func.now() + timedelta(seconds=lease_seconds)
        task = tasks.get(session, row.task_id)
        serves = serving[row.lineage_id]
        draws.append(
            Draw(
                group_id=row.id,
                lineage_id=row.lineage_id,
                attempt=row.attempts,
                task_id=task.id,
                messages=tuple(Message.model_validate(m) for m in task.messages),
                size=row.size,
                sampling=Sampling.model_validate(row.sampling),
                policy_version=row.policy_version or (None if serves is None else serves.name),
                names_version=row.policy_version is not None,
                context=_read_context(session, row),
                num_shown=row.num_shown,
            )
        )
    return draws


def _read_context(session: Session, row: GroupRow) -> ShownContext | None:
    """What the group's teacher is shown: of a roll-in no words where an answer behind them does not count any more."""
    if row.context is None:
        return None
    context = ShownContext.model_validate(row.context)
    if context.measurement_id is not None or contexts.still_counts(session, context):
        return context
    return context.model_copy(update={"messages": []})


def finish(
    session: Session, draw: Draw, policy_version: str, *, num_shown: int | None = None, reason: str | None = None
) -> GroupRow | None:
    """Mark the group sampled, if this attempt still holds it; None when another worker took over.

    num_shown: how many rollouts its teacher drew, if not as many as planned, and the reason why.
    """
    return session.scalar(
        update(GroupRow)
        .where(
            GroupRow.id == draw.group_id,
            GroupRow.status == GroupStatus.ASKED.value,
            GroupRow.attempts == draw.attempt,
        )
        .values(
            status=GroupStatus.SAMPLED.value,
            policy_version=policy_version,
            num_shown=draw.num_shown if num_shown is None else num_shown,
            lease_until=None,
            reason=None if reason is None else reason[:2000],
        )
        .returning(GroupRow)
    )


def release(session: Session, draw: Draw, reason: str, *, retry_after: float, counts: bool, max_attempts: int) -> None:
    """Give a draw back for another try; after `max_attempts` failures that count it is dead, the reason kept."""
    row = session.scalar(
        select(GroupRow)
        .where(
            GroupRow.id == draw.group_id,
            GroupRow.status == GroupStatus.ASKED.value,
            GroupRow.attempts == draw.attempt,
        )
        .with_for_update()
    )
    if row is None:
        return
    row.failures += int(counts)
    row.reason = reason[:2000]
    row.lease_until = None
    if row.failures >= max_attempts:
        row.status = GroupStatus.DEAD.value
        return
    row.status = GroupStatus.PENDING.value
    row.sent_at = None
    row.not_before = func.now() + timedelta(seconds=retry_after)


def wanted_versions(session: Session, lineage_id: UUID) -> set[str]:
    """The policy versions that planned draws name."""
    names = select(GroupRow.policy_version).where(
        GroupRow.lineage_id == lineage_id,
        GroupRow.status.in_([GroupStatus.PENDING.value, GroupStatus.ASKED.value]),
        GroupRow.policy_version.is_not(None),
    )
    return {str(name) for name in session.scalars(names.distinct())}


def take_due(session: Session, *, max_in_flight: int, resend_seconds: float) -> list[UUID]:
    """Free the groups of dead workers, then return those to be sent now, so that at most `max_in_flight` are under way.

    None of a lineage whose loop is blocked, and no train rollouts while it is paused; with its sampling alone switched
    off, planned groups are still drawn. Evaluations go first, because a person waits for the result, but leave the loop
    a share of the places.
    """
    session.execute(
        update(GroupRow)
        .where(
            GroupRow.id.in_(
                select(GroupRow.id)
                .where(GroupRow.status == GroupStatus.ASKED.value, GroupRow.lease_until < func.now())
                .with_for_update(skip_locked=True)
            )
        )
        .values(status=GroupStatus.PENDING.value, lease_until=None, sent_at=None, reason="the worker's lease ran out")
    )
    fresh = GroupRow.sent_at >= func.now() - timedelta(seconds=resend_seconds)
    pending = GroupRow.status == GroupStatus.PENDING.value
    is_train = GroupRow.purpose == Purpose.TRAIN.value
    under_way = dict(
        session.execute(
            select(is_train, func.count())
            .where((GroupRow.status == GroupStatus.ASKED.value) | (pending & fresh))
            .group_by(is_train)
        ).all()
    )
    room = max_in_flight - sum(under_way.values())
    if room <= 0:
        return []
    lineages = select(LoopRow.lineage_id).where(LoopRow.blocked_by.is_(None))
    waiting = select(GroupRow.id).where(pending, GroupRow.not_before <= func.now(), GroupRow.sent_at.is_(None) | ~fresh)
    asked_for = waiting.where(~is_train, GroupRow.lineage_id.in_(lineages))
    of_loop = waiting.where(is_train, GroupRow.lineage_id.in_(lineages.where(LoopRow.sampling | LoopRow.training)))
    others, trains = (
        session.scalars(query.order_by(GroupRow.id).limit(room).with_for_update(skip_locked=True)).all()
        for query in (asked_for, of_loop)
    )
    kept = min(max(max_in_flight // LOOP_SHARE - under_way.get(True, 0), 0), len(trains), room)
    due = [*others[: room - kept], *trains][:room]
    session.execute(update(GroupRow).where(GroupRow.id.in_(due)).values(sent_at=func.now()))
    return due
