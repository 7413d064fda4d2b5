"""Lessons: which may be trained on next, and who holds them.

A trainer takes whole groups (siblings share a baseline) and, beside them, late lessons one by one. A claim is a lease:
its owner must renew it, and only the owner's commit counts (see `services.store.ledger.updates`). What a trainer
needs to know about lessons that it claimed is in `services.store.ledger.lesson_facts`.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, Select, exists, func, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from services.contracts.corrections import CorrectionStatus
from services.contracts.lessons import Lesson, LessonStatus
from services.contracts.rollouts import GroupStatus, RolloutStatus
from services.contracts.updates import UpdateStatus
from services.store.ledger import policies
from services.store.loop import rollouts, trust
from services.store.tables.corrections import CorrectionRow
from services.store.tables.ledger import LessonAnswerRow, LessonRow, PolicyVersionRow, UpdateLessonRow, UpdateRow
from services.store.tables.loop import AnswerRow, ExpertRow, GroupRow, RolloutRow, TaskRow

MAX_ALONE: Final = 64
"""Rollouts from outside without siblings that one update takes: all that usually wait, and not hours of work."""


def set_aside_stale(session: Session, lineage_id: UUID, max_staleness: int) -> int:
    """Set aside waiting lessons that were sampled so many versions ago; returns how many. Only served versions count.

    Late lessons never age: they are read off the rollout itself. The same holds for a person's correction of a rollout
    that is stale by now, which goes on in a late lesson of its own.
    """
    stale = (
        select(LessonRow.id)
        .join(RolloutRow, RolloutRow.id == LessonRow.rollout_id)
        .join(
            PolicyVersionRow,
            (PolicyVersionRow.name == RolloutRow.policy_version) & (PolicyVersionRow.lineage_id == lineage_id),
        )
        .where(
            LessonRow.lineage_id == lineage_id,
            LessonRow.status == LessonStatus.READY.value,
            ~LessonRow.late,
            policies.is_stale(lineage_id, max_staleness),
        )
        .order_by(LessonRow.id)
        .with_for_update(of=LessonRow, skip_locked=True)
    )
    ids = session.scalars(stale).all()
    session.execute(
        update(LessonRow)
        .where(LessonRow.id.in_(ids), LessonRow.status == LessonStatus.READY.value)
        .values(
            status=LessonStatus.SET_ASIDE.value,
            reason=f"stale: sampled over {max_staleness} serving versions ago",
        )
    )
    _keep_corrections(session, ids)
    return len(ids)


def _keep_corrections(session: Session, lesson_ids: Sequence[UUID]) -> None:
    """Give the corrections in these lessons, which were set aside, lessons of their own."""
    kept = session.execute(
        select(RolloutRow, AnswerRow)
        .join(LessonRow, LessonRow.rollout_id == RolloutRow.id)
        .join(LessonAnswerRow, LessonAnswerRow.lesson_id == LessonRow.id)
        .join(AnswerRow, AnswerRow.id == LessonAnswerRow.answer_id)
        .join(ExpertRow, ExpertRow.id == AnswerRow.expert_id)
        .join(CorrectionRow, CorrectionRow.consultation_id == AnswerRow.consultation_id)
        .where(
            LessonRow.id.in_(lesson_ids),
            CorrectionRow.status == CorrectionStatus.SUBMITTED.value,
            trust.counts(AnswerRow, ExpertRow),
        )
        .order_by(RolloutRow.id)
    ).all()
    for rollout, answer in kept:
        rollouts.open_lesson(session, rollout, [answer], late=True)


def count_ready(session: Session, lineage_id: UUID) -> int:
    """How many rollouts could be claimed now with their groups, those that came alone among them."""
    ready = _claimable_groups(lineage_id).add_columns(GroupRow.size).subquery()
    return int(session.scalars(select(func.coalesce(func.sum(ready.c.size), 0))).one())


def count_ready_late(session: Session, lineage_id: UUID) -> int:
    """How many late lessons could be claimed now."""
    return session.scalars(
        select(func.count()).where(
            LessonRow.lineage_id == lineage_id,
            LessonRow.late,
            LessonRow.status == LessonStatus.READY.value,
            ~_is_held(LessonRow.rollout_id),
        )
    ).one()


def claim(
    session: Session, lineage_id: UUID, owner: UUID, *, num_rollouts: int, max_late: int, lease_seconds: float
) -> list[LessonRow]:
    """Take whole groups of about `num_rollouts` together (`fill`), up to `MAX_ALONE` rollouts that came from outside
    without siblings and up to `max_late` late lessons, under a lease.

    Groups are taken from each domain in turn, the oldest of every domain before the second of any, so that an update
    mixes domains wherever several wait; which domains go first is told by age, so none waits for ever. A group is
    whole when all its rollouts are drawn and settled. What another owner holds is passed over. The rows are ordered by
    group, place in the group and ordinal, late lessons last.
    """
    groups = [
        *_take_groups(session, _claimable_groups(lineage_id).where(~_IS_ALONE), num_rollouts),
        *_take_groups(session, _claimable_groups(lineage_id).where(_IS_ALONE), MAX_ALONE),
    ]
    late = session.scalars(
        select(LessonRow.id)
        .where(
            LessonRow.lineage_id == lineage_id,
            LessonRow.late,
            LessonRow.status == LessonStatus.READY.value,
            ~_is_held(LessonRow.rollout_id),
        )
        .order_by(LessonRow.id)
        .limit(max_late)
        .with_for_update(skip_locked=True)
    ).all()
    claimed = session.scalars(
        update(LessonRow)
        .where(
            LessonRow.lineage_id == lineage_id,
            LessonRow.status == LessonStatus.READY.value,
            (LessonRow.group_id.in_(groups) & ~LessonRow.late) | LessonRow.id.in_(late),
        )
        .values(status=LessonStatus.CLAIMED.value, owner=owner, lease_until=_lease(lease_seconds), reason=None)
        .returning(LessonRow)
        .execution_options(populate_existing=True)
    ).all()
    index = dict(
        session.execute(
            select(RolloutRow.id, RolloutRow.index_in_group).where(RolloutRow.id.in_([r.rollout_id for r in claimed]))
        ).all()
    )
    return sorted(claimed, key=lambda row: (row.late, row.group_id, index[row.rollout_id], row.ordinal))


def _take_groups(session: Session, groups: Select[UUID], num_rollouts: int) -> Sequence[UUID]:
    """Lock some of these groups, from each domain in turn, with about so many rollouts together."""
    in_domain = func.row_number().over(partition_by=TaskRow.domain, order_by=GroupRow.id)
    ranked = groups.join(TaskRow, TaskRow.id == GroupRow.task_id).add_columns(in_domain.label("turn")).subquery()
    waiting = session.execute(
        select(GroupRow.id, GroupRow.size)
        .join(ranked, ranked.c.id == GroupRow.id)
        .order_by(ranked.c.turn, GroupRow.id)
        .limit(num_rollouts)
        .with_for_update(of=GroupRow, skip_locked=True)
    ).all()
    return fill(waiting, num_rollouts)


def fill(waiting: Sequence[tuple[UUID, int]], num_rollouts: int) -> list[UUID]:
    """Of waiting groups, with their sizes, those that fit one after another, the first in any case; where they come to
    less than half, the first that did not fit as well."""
    taken, passed, room = list[UUID](), list[UUID](), num_rollouts
    for group_id, size in waiting:
        if size <= room or not taken:
            taken.append(group_id)
            room -= size
        else:
            passed.append(group_id)
    return taken + passed[: int(2 * room > num_rollouts)]


def renew(session: Session, owner: UUID, lease_seconds: float) -> int:
    """Extend the leases of everything the owner holds; how many lessons that is."""
    renewed = session.scalars(
        update(LessonRow)
        .where(LessonRow.owner == owner, LessonRow.status == LessonStatus.CLAIMED.value)
        .values(lease_until=_lease(lease_seconds))
        .returning(LessonRow.id)
    )
    return len(renewed.all())


def free_expired(session: Session) -> int:
    """Release lessons whose lease ran out, and abandon the updates they were claimed for; how many lessons."""
    expired = session.scalars(
        select(LessonRow.id)
        .where(LessonRow.status == LessonStatus.CLAIMED.value, LessonRow.lease_until < func.now())
        .order_by(LessonRow.id)
        .with_for_update(skip_locked=True)
    ).all()
    held_by = select(UpdateLessonRow.update_id).where(
        UpdateLessonRow.lesson_id.in_(expired), UpdateLessonRow.status == UpdateStatus.STARTED.value
    )
    abandoned = session.scalars(
        update(UpdateRow)
        .where(UpdateRow.id.in_(held_by), UpdateRow.status == UpdateStatus.STARTED.value)
        .values(status=UpdateStatus.ABANDONED.value, reason="the lease ran out")
        .returning(UpdateRow.id)
    ).all()
    session.execute(
        update(UpdateLessonRow)
        .where(UpdateLessonRow.update_id.in_(abandoned))
        .values(status=UpdateStatus.ABANDONED.value)
    )
    session.execute(
        update(LessonRow)
        .where(LessonRow.id.in_(expired))
        .values(status=LessonStatus.READY.value, owner=None, lease_until=None)
    )
    return len(expired)


def view(row: LessonRow) -> Lesson:
    """The contract of a row."""
    return Lesson.model_validate(row)


def _lease(seconds: float) -> ColumnElement[datetime]:
    return func.now() + timedelta(seconds=seconds)


def _is_held(rollout_id: ColumnElement[UUID] | InstrumentedAttribute[UUID]) -> ColumnElement[bool]:
    """A person who just corrected the rollout may still change their mind (`CorrectionSubmit.hold_seconds`)."""
    return exists().where(CorrectionRow.rollout_id == rollout_id, CorrectionRow.held_until > func.now())


_IS_ALONE: Final = GroupRow.external & (GroupRow.size == 1)


def _claimable_groups(lineage_id: UUID) -> Select[UUID]:
    in_group = LessonRow.group_id == GroupRow.id
    return select(GroupRow.id).where(
        GroupRow.lineage_id == lineage_id,
        GroupRow.status == GroupStatus.SAMPLED.value,
        exists().where(in_group, LessonRow.status == LessonStatus.READY.value, ~LessonRow.late),
        ~exists().where(in_group, LessonRow.status == LessonStatus.OPEN.value),
        ~exists().where(RolloutRow.group_id == GroupRow.id, RolloutRow.status == RolloutStatus.OPEN.value),
    )
