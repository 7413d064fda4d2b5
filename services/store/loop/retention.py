"""Deletes old rows that no other row needs, a bounded batch at a time.

Deleted are whole groups of rollouts, with their consultations, answers, distributions and lessons, once they are old,
no part of them is under way, and none of these refers to them: an update of the ledger (applied, undone or abandoned)
that used them or showed them to the teacher of others, an evaluation, a decided correction, a measurement that is under
way. Whole groups, since siblings share a baseline. Also the single tries behind settled consultations.

Kept are tasks, experts, persons, updates, versions, evaluations, what measurements found, and everything an update
used, so that `explain` gives the same account of every update.

Groups that stay are met again by every walk: a walk reads on from its mark, and begins anew when it has come to rows
that are young.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, Delete, delete, exists, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from services.contracts.consultations import ConsultationStatus
from services.contracts.corrections import CorrectionStatus
from services.contracts.lessons import LessonStatus
from services.contracts.measurements import MeasurementStatus
from services.contracts.policies import PolicyStatus
from services.contracts.rollouts import GroupStatus, RolloutStatus
from services.store.ledger import policies
from services.store.tables.base import LineageRow
from services.store.tables.corrections import CorrectionRow, DraftRow
from services.store.tables.housekeeping import RetentionRow
from services.store.tables.ledger import LessonAnswerRow, LessonRow, PolicyVersionRow, UpdateLessonRow
from services.store.tables.loop import AnswerRow, AttemptRow, ConsultationRow, DistributionRow, GroupRow, RolloutRow
from services.store.tables.teaching import MeasuredTaskRow, MeasurementRow, ScoutRow

UNUSED: Final = "unused_groups"
ATTEMPTS: Final = "attempts"
START: Final = UUID(int=0)


@dataclass(frozen=True)
class Walked:
    """One batch: rows deleted. at_end: the walk came to young rows and begins anew."""

    num_deleted: int
    at_end: bool


def first_id_at(session: Session, days: float) -> UUID:
    """The smallest id that a row made `days` ago can have: ids begin with their time (UUIDv7)."""
    now: datetime = session.scalar(select(func.now()))  # type: ignore[assignment]
    milliseconds = int((now - timedelta(days=days)).timestamp() * 1000)
    return UUID(int=max(0, milliseconds) << 80)


def delete_unused_groups(session: Session, days: float, limit: int) -> Walked:
    """Walk one batch of groups older than `days` and delete those that no row refers to."""
    mark = _mark(session, UNUSED)
    ids = session.scalars(
        select(GroupRow.id)
        .where(GroupRow.id > mark, GroupRow.id < first_id_at(session, days))
        .order_by(GroupRow.id)
        .limit(limit)
    ).all()
    if not ids:
        _set_mark(session, UNUSED, START, 0)
        return Walked(0, at_end=True)
    gone = session.scalars(
        select(GroupRow.id)
        .where(GroupRow.id.in_(ids), GroupRow.evaluation_id.is_(None), ~_is_under_way(), ~_is_referred_to())
        .order_by(GroupRow.id)
        .with_for_update(skip_locked=True)
    ).all()
    if gone:
        for statement in deletions(gone):
            session.execute(statement, execution_options={"synchronize_session": False})
    _set_mark(session, UNUSED, ids[-1], len(gone))
    return Walked(len(gone), at_end=len(ids) < limit)


def _is_under_way() -> ColumnElement[bool]:
    busy_lessons = (LessonStatus.OPEN.value, LessonStatus.READY.value, LessonStatus.CLAIMED.value)
    busy = (
        ConsultationStatus.PENDING.value,
        ConsultationStatus.ASKED.value,
        ConsultationStatus.WAITING.value,
    )
    return (
        GroupRow.status.in_([GroupStatus.PENDING.value, GroupStatus.ASKED.value])
        | exists().where(RolloutRow.group_id == GroupRow.id, RolloutRow.status == RolloutStatus.OPEN.value)
        | exists().where(LessonRow.group_id == GroupRow.id, LessonRow.status.in_(busy_lessons))
        | exists().where(
            RolloutRow.group_id == GroupRow.id,
            ConsultationRow.rollout_id == RolloutRow.id,
            ConsultationRow.status.in_(busy),
        )
    )


def _is_referred_to() -> ColumnElement[bool]:
    decided = (CorrectionStatus.SUBMITTED.value, CorrectionStatus.CLAIMED.value)
    made_of_it = func.jsonb_build_array(func.jsonb_build_object("answers", func.jsonb_build_array(AnswerRow.id)))
    return (
        exists().where(LessonRow.group_id == GroupRow.id, UpdateLessonRow.lesson_id == LessonRow.id)
        | exists().where(
            RolloutRow.group_id == GroupRow.id,
            CorrectionRow.rollout_id == RolloutRow.id,
            CorrectionRow.status.in_(decided) | CorrectionRow.decided_at.is_not(None),
        )
        | exists().where(  # shown to the teacher of another group
            RolloutRow.group_id == GroupRow.id,
            AnswerRow.rollout_id == RolloutRow.id,
            select(UpdateLessonRow.lesson_id)
            .where(UpdateLessonRow.terms.op("@>")(made_of_it))  # by their index, answer by answer
            .correlate(AnswerRow)
            .exists(),
        )
        | exists().where(
            _draws_for(MeasuredTaskRow, GroupRow.id),
            MeasurementRow.id == MeasuredTaskRow.measurement_id,
            MeasurementRow.status == MeasurementStatus.MEASURING.value,
        )
    )


def _draws_for(
    task: type[MeasuredTaskRow], group_id: InstrumentedAttribute[UUID] | ColumnElement[UUID]
) -> ColumnElement[bool]:
    """Whether the group is one of the arms of this task of a measurement."""
    return or_(task.student_group_id == group_id, task.teacher_group_id == group_id, task.control_group_id == group_id)


def deletions(ids: Sequence[UUID]) -> tuple[Delete, ...]:
    """What deletes these groups with all their rows, children first."""
    rollouts = select(RolloutRow.id).where(RolloutRow.group_id.in_(ids)).scalar_subquery()
    asked = select(ConsultationRow.id).where(ConsultationRow.rollout_id.in_(rollouts)).scalar_subquery()
    said = select(AnswerRow.id).where(AnswerRow.rollout_id.in_(rollouts)).scalar_subquery()
    lessons = select(LessonRow.id).where(LessonRow.group_id.in_(ids)).scalar_subquery()
    items = select(CorrectionRow.id).where(CorrectionRow.rollout_id.in_(rollouts)).scalar_subquery()
    return (
        delete(MeasuredTaskRow).where(
            or_(
                MeasuredTaskRow.student_group_id.in_(ids),
                MeasuredTaskRow.teacher_group_id.in_(ids),
                MeasuredTaskRow.control_group_id.in_(ids),
            )
        ),
        delete(ScoutRow).where(ScoutRow.group_id.in_(ids)),
        delete(AttemptRow).where(AttemptRow.consultation_id.in_(asked)),
        delete(DistributionRow).where(DistributionRow.answer_id.in_(said)),
        delete(LessonAnswerRow).where(LessonAnswerRow.lesson_id.in_(lessons)),
        delete(LessonRow).where(LessonRow.group_id.in_(ids)),
        delete(DraftRow).where(DraftRow.correction_id.in_(items)),
        delete(CorrectionRow).where(CorrectionRow.rollout_id.in_(rollouts)),
        delete(AnswerRow).where(AnswerRow.rollout_id.in_(rollouts)),
        delete(ConsultationRow).where(ConsultationRow.rollout_id.in_(rollouts)),
        delete(RolloutRow).where(RolloutRow.group_id.in_(ids)),
        delete(GroupRow).where(GroupRow.id.in_(ids)),
    )


def delete_attempts(session: Session, days: float, limit: int) -> Walked:
    """Delete one batch of the tries behind consultations that are older than `days` and settled."""
    mark = _mark(session, ATTEMPTS)
    rows = session.execute(
        select(AttemptRow.consultation_id, AttemptRow.number)
        .where(AttemptRow.consultation_id > mark, AttemptRow.consultation_id < first_id_at(session, days))
        .order_by(AttemptRow.consultation_id, AttemptRow.number)
        .limit(limit)
    ).all()
    if not rows:
        _set_mark(session, ATTEMPTS, START, 0)
        return Walked(0, at_end=True)
    ids = {row.consultation_id for row in rows}
    settled = select(ConsultationRow.id).where(ConsultationRow.id.in_(ids), ConsultationRow.settled_at.is_not(None))
    gone = session.scalars(
        delete(AttemptRow)
        .where(AttemptRow.consultation_id.in_(settled.scalar_subquery()))
        .returning(AttemptRow.consultation_id),
        execution_options={"synchronize_session": False},
    ).all()
    _set_mark(session, ATTEMPTS, max(ids), len(gone))
    return Walked(len(gone), at_end=len(rows) < limit)


def retire_old_weights(session: Session, days: float, max_staleness: int) -> int:
    """Mark the versions whose weights are no longer needed, so that they cannot serve again; returns how many.

    Old means superseded, rejected or withdrawn, and made more than `days` ago. Kept are those whose rollouts may still
    be trained on by `max_staleness`, and those that planned draws name.
    """
    lineages = session.scalars(select(LineageRow.id)).all()
    return sum(_retire_of_lineage(session, lineage_id, days, max_staleness) for lineage_id in lineages)


def _retire_of_lineage(session: Session, lineage_id: UUID, days: float, max_staleness: int) -> int:
    over = (PolicyStatus.SUPERSEDED.value, PolicyStatus.REJECTED.value, PolicyStatus.WITHDRAWN.value)
    is_wanted = exists().where(
        GroupRow.lineage_id == PolicyVersionRow.lineage_id,
        GroupRow.policy_version == PolicyVersionRow.name,
        GroupRow.status.in_([GroupStatus.PENDING.value, GroupStatus.ASKED.value]),
    )
    retired = session.scalars(
        update(PolicyVersionRow)
        .where(
            PolicyVersionRow.status.in_(over),
            PolicyVersionRow.artifact_sha256.is_not(None),
            PolicyVersionRow.weights_deleted_at.is_(None),
            PolicyVersionRow.created_at < func.now() - timedelta(days=days),
            policies.is_stale(lineage_id, max_staleness),
            ~is_wanted,
        )
        .values(weights_deleted_at=func.now())
        .returning(PolicyVersionRow.id),
        execution_options={"synchronize_session": False},
    ).all()
    return len(retired)


def choose_deletable(session: Session, addresses: Collection[str]) -> list[str]:
    """Those of these weights that only versions marked by `retire_old_weights` name; never some that no row names."""
    kept = aliased(PolicyVersionRow)
    return sorted(
        str(address)
        for address in session.scalars(
            select(PolicyVersionRow.artifact_sha256)
            .where(
                PolicyVersionRow.artifact_sha256.in_(addresses),
                PolicyVersionRow.weights_deleted_at.is_not(None),
                ~exists().where(
                    kept.artifact_sha256 == PolicyVersionRow.artifact_sha256, kept.weights_deleted_at.is_(None)
                ),
            )
            .distinct()
        )
    )


def _mark(session: Session, name: str) -> UUID:
    return session.scalar(select(RetentionRow.mark).where(RetentionRow.name == name)) or START


def _set_mark(session: Session, name: str, mark: UUID, num_deleted: int) -> None:
    statement = insert(RetentionRow).values(name=name, mark=mark, num_deleted=num_deleted)
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["name"],
            set_={
                "mark": mark,
                "num_deleted": RetentionRow.num_deleted + num_deleted,
                "walked_at": func.now(),
            },
        )
    )
