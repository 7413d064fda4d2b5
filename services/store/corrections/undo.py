"""Taking a correction back: for a while after it was submitted, and only until a trainer has it.

The person holds the item again, with their words as a draft. The answer is withdrawn, and with it the answers of
experts that were shown it and lessons left without an answer. A correction that an update holds or used stays: the
refusal names that update.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session, aliased

from services.contracts.answers import AnswerStatus, Feedback
from services.contracts.consultations import ConsultationStatus
from services.contracts.corrections import CorrectionStatus, DraftSave
from services.contracts.lessons import LessonStatus
from services.contracts.updates import UpdateStatus
from services.runtime.errors import Conflict
from services.store.core.id_lists import Ids, listed
from services.store.corrections import claims, corrections, drafts, shown
from services.store.ledger import updates
from services.store.loop import contexts, rollouts, settling
from services.store.tables.corrections import CorrectionRow
from services.store.tables.ledger import LessonAnswerRow, LessonRow, UpdateLessonRow, UpdateRow
from services.store.tables.loop import AnswerRow, ConsultationRow, RolloutRow

WINDOW = timedelta(minutes=10)  # long enough to notice a slip, too short to plan with
REASON = "the correction was taken back"


class TooLateToUndo(Conflict):
    """The correction can no longer be taken back; it stays as it is."""

    hint = (
        "Ask an operator to withdraw the answer (`preceptor answers withdraw`); the ledger says which updates used it."
    )


def until(session: Session, rows: Sequence[CorrectionRow]) -> dict[UUID, datetime]:
    """Until when each of these corrections may be taken back; of those that may not, no entry."""
    now: datetime = session.scalars(select(func.now())).one()
    ends = {
        row.id: row.decided_at + WINDOW
        for row in rows
        if row.status == CorrectionStatus.SUBMITTED.value and row.decided_at is not None
    }
    recent = [row for row in rows if row.id in ends and now < ends[row.id]]
    if not recent:
        return {}
    answers = _find_answers(session, recent)
    holders = _find_holders(session, recent, answers)
    return {row.id: ends[row.id] for row in recent if answers[row.id] and row.id not in holders}


def take_back(session: Session, correction_id: UUID, person_id: UUID) -> CorrectionRow:
    """Give the item back to the person who decided it, as it was before, and withdraw their answer.

    A skipped item is claimed again. Errors: CorrectionNotFound (404), NotYours (409), TooLateToUndo (409) naming the
    update that has it, NotWaiting (409) for a skipped item whose consultation ended.
    """
    row = corrections.lock(session, correction_id)
    if row.person_id != person_id:
        raise corrections.NotYours(f"correction {correction_id} was not decided by you")
    if row.status != CorrectionStatus.SUBMITTED.value:
        return claims.claim_one(session, correction_id, person_id)
    answers = _find_answers(session, [row])[row.id]
    if not answers:
        raise TooLateToUndo(f"the answer of correction {correction_id} was withdrawn already")
    with_them = select(LessonAnswerRow.lesson_id).where(LessonAnswerRow.answer_id.in_([one.id for one in answers]))
    lessons = session.scalars(
        select(LessonRow)
        .where(LessonRow.id.in_(with_them))
        .order_by(LessonRow.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).all()
    holders = _find_holders(session, [row], {row.id: answers})
    if holders:
        raise TooLateToUndo(f"it is too late to take correction {correction_id} back: {holders[row.id]}")
    past = session.scalars(select(CorrectionRow.decided_at + WINDOW <= func.now()).where(CorrectionRow.id == row.id))
    if past.one():
        raise TooLateToUndo(f"corrections can be taken back for {WINDOW.seconds // 60} minutes, which are over")
    draft = _as_draft(session, row, answers[0])
    # the words are the person's, who may want them erased after another person has decided the item
    gone = listed([answer.id for answer in answers])
    shown.withdraw_answers(session, gone)
    _withdraw_empty(session, lessons)
    _withdraw_drawn(session, gone)
    consultation = session.scalars(
        select(ConsultationRow).where(ConsultationRow.id == row.consultation_id).with_for_update()
    ).one()
    consultation.status = ConsultationStatus.WAITING.value
    consultation.settled_at = None
    consultation.deadline = func.now() + settling.LATE_DEADLINE
    session.flush()
    shown.take_out(session, select(RolloutRow.id).where(RolloutRow.id == row.rollout_id), REASON)
    shown.forget_effects(session, select(CorrectionRow.id).where(CorrectionRow.id == row.id), REASON)
    rollouts.judge_again(session, session.get_one(RolloutRow, row.rollout_id, populate_existing=True))
    _put_back(session, row, draft)
    claims.hold_only(session, row, person_id)
    return row


def _find_answers(session: Session, rows: Sequence[CorrectionRow]) -> dict[UUID, list[AnswerRow]]:
    """By correction the person's answer, then those of experts that were shown it; withdrawn ones are left out."""
    of_rollouts = listed([row.rollout_id for row in rows])
    shown_them = select(ConsultationRow.id).where(shown.was_shown(of_rollouts))
    own = [row.consultation_id for row in rows]
    said = session.scalars(
        select(AnswerRow)
        .where(
            AnswerRow.rollout_id.in_(of_rollouts),
            AnswerRow.status == AnswerStatus.CURRENT.value,
            or_(AnswerRow.consultation_id.in_(own), AnswerRow.consultation_id.in_(shown_them)),
        )
        .order_by(AnswerRow.id)
    ).all()
    found = {}
    for row in rows:
        its = [answer for answer in said if answer.consultation_id == row.consultation_id]
        made = [answer for answer in said if answer.rollout_id == row.rollout_id and answer.consultation_id not in own]
        found[row.id] = its + made if its else []
    return found


