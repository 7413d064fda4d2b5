"""Taking a correction back: for a while after it was submitted, and only until a trainer has it.

The item is its person's again, with what they wrote as a draft; the answer is withdrawn and so is a lesson that has
nothing else to teach. What an update holds or used is not touched: it says which update that is.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerStatus, Feedback
from services.contracts.consultations import ConsultationStatus
from services.contracts.corrections import CorrectionStatus, DraftSave
from services.contracts.lessons import LessonStatus
from services.contracts.updates import UpdateStatus
from services.errors import Conflict
from services.store import consultations, corrections, drafts, updates
from services.store.models import (
    AnswerRow,
    ConsultationRow,
    CorrectionRow,
    DistributionRow,
    LessonAnswerRow,
    LessonRow,
    RolloutRow,
    UpdateLessonRow,
    UpdateRow,
)

WINDOW = timedelta(minutes=10)  # long enough to notice a slip, short enough that nobody counts on it


class TooLateToUndo(Conflict):
    """The correction cannot be taken back any more; nothing was changed."""

    hint = "Ask an operator to withdraw the answer; the ledger says which updates it shaped."


def until(session: Session, row: CorrectionRow) -> datetime | None:
    """Until when the correction may be taken back; None when it may not."""
    if row.status != CorrectionStatus.SUBMITTED.value or row.decided_at is None:
        return None
    end = row.decided_at + WINDOW
    now: datetime = session.scalars(select(func.now())).one()
    if now >= end:
        return None
    answer = _find_answer(session, row)
    return None if answer is None or _find_holder(session, row, answer) is not None else end


def take_back(session: Session, correction_id: UUID, person_id: UUID) -> CorrectionRow:
    """Give the item back to the person who decided it, as it was before, and withdraw what they said.

    A skipped item is claimed again. Errors: CorrectionNotFound (404), NotYours (409), TooLateToUndo (409) naming the
    update that has it, NotWaiting (409) for a skipped item whose question ended.
    """
    row = corrections.lock(session, correction_id)
    if row.person_id != person_id:
        raise corrections.NotYours(f"correction {correction_id} was not decided by you")
    if row.status != CorrectionStatus.SUBMITTED.value:
        return corrections.claim_one(session, correction_id, person_id)
    answer = _find_answer(session, row)
    if answer is None:
        raise TooLateToUndo(f"the answer of correction {correction_id} was withdrawn already")
    lessons = session.scalars(
        select(LessonRow)
        .join(LessonAnswerRow, LessonAnswerRow.lesson_id == LessonRow.id)
        .where(LessonAnswerRow.answer_id == answer.id)
        .order_by(LessonRow.id)
        .with_for_update(of=LessonRow)
        .execution_options(populate_existing=True)
    ).all()
    holder = _find_holder(session, row, answer)
    if holder is not None:
        raise TooLateToUndo(f"it is too late to take correction {correction_id} back: {holder}")
    past = session.scalars(select(CorrectionRow.decided_at + WINDOW <= func.now()).where(CorrectionRow.id == row.id))
    if past.one():
        raise TooLateToUndo(f"corrections can be taken back for {WINDOW.seconds // 60} minutes, which are over")
    _withdraw(session, answer, lessons)
    question = session.scalars(
        select(ConsultationRow).where(ConsultationRow.id == row.consultation_id).with_for_update()
    ).one()
    question.status = ConsultationStatus.WAITING.value
    question.settled_at = None
    question.deadline = func.now() + consultations.LATE_DEADLINE
    _put_back(session, row, answer)
    corrections.hold_only(session, row, person_id)
    return row


def _find_answer(session: Session, row: CorrectionRow) -> AnswerRow | None:
    return session.scalar(
        select(AnswerRow).where(
            AnswerRow.consultation_id == row.consultation_id, AnswerRow.status == AnswerStatus.CURRENT.value
        )
    )


def _find_holder(session: Session, row: CorrectionRow, answer: AnswerRow) -> str | None:
    """Which update has the answer, in words; None when none has.

    An update has it when it claimed or used one of its lessons, or used it as an example for another rollout of the
    same task. One that is being made over the same task may be showing it to the teacher right now.
    """
    used = updates.numbers_using(session, answer.id)
    claimed = session.scalars(
        select(UpdateRow.number)
        .join(UpdateLessonRow, UpdateLessonRow.update_id == UpdateRow.id)
        .join(LessonRow, LessonRow.id == UpdateLessonRow.lesson_id)
        .join(RolloutRow, RolloutRow.id == LessonRow.rollout_id)
        .where(
            UpdateRow.status == UpdateStatus.STARTED.value,
            UpdateRow.started_at >= row.decided_at,
            RolloutRow.task_id == select(RolloutRow.task_id).where(RolloutRow.id == row.rollout_id).scalar_subquery(),
        )
    ).all()
    taken = session.scalars(
        select(LessonRow.status)
        .join(LessonAnswerRow, LessonAnswerRow.lesson_id == LessonRow.id)
        .where(
            LessonAnswerRow.answer_id == answer.id,
            LessonRow.status.in_([LessonStatus.CLAIMED.value, LessonStatus.USED.value]),
        )
    ).all()
    if used:
        return f"update {used[0]} was trained on it"
    if claimed:
        return f"update {min(claimed)} is being trained on it"
    return "a trainer has it" if taken else None


def _withdraw(session: Session, answer: AnswerRow, lessons: Sequence[LessonRow]) -> None:
    answer.status = AnswerStatus.WITHDRAWN.value
    session.flush()
    for lesson in lessons:
        others = session.scalar(
            select(func.count())
            .select_from(LessonAnswerRow)
            .join(AnswerRow, AnswerRow.id == LessonAnswerRow.answer_id)
            .where(LessonAnswerRow.lesson_id == lesson.id, AnswerRow.status == AnswerStatus.CURRENT.value)
        )
        if not others:
            lesson.status = LessonStatus.WITHDRAWN.value
            lesson.reason = "the correction was taken back"
    session.flush()


def _put_back(session: Session, row: CorrectionRow, answer: AnswerRow) -> None:
    assert row.person_id is not None  # a submitted item has its person
    said = None if answer.feedback is None else Feedback.model_validate(answer.feedback)
    text = row.text if row.text is not None else session.get_one(RolloutRow, row.rollout_id).text
    drafts.put_back(
        session,
        row.id,
        row.person_id,
        DraftSave(version=0, text=text, comment=row.comment or "", spans=[] if said is None else said.spans),
    )
    # the words are the person's, who may want them erased after somebody else has decided the item
    answer.solution = answer.feedback = answer.evidence = answer.distribution_kind = None
    session.execute(delete(DistributionRow).where(DistributionRow.answer_id == answer.id))
    row.status = CorrectionStatus.CLAIMED.value
    row.lease_until = func.now() + corrections.LEASE
    row.verdict = row.text = row.comment = row.decided_at = row.held_until = None
    session.flush()
    session.refresh(row)
