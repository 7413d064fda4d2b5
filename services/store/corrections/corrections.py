"""Corrections: the human queue, from the item a person is given to the updates that used their answer.

An item belongs to a waiting consultation of the human expert. Who works on it is in
`services.store.corrections.claims`; submitting it records the answer and opens a late lesson in the same transaction.
Locks are taken rollout first, then correction, as everywhere.
"""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import delete, exists, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from services.contracts.answers import Feedback, check_against_rollout
from services.contracts.base import check_change
from services.contracts.consultations import CONSULTATION_CHANGES, SETTLED, ConsultationStatus
from services.contracts.corrections import (
    CORRECTION_CHANGES,
    Correction,
    CorrectionSkip,
    CorrectionStatus,
    CorrectionSubmit,
)
from services.contracts.edits import keep_unmeant
from services.contracts.experts import Ask, ConsultResult, Descriptor, ExpertStatus
from services.contracts.ids import new_id
from services.contracts.rollouts import Purpose, RolloutStatus
from services.contracts.tasks import Split
from services.runtime.errors import Conflict, InvalidInput, NotFound
from services.store.corrections import ranking
from services.store.loop import consultations, rollouts, settling, trust
from services.store.tables.corrections import CorrectionRow, DraftRow
from services.store.tables.ledger import LessonAnswerRow
from services.store.tables.loop import AnswerRow, AttemptRow, ConsultationRow, ExpertRow, RolloutRow

PATIENCE = timedelta(minutes=1)  # most other answers about the same rollout come within it
MOST_AT_ONCE = 64  # lessons a sweep opens; the next one goes on
ASKED_FOR = 1.0  # the priority of an item that a person asked for; the queue's own have 0


class CorrectionNotFound(NotFound):
    """No correction with this id."""


class NotYours(Conflict):
    """The item is not held by this person: never claimed, or its lease ran out and someone else has it."""

    hint = "Claim an item with POST /v1/corrections/claim and submit that one."


class NothingChanged(InvalidInput):
    """A correction without a change would teach that the answer is both wrong and right."""

    hint = "Submit it with the verdict `fine`, or skip it."


class NoHumanExpert(Conflict):
    """No human expert is registered, so there is no queue to put an item in."""

    hint = "The start of the stack registers it; activate it with POST /v1/experts/{id}/activate if it is paused."


class NotCorrectable(InvalidInput):
    """Only train rollouts that were not set aside are corrected: a correction is there to train on."""


def get(session: Session, correction_id: UUID) -> CorrectionRow:
    """The item. Errors: CorrectionNotFound."""
    row = session.get(CorrectionRow, correction_id)
    if row is None:
        raise CorrectionNotFound(f"no correction {correction_id}")
    return row


def view(row: CorrectionRow) -> Correction:
    """The contract of a row."""
    return Correction.model_validate(row)


def open_item(session: Session, consultation_id: UUID, *, priority: float = 0.0) -> CorrectionRow:
    """The item of a consultation to the human expert, put in the queue if it is not there yet.

    Errors: ConsultationNotFound (404), NotCorrectable (422).
    """
    consultation = consultations.get(session, consultation_id)
    rollout = session.get_one(RolloutRow, consultation.rollout_id, with_for_update=True)  # so that no answer is missed
    _check_correctable(rollout)
    session.execute(
        insert(CorrectionRow)
        .values(
            id=new_id(),
            lineage_id=rollout.lineage_id,
            consultation_id=consultation.id,
            rollout_id=rollout.id,
            split=rollout.split,
            status=CorrectionStatus.OPEN.value,
            priority=priority,
            disagreement=ranking.read_disagreement(rollout.id),
            uncertainty=ranking.measure_uncertainty(rollout),
        )
        .on_conflict_do_nothing(index_elements=["consultation_id"])
    )
    row = session.scalars(
        select(CorrectionRow).where(CorrectionRow.consultation_id == consultation.id).with_for_update()
    ).one()
    if row.status == CorrectionStatus.WITHDRAWN.value and row.verdict is None and consultation.status not in SETTLED:
        _offer(session, row)  # asked once more
    return row