def _find_holders(
    session: Session, rows: Sequence[CorrectionRow], answers: Mapping[UUID, Sequence[AnswerRow]]
) -> dict[UUID, str]:
    """Which update has an answer of these corrections, in words; of one that none has, no entry.

    An update has it when it claimed or used one of its lessons, or used it as an example for another rollout of the
    same task. One that is being made over the same task may be showing it to the teacher right now.
    """
    ids = [answer.id for row in rows for answer in answers[row.id]]
    used = updates.numbers_using(session, ids)
    its_rollout, of_task = aliased(RolloutRow), aliased(RolloutRow)
    being_made = session.execute(
        select(CorrectionRow.id, func.min(UpdateRow.number))
        .join(its_rollout, its_rollout.id == CorrectionRow.rollout_id)
        .join(of_task, of_task.task_id == its_rollout.task_id)
        .join(LessonRow, LessonRow.rollout_id == of_task.id)
        .join(UpdateLessonRow, UpdateLessonRow.lesson_id == LessonRow.id)
        .join(UpdateRow, UpdateRow.id == UpdateLessonRow.update_id)
        .where(
            CorrectionRow.id.in_([row.id for row in rows]),
            UpdateRow.status == UpdateStatus.STARTED.value,
            UpdateRow.started_at >= CorrectionRow.decided_at,
        )
        .group_by(CorrectionRow.id)
    ).all()
    claimed = dict(being_made)
    taken = set(
        session.scalars(
            select(LessonAnswerRow.answer_id)
            .join(LessonRow, LessonRow.id == LessonAnswerRow.lesson_id)
            .where(
                LessonAnswerRow.answer_id.in_(ids),
                LessonRow.status.in_([LessonStatus.CLAIMED.value, LessonStatus.USED.value]),
            )
        )
    )
    found = {}
    for row in rows:
        its = [answer.id for answer in answers[row.id]]
        numbers = [number for answer_id in its for number in used.get(answer_id, ())]
        if numbers:
            found[row.id] = f"update {min(numbers)} was trained on it"
        elif row.id in claimed:
            found[row.id] = f"update {claimed[row.id]} is being trained on it"
        elif not taken.isdisjoint(its):
            found[row.id] = "a trainer has it"
    return found


def _withdraw_empty(session: Session, lessons: Sequence[LessonRow]) -> None:
    for lesson in lessons:
        others = session.scalar(
            select(func.count())
            .select_from(LessonAnswerRow)
            .join(AnswerRow, AnswerRow.id == LessonAnswerRow.answer_id)
            .where(LessonAnswerRow.lesson_id == lesson.id, AnswerRow.status == AnswerStatus.CURRENT.value)
        )
        if not others:
            lesson.status = LessonStatus.WITHDRAWN.value
            lesson.reason = REASON
    session.flush()


def _withdraw_drawn(session: Session, gone: Ids) -> None:
    """Withdraw the lessons of what teachers drew that were shown these answers."""
    session.execute(
        update(LessonRow)
        .where(
            LessonRow.rollout_id.in_(contexts.shown_in(contexts.made_of(gone))),
            LessonRow.status.in_([LessonStatus.READY.value, LessonStatus.CLAIMED.value]),
        )
        .values(status=LessonStatus.WITHDRAWN.value, reason=REASON, owner=None, lease_until=None)
    )


def _as_draft(session: Session, row: CorrectionRow, answer: AnswerRow) -> DraftSave:
    said = None if answer.feedback is None else Feedback.model_validate(answer.feedback)
    text = row.text if row.text is not None else session.get_one(RolloutRow, row.rollout_id).text
    return DraftSave(version=0, text=text, comment=row.comment or "", spans=[] if said is None else said.spans)


def _put_back(session: Session, row: CorrectionRow, draft: DraftSave) -> None:
    assert row.person_id is not None  # a submitted item has its person
    drafts.put_back(session, row.id, row.person_id, draft)
    row.status = CorrectionStatus.CLAIMED.value
    row.lease_until = func.now() + claims.LEASE
    row.verdict = row.text = row.comment = row.decided_at = row.held_until = None
    session.flush()
    session.refresh(row)
