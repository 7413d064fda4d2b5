"""Corrections: the human queue, from the item a person is given to the updates that used what they wrote.

An item belongs to a waiting consultation of the human expert. It is offered to one person at a time under a lease;
submitting it records the answer and opens a late lesson in the same transaction. Locks are taken rollout first, then
correction, as everywhere.
"""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from services.contracts.answers import Feedback, check_against_rollout
from services.contracts.base import check_change
from services.contracts.consultations import CONSULTATION_CHANGES, SETTLED, ConsultationStatus
from services.contracts.corrections import (
    CORRECTION_CHANGES,
    Correction,
    CorrectionItem,
    CorrectionOutcome,
    CorrectionStatus,
    CorrectionSubmit,
)
from services.contracts.experts import Ask, ConsultResult, Descriptor, ExpertStatus
from services.contracts.ids import new_id
from services.contracts.rollouts import Purpose, RolloutStatus
from services.contracts.tasks import Message, Split
from services.errors import Conflict, InvalidInput, NotFound
from services.store import consultations, rollouts, updates
from services.store.models import (
    AnswerRow,
    AttemptRow,
    ConsultationRow,
    CorrectionRow,
    ExpertRow,
    RolloutRow,
    TaskRow,
)

HUMAN_EXPERT = "human"
"""The name of the expert behind the queue."""

LEASE = timedelta(minutes=30)  # to read a rollout and write its correction without hurry
ASKED_FOR = 1.0  # the priority of an item that somebody asked for; the queue's own have 0


class CorrectionNotFound(NotFound):
    """No correction with this id."""


class NotYours(Conflict):
    """The item is not held by this person: never claimed, or its lease ran out and someone else has it."""

    hint = "Claim an item with POST /v1/corrections/claim and submit that one."


class NoHumanExpert(Conflict):
    """No human expert is registered, so there is no queue to put an item in."""

    hint = "Register the human expert's endpoint with POST /v1/experts."


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


def item(session: Session, row: CorrectionRow) -> CorrectionItem:
    """The item with what a person needs to correct it: the prompt and the rollout's text."""
    rollout = session.get_one(RolloutRow, row.rollout_id)
    task = session.get_one(TaskRow, rollout.task_id)
    return CorrectionItem(
        **view(row).model_dump(),
        messages=[Message.model_validate(message) for message in task.messages],
        rollout_text=rollout.text,
    )


def outcome(session: Session, row: CorrectionRow) -> CorrectionOutcome:
    """The item with the numbers of the applied updates that used it, in order."""
    # By the rollout, for which there is an index over all answers; for the consultation only over current ones.
    of_it = (AnswerRow.rollout_id == row.rollout_id, AnswerRow.consultation_id == row.consultation_id)
    said = session.scalars(select(AnswerRow.id).where(*of_it)).all()
    numbers = {number for answer_id in said for number in updates.numbers_using(session, answer_id)}
    return CorrectionOutcome(**view(row).model_dump(), update_numbers=sorted(numbers))


def open_item(session: Session, consultation_id: UUID, *, priority: float = 0.0) -> CorrectionRow:
    """The item of a question to the human expert, put in the queue if it is not there yet.

    Errors: ConsultationNotFound (404), NotCorrectable (422).
    """
    question = consultations.get(session, consultation_id)
    rollout = session.get_one(RolloutRow, question.rollout_id)
    _check_correctable(rollout)
    session.execute(
        insert(CorrectionRow)
        .values(
            id=new_id(),
            lineage_id=rollout.lineage_id,
            consultation_id=question.id,
            rollout_id=rollout.id,
            split=rollout.split,
            status=CorrectionStatus.OPEN.value,
            priority=priority,
        )
        .on_conflict_do_nothing(index_elements=["consultation_id"])
    )
    row = session.scalars(
        select(CorrectionRow).where(CorrectionRow.consultation_id == question.id).with_for_update()
    ).one()
    if row.status == CorrectionStatus.WITHDRAWN.value and row.verdict is None and question.status not in SETTLED:
        row.status, row.person_id, row.lease_until = CorrectionStatus.OPEN.value, None, None  # asked once more
        session.flush()
    return row