def _check_correctable(rollout: RolloutRow) -> None:
    if rollout.split != Split.TRAIN.value:
        raise NotCorrectable(f"rollout {rollout.id} answers a {rollout.split} task; only train tasks are corrected")
    if rollout.purpose != Purpose.TRAIN.value:
        raise NotCorrectable(f"rollout {rollout.id} was drawn for {rollout.purpose}, not to train on")
    if rollout.shown:
        raise NotCorrectable(f"rollout {rollout.id} was drawn by a teacher; correct the policy's own answers")


def ask_for(session: Session, rollout_id: UUID) -> CorrectionRow:
    """The item for this rollout, ahead of the queue's own; asking again finds the one that is there.

    Errors: RolloutNotFound (404), NotCorrectable (422), NoHumanExpert (409), IllegalStatusChange (409) when the human
    expert already declined this rollout.
    """
    rollout = rollouts.get(session, rollout_id)
    session.refresh(rollout, with_for_update=True)
    _check_correctable(rollout)
    if rollout.status == RolloutStatus.SET_ASIDE.value:
        raise NotCorrectable(f"rollout {rollout.id} was set aside: {rollout.reason}")
    expert = session.scalar(
        select(ExpertRow).where(
            ExpertRow.lineage_id == rollout.lineage_id,
            trust.is_people(ExpertRow),
            ExpertRow.status.in_([ExpertStatus.ACTIVE.value, ExpertStatus.PROBATION.value]),
        )
    )
    if expert is None:
        raise NoHumanExpert("no human expert is active")
    consultation = session.scalar(
        select(ConsultationRow)
        .where(ConsultationRow.rollout_id == rollout.id, ConsultationRow.expert_id == expert.id)
        .with_for_update()
    )
    if consultation is None:
        kinds = Descriptor.model_validate(expert.descriptor).kinds
        consultation = consultations.open_one(session, rollout, expert, 1, Ask(kinds=kinds))
    if consultation.status not in (ConsultationStatus.WAITING.value, ConsultationStatus.ANSWERED.value):
        _leave_to_people(session, consultation)
    row = open_item(session, consultation.id, priority=ASKED_FOR)
    if row.status == CorrectionStatus.SKIPPED.value:
        _offer(session, row)
    row.priority = ASKED_FOR
    session.flush()
    return row


def _leave_to_people(session: Session, consultation: ConsultationRow) -> None:
    """Make the consultation wait for a person, without asking the expert over HTTP first; a worker that is asking right
    now is fenced off by the raised attempt."""
    steps = {
        ConsultationStatus.DEAD: (ConsultationStatus.PENDING, ConsultationStatus.ASKED),
        ConsultationStatus.PENDING: (ConsultationStatus.ASKED,),
    }
    for step in (*steps.get(ConsultationStatus(consultation.status), ()), ConsultationStatus.WAITING):
        check_change(CONSULTATION_CHANGES, ConsultationStatus(consultation.status), step)
        consultation.status = step.value
        session.flush()
    consultation.attempts += 1
    consultation.reason = "a correction was asked for"
    consultation.lease_until = None
    consultation.settled_at = None
    consultation.deadline = func.now() + settling.LATE_DEADLINE
    session.add(
        AttemptRow(consultation_id=consultation.id, number=consultation.attempts, outcome="ok", ended_at=func.now())
    )
    session.flush()
    rollouts.advance(session, consultation.rollout_id)


def give_back(session: Session, row: CorrectionRow) -> None:
    """Put an item back in the queue."""
    row.status, row.person_id, row.lease_until = CorrectionStatus.OPEN.value, None, None
    session.flush()


def _offer(session: Session, row: CorrectionRow) -> None:
    """Put a skipped item back in the queue, for everyone; the reasons for skipping it are deleted."""
    row.skip_kind = row.skip_reason = row.decided_at = None
    row.skipped_by = []
    give_back(session, row)


