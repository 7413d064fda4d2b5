"""Why a submitted correction has not been trained on yet, in words for the person who wrote it.

A correction of an answer that is judged already has a lesson of its own at once; one that other experts are still
asked about waits a minute for them (`corrections.teach_waiting`). Such lessons never age, and the oldest train first.
"""

from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from services.contracts.lessons import LessonStatus
from services.contracts.rollouts import RolloutStatus
from services.contracts.updates import UpdateStatus
from services.store.loop import switches, trust
from services.store.tables.corrections import CorrectionRow
from services.store.tables.ledger import LessonAnswerRow, LessonRow, UpdateLessonRow, UpdateRow
from services.store.tables.loop import AnswerRow, ConsultationRow, ExpertRow, RolloutRow


def explain(session: Session, row: CorrectionRow) -> str:
    """The reason why a submitted correction waits or was set aside."""
    lesson = session.scalars(
        select(LessonRow)
        .join(LessonAnswerRow, LessonAnswerRow.lesson_id == LessonRow.id)
        .join(AnswerRow, AnswerRow.id == LessonAnswerRow.answer_id)
        .where(AnswerRow.rollout_id == row.rollout_id, AnswerRow.consultation_id == row.consultation_id)
        .order_by(LessonRow.id.desc())
        .limit(1)
    ).first()
    if lesson is None:
        return _explain_missing(session, row)
    if lesson.status == LessonStatus.CLAIMED.value:
        number = _find_update(session, lesson, UpdateStatus.STARTED)
        return "an update is being made with it" if number is None else f"update {number} is being made with it"
    if lesson.status == LessonStatus.USED.value:
        number = _find_update(session, lesson, UpdateStatus.APPLIED)
        return f"update {number} had it, and found nothing in it that the policy does not do already"
    if lesson.status not in (LessonStatus.OPEN.value, LessonStatus.READY.value):
        return f"{lesson.status.replace('_', ' ')}: {lesson.reason or 'no reason was written down'}"
    if row.held_until is not None and session.scalar(select(row.held_until > func.now())):
        return f"the trainer will not use it before {row.held_until:%H:%M:%S} UTC, so that it can be undone"
    if not switches.get(session, row.lineage_id).training:
        return "training is off"
    return _explain_turn(session, lesson)


def _explain_missing(session: Session, row: CorrectionRow) -> str:
    expert = session.scalars(
        select(ExpertRow)
        .join(ConsultationRow, ConsultationRow.expert_id == ExpertRow.id)
        .where(ConsultationRow.id == row.consultation_id)
    ).one()
    if not trust.may_train(expert):
        return f"answers of the expert {expert.name} do not train: it is {expert.status}, its weight {expert.weight:g}"
    rollout = session.get_one(RolloutRow, row.rollout_id)
    if rollout.status == RolloutStatus.SET_ASIDE.value:
        return f"its rollout was set aside: {rollout.reason}"
    if rollout.status == RolloutStatus.OPEN.value:
        return "other experts are still asked about the same answer; it waits a minute for them at most"
    return "its answer was withdrawn, or did not count when it was given"


def _explain_turn(session: Session, lesson: LessonRow) -> str:
    if not lesson.late:
        return "it trains together with its group, whose turn has not come"
    other = aliased(LessonRow)
    num_before = session.scalar(
        select(func.count()).where(
            other.lineage_id == lesson.lineage_id,
            other.late,
            other.status == LessonStatus.READY.value,
            other.id < lesson.id,
        )
    )
    return f"{num_before} others came before it; the oldest go into the next update"


def _find_update(session: Session, lesson: LessonRow, status: UpdateStatus) -> int | None:
    return session.scalar(
        select(UpdateRow.number)
        .join(UpdateLessonRow, UpdateLessonRow.update_id == UpdateRow.id)
        .where(UpdateLessonRow.lesson_id == lesson.id, UpdateRow.status == status.value)
    )