def _check_correctable(rollout: RolloutRow) -> None:
    if rollout.split != Split.TRAIN.value:
        raise NotCorrectable(f"rollout {rollout.id} answers a {rollout.split} task; only train tasks are corrected")
    if rollout.purpose != Purpose.TRAIN.value:
        raise NotCorrectable(f"rollout {rollout.id} was drawn for {rollout.purpose}, not to train on")


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
            ExpertRow.name == HUMAN_EXPERT,
            ExpertRow.status.in_([ExpertStatus.ACTIVE.value, ExpertStatus.PROBATION.value]),
        )
    )
    if expert is None:
        raise NoHumanExpert(f"no expert named {HUMAN_EXPERT!r} is active")
    question = session.scalar(
        select(ConsultationRow)
        .where(ConsultationRow.rollout_id == rollout.id, ConsultationRow.expert_id == expert.id)
        .with_for_update()
    )
    if question is None:
        kinds = Descriptor.model_validate(expert.descriptor).kinds
        question = consultations.open_one(session, rollout, expert, 1, Ask(kinds=kinds))
    if question.status not in (ConsultationStatus.WAITING.value, ConsultationStatus.ANSWERED.value):
        _leave_to_people(session, question)
    row = open_item(session, question.id, priority=ASKED_FOR)
    if row.status == CorrectionStatus.SKIPPED.value:
        row.status = CorrectionStatus.OPEN.value
        row.person_id = None
    row.priority = ASKED_FOR
    session.flush()
    return row


def _leave_to_people(session: Session, question: ConsultationRow) -> None:
    """Make the question wait for a person, without asking the expert over HTTP first; a worker that is asking right
    now is fenced off by the raised attempt."""
    steps = {
        ConsultationStatus.DEAD: (ConsultationStatus.PENDING, ConsultationStatus.ASKED),
        ConsultationStatus.PENDING: (ConsultationStatus.ASKED,),
    }
    for step in (*steps.get(ConsultationStatus(question.status), ()), ConsultationStatus.WAITING):
        check_change(CONSULTATION_CHANGES, ConsultationStatus(question.status), step)
        question.status = step.value
        session.flush()
    question.attempts += 1
    question.reason = "a correction was asked for"
    question.lease_until = None
    question.settled_at = None
    question.deadline = func.now() + consultations.LATE_DEADLINE
    session.add(AttemptRow(consultation_id=question.id, number=question.attempts, outcome="ok", ended_at=func.now()))
    session.flush()
    rollouts.advance(session, question.rollout_id)


def claim(session: Session, lineage_id: UUID, person_id: UUID) -> CorrectionRow | None:
    """The next item for this person, leased to them; the one they hold already, if any; None when there is none.

    Asked-for items come first, then the newest: a correction of what the policy does now teaches most. Items that
    someone else skipped come last; items of an expired lease count as open.
    """
    held = session.scalar(
        select(CorrectionRow)
        .join(ConsultationRow, ConsultationRow.id == CorrectionRow.consultation_id)
        .where(
            CorrectionRow.lineage_id == lineage_id,
            CorrectionRow.status == CorrectionStatus.CLAIMED.value,
            CorrectionRow.person_id == person_id,
            ConsultationRow.status == ConsultationStatus.WAITING.value,
        )
        .order_by(CorrectionRow.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=CorrectionRow)
    )
    row = held or _next_free(session, lineage_id, person_id)
    if row is None:
        return None
    if row.status == CorrectionStatus.SKIPPED.value:
        row.status = CorrectionStatus.OPEN.value
        session.flush()
    row.status = CorrectionStatus.CLAIMED.value
    row.person_id = person_id
    row.lease_until = func.now() + LEASE
    row.skip_reason = None
    session.flush()
    session.refresh(row)
    return row