def submit(session: Session, correction_id: UUID, person_id: UUID, said: CorrectionSubmit) -> CorrectionRow:
    """Record a person's decision: the item, the human expert's answer and its late lesson, all or none.

    A corrected rollout scores 0 and the text is the solution; one that is fine scores 1. Only intended changes count
    (`contracts.edits`): without one, the answer is fine. Errors: CorrectionNotFound (404), NotYours (409), NotWaiting
    (409) when the consultation ended meanwhile, InvalidInput (422) for spans that do not fit the rollout,
    NothingChanged (422) for a correction that repeats the policy's answer.
    """
    row = _hold(session, correction_id, person_id, CorrectionStatus.SUBMITTED)
    rollout = session.get_one(RolloutRow, row.rollout_id)
    if said.text == rollout.text:
        raise NothingChanged("the corrected text is the answer as it was")
    text = None if said.text is None else keep_unmeant(rollout.text, said.text)
    if text == rollout.text:
        text = None
    verdict = "fine" if text is None else "corrected"
    result = ConsultResult(
        score=0.0 if verdict == "corrected" else 1.0,
        solution=text,
        feedback=Feedback(text=said.comment, spans=said.spans) if said.comment.strip() or said.spans else None,
    )
    try:
        check_against_rollout(
            result, num_tokens=rollout.num_tokens, tokenizer_hash=rollout.tokenizer_hash, vocab_size=None
        )
    except ValueError as error:
        raise InvalidInput(str(error)) from None
    row.status = CorrectionStatus.SUBMITTED.value
    row.verdict = verdict
    row.text = text
    row.comment = said.comment
    row.decided_at = func.now()
    row.held_until = func.now() + timedelta(seconds=said.hold_seconds) if said.hold_seconds else None
    session.execute(delete(DraftRow).where(DraftRow.correction_id == row.id, DraftRow.person_id == person_id))
    session.flush()
    settling.settle_late(session, row.consultation_id, result)
    session.refresh(row)
    return row


def skip(session: Session, correction_id: UUID, person_id: UUID, why: CorrectionSkip) -> CorrectionRow:
    """Leave the item to someone else; a draft is kept. Errors: CorrectionNotFound (404), NotYours (409)."""
    row = _hold(session, correction_id, person_id, CorrectionStatus.SKIPPED)
    row.status = CorrectionStatus.SKIPPED.value
    row.skip_kind = why.kind.value
    row.skip_reason = why.reason.strip() or None
    row.skipped_by = [*row.skipped_by, person_id]
    row.lease_until = None
    row.decided_at = func.now()
    session.flush()
    session.refresh(row)
    return row


def teach_waiting(session: Session) -> int:
    """Give corrections of rollouts that still wait for other experts a lesson of their own; how many.

    A person's words wait for others' for `PATIENCE` and no longer, and what they teach is read off the rollout itself.
    """
    waiting = session.execute(
        select(RolloutRow, AnswerRow)
        .join(CorrectionRow, CorrectionRow.rollout_id == RolloutRow.id)
        .join(AnswerRow, AnswerRow.consultation_id == CorrectionRow.consultation_id)
        .join(ExpertRow, ExpertRow.id == AnswerRow.expert_id)
        .where(
            RolloutRow.status == RolloutStatus.OPEN.value,
            RolloutRow.purpose == Purpose.TRAIN.value,
            CorrectionRow.status == CorrectionStatus.SUBMITTED.value,
            CorrectionRow.decided_at < func.now() - PATIENCE,
            trust.counts(AnswerRow, ExpertRow),
            ~exists().where(LessonAnswerRow.answer_id == AnswerRow.id),
        )
        .order_by(RolloutRow.id)
        .limit(MOST_AT_ONCE)
        .with_for_update(of=RolloutRow, skip_locked=True)
    ).all()
    for rollout, answer in waiting:
        rollouts.open_lesson(session, rollout, [answer], late=True)
    return len(waiting)


def lock(session: Session, correction_id: UUID) -> CorrectionRow:
    """The item as it is now, locked behind its rollout until the transaction ends. Errors: CorrectionNotFound."""
    row = get(session, correction_id)
    session.execute(select(RolloutRow.id).where(RolloutRow.id == row.rollout_id).with_for_update())
    session.refresh(row, with_for_update=True)
    return row


def _hold(session: Session, correction_id: UUID, person_id: UUID, new: CorrectionStatus) -> CorrectionRow:
    row = lock(session, correction_id)
    if row.status == CorrectionStatus.CLAIMED.value and row.person_id != person_id:
        raise NotYours(f"correction {correction_id} is held by someone else")
    if row.status == CorrectionStatus.OPEN.value:
        raise NotYours(f"correction {correction_id} was not claimed")
    check_change(CORRECTION_CHANGES, CorrectionStatus(row.status), new)
    return row