def _next_free(session: Session, lineage_id: UUID, person_id: UUID) -> CorrectionRow | None:
    expired = (CorrectionRow.status == CorrectionStatus.CLAIMED.value) & (CorrectionRow.lease_until < func.now())
    skipped = (CorrectionRow.status == CorrectionStatus.SKIPPED.value) & (CorrectionRow.person_id != person_id)
    return session.scalar(
        select(CorrectionRow)
        .join(ConsultationRow, ConsultationRow.id == CorrectionRow.consultation_id)
        .where(
            CorrectionRow.lineage_id == lineage_id,
            (CorrectionRow.status == CorrectionStatus.OPEN.value) | expired | skipped,
            ConsultationRow.status == ConsultationStatus.WAITING.value,
        )
        .order_by(skipped, CorrectionRow.priority.desc(), CorrectionRow.id.desc())
        .limit(1)
        .with_for_update(skip_locked=True, of=CorrectionRow)
    )


def submit(session: Session, correction_id: UUID, person_id: UUID, said: CorrectionSubmit) -> CorrectionRow:
    """Write down what the person decided: the item, the human expert's answer and its late lesson, all or nothing.

    A corrected rollout scores 0 and the text is the solution; one that is fine scores 1. Errors: CorrectionNotFound
    (404), NotYours (409), NotWaiting (409) when the question ended meanwhile, InvalidInput (422) for spans that do not
    fit the rollout.
    """
    row = _hold(session, correction_id, person_id, CorrectionStatus.SUBMITTED)
    result = ConsultResult(
        score=0.0 if said.verdict == "corrected" else 1.0,
        solution=said.text,
        feedback=Feedback(text=said.comment, spans=said.spans) if said.comment.strip() or said.spans else None,
    )
    rollout = session.get_one(RolloutRow, row.rollout_id)
    try:
        check_against_rollout(
            result, num_tokens=rollout.num_tokens, tokenizer_hash=rollout.tokenizer_hash, vocab_size=None
        )
    except ValueError as error:
        raise InvalidInput(str(error)) from None
    row.status = CorrectionStatus.SUBMITTED.value
    row.verdict = said.verdict
    row.text = said.text
    row.comment = said.comment
    row.decided_at = func.now()
    session.flush()
    consultations.settle_late(session, row.consultation_id, result)
    session.refresh(row)
    return row


def skip(session: Session, correction_id: UUID, person_id: UUID, reason: str) -> CorrectionRow:
    """Leave the item to someone else. Errors: CorrectionNotFound (404), NotYours (409)."""
    row = _hold(session, correction_id, person_id, CorrectionStatus.SKIPPED)
    row.status = CorrectionStatus.SKIPPED.value
    row.skip_reason = reason
    row.lease_until = None
    session.flush()
    return row


def free_expired(session: Session) -> None:
    """Put items whose lease ran out back in the queue, and take out those whose question ended without a person."""
    session.execute(
        update(CorrectionRow)
        .where(
            CorrectionRow.id.in_(
                select(CorrectionRow.id)
                .where(CorrectionRow.status == CorrectionStatus.CLAIMED.value, CorrectionRow.lease_until < func.now())
                .with_for_update(skip_locked=True)
            )
        )
        .values(status=CorrectionStatus.OPEN.value, person_id=None, lease_until=None)
    )
    # An item can be opened in the moment its question ends: the human expert is asked over HTTP.
    ended = (
        select(CorrectionRow.consultation_id)
        .join(ConsultationRow, ConsultationRow.id == CorrectionRow.consultation_id)
        .where(
            CorrectionRow.status == CorrectionStatus.OPEN.value,
            ConsultationRow.status.in_([status.value for status in SETTLED]),
        )
    )
    consultations.withdraw_items(session, session.scalars(ended).all())


def _hold(session: Session, correction_id: UUID, person_id: UUID, new: CorrectionStatus) -> CorrectionRow:
    row = get(session, correction_id)
    session.execute(select(RolloutRow.id).where(RolloutRow.id == row.rollout_id).with_for_update())
    session.refresh(row, with_for_update=True)
    if row.status == CorrectionStatus.CLAIMED.value and row.person_id != person_id:
        raise NotYours(f"correction {correction_id} is held by someone else")
    if row.status == CorrectionStatus.OPEN.value:
        raise NotYours(f"correction {correction_id} was not claimed")
    check_change(CORRECTION_CHANGES, CorrectionStatus(row.status), new)
    return row
