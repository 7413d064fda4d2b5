"""How consultations end: settled by an answer, given back for another try, or dead; and their rollouts move on.

A consultation is settled only while `attempts` is still the claimer's. Locks are taken rollout first, then
consultation.
"""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import case, func, select, update
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerContent, check_against_rollout
from services.contracts.consultations import ConsultationStatus, InvalidAnswer
from services.contracts.corrections import CorrectionStatus
from services.contracts.experts import ConsultAbstain, ConsultLater, ConsultResult, ExpertStatus
from services.contracts.rollouts import Purpose, RolloutStatus
from services.runtime.errors import Conflict
from services.store.corrections import ranking
from services.store.loop import answers, consultations, quarantine, rollouts, trust
from services.store.loop.consultations import ClaimedConsultation
from services.store.tables.base import LineageRow
from services.store.tables.corrections import CorrectionRow
from services.store.tables.loop import AnswerRow, AttemptRow, ConsultationRow, ExpertRow, RolloutRow

Outcome = ConsultResult | ConsultAbstain | ConsultLater | InvalidAnswer

LATE_DEADLINE = timedelta(days=7)  # people answer within a week or not at all
BACKOFF_SECONDS = (1, 3, 10, 30, 60)
LAST_TRY = timedelta(
    minutes=2
)  # so long before the deadline there is one more try, however long a busy expert wants to wait


class NotWaiting(Conflict):
    """The consultation is not waiting for a late answer: it is settled, or the expert never answered 202."""


def settle(session: Session, claimed: ClaimedConsultation, outcome: Outcome) -> list[UUID]:
    """Record how a consultation ended, once, and move its rollout on. A late worker changes no row.

    An answer that counts and comes after its rollout was settled opens a lesson of its own, and its score changes the
    verdict; lessons that are there keep the answers they were made of. Returns the ids of
    consultations of the second stage that it opened, to be sent after the commit.
    """
    rollout = session.scalars(select(RolloutRow).where(RolloutRow.id == claimed.rollout_id).with_for_update()).one()
    row = session.scalar(
        select(ConsultationRow)
        .where(
            ConsultationRow.id == claimed.consultation_id,
            ConsultationRow.status == ConsultationStatus.ASKED.value,
            ConsultationRow.attempts == claimed.attempt,
        )
        .with_for_update()
    )
    if row is None:
        return []
    _end_attempt(session, claimed, "ok", None)
    quarantine.note_answer(session, row.expert_id)
    answer = _conclude(session, row, rollout, outcome)
    _teach_late(session, rollout, answer)
    rollouts.advance(session, rollout.id)
    return consultations.pending_of(session, [rollout.id])


def settle_late(session: Session, consultation_id: UUID, outcome: ConsultResult | ConsultAbstain) -> ConsultationRow:
    """Record a late answer. If its rollout was ready already, a second lesson opens with this answer alone.

    Errors: ConsultationNotFound (404), NotWaiting (409).
    """
    rollout_id = consultations.get(session, consultation_id).rollout_id
    rollout = session.scalars(select(RolloutRow).where(RolloutRow.id == rollout_id).with_for_update()).one()
    row = session.scalars(select(ConsultationRow).where(ConsultationRow.id == consultation_id).with_for_update()).one()
    if row.status != ConsultationStatus.WAITING.value:
        raise NotWaiting(f"consultation {consultation_id} is {row.status}, not waiting")
    answer = _conclude(session, row, rollout, outcome)
    _teach_late(session, rollout, answer)
    rollouts.advance(session, rollout.id)
    return row


def _teach_late(session: Session, rollout: RolloutRow, answer: AnswerRow | None) -> None:
    """Open a lesson with an answer that counts and came after its rollout was ready. Of what a teacher drew a late
    verdict teaches nothing."""
    if answer is None or rollout.status != RolloutStatus.READY.value or rollout.purpose != Purpose.TRAIN.value:
        return
    if rollout.shown:
        return
    if answer in answers.counting(session, rollout.id):
        rollouts.open_lesson(session, rollout, [answer], late=True)


def _conclude(session: Session, row: ConsultationRow, rollout: RolloutRow, outcome: Outcome) -> AnswerRow | None:
    answer = None
    if isinstance(outcome, AnswerContent):
        lineage = session.get_one(LineageRow, rollout.lineage_id)
        try:
            check_against_rollout(
                outcome,
                num_tokens=len(rollout.token_ids),
                tokenizer_hash=rollout.tokenizer_hash,
                vocab_size=lineage.vocab_size,
            )
        except ValueError as error:
            row.status, row.reason = ConsultationStatus.INVALID.value, str(error)
        else:
            answer = answers.record(session, row, rollout, outcome)
            row.status = ConsultationStatus.ANSWERED.value
            if answer.score is not None:
                rollouts.judge_again(session, rollout)
                ranking.rank_again(session, rollout.id)
    elif isinstance(outcome, ConsultAbstain):
        row.status, row.reason = ConsultationStatus.ABSTAINED.value, outcome.reason or "the expert abstained"
    elif isinstance(outcome, ConsultLater):
        row.status, row.reason = ConsultationStatus.WAITING.value, outcome.reason or "the answer comes later"
        row.deadline = func.now() + LATE_DEADLINE
    else:
        row.status, row.reason = ConsultationStatus.INVALID.value, outcome.reason[:2000]
    row.lease_until = None
    if row.status != ConsultationStatus.WAITING.value:
        row.settled_at = func.now()
        withdraw_items(session, [row.id])
    session.flush()
    return answer


def withdraw_items(session: Session, consultation_ids: Sequence[UUID]) -> None:
    """Take the undecided items of these consultations out of the human queue: their answers are no longer needed."""
    undecided = (CorrectionStatus.OPEN.value, CorrectionStatus.CLAIMED.value, CorrectionStatus.SKIPPED.value)
    session.execute(
        update(CorrectionRow)
        .where(CorrectionRow.consultation_id.in_(consultation_ids), CorrectionRow.status.in_(undecided))
        .values(status=CorrectionStatus.WITHDRAWN.value)
    )


def _end_attempt(session: Session, claimed: ClaimedConsultation, outcome: str, reason: str | None) -> None:
    session.execute(
        update(AttemptRow)
        .where(AttemptRow.consultation_id == claimed.consultation_id, AttemptRow.number == claimed.attempt)
        .values(outcome=outcome, reason=reason, ended_at=func.now())
    )


def release(
    session: Session,
    claimed: ClaimedConsultation,
    reason: str,
    *,
    retry_after: float | None,
    max_attempts: int,
    quarantine_after: int,
) -> None:
    """Give a consultation back after a failed try. With `retry_after` the expert was busy, which is no failure: it is
    asked again after so many seconds, and in any case once more before the deadline.

    After `max_attempts` failures the consultation is dead, the reason kept; after `quarantine_after` failures in a row,
    over all consultations, the expert is quarantined.
    """
    session.execute(select(RolloutRow.id).where(RolloutRow.id == claimed.rollout_id).with_for_update())
    row = session.scalar(
        select(ConsultationRow)
        .where(
            ConsultationRow.id == claimed.consultation_id,
            ConsultationRow.status == ConsultationStatus.ASKED.value,
            ConsultationRow.attempts == claimed.attempt,
        )
        .with_for_update()
    )
    if row is None:
        return
    _end_attempt(session, claimed, "failed", reason[:2000])
    row.reason = reason[:2000]
    row.lease_until = None
    if retry_after is None:
        row.failures += 1
        quarantine.note_failure(session, claimed.expert_id, reason, quarantine_after)
    if row.failures >= max_attempts:
        row.status = ConsultationStatus.DEAD.value
        row.settled_at = func.now()
        withdraw_items(session, [row.id])
        session.flush()
        rollouts.advance(session, row.rollout_id)
        return
    row.status = ConsultationStatus.PENDING.value
    row.sent_at = None
    if retry_after is None:
        delay = BACKOFF_SECONDS[min(row.failures, len(BACKOFF_SECONDS)) - 1]
        row.not_before = func.now() + timedelta(seconds=delay)
    else:
        before_end = row.deadline - LAST_TRY
        last_try = case((func.now() < before_end, before_end), else_=row.deadline)
        row.not_before = func.least(func.now() + timedelta(seconds=retry_after), last_try)


def kill(session: Session, row: ConsultationRow, reason: str) -> None:
    """End an unsettled consultation for good and move its rollout on."""
    session.execute(select(RolloutRow.id).where(RolloutRow.id == row.rollout_id).with_for_update())
    row.status = ConsultationStatus.DEAD.value
    row.reason = reason
    row.lease_until = None
    row.settled_at = func.now()
    withdraw_items(session, [row.id])
    session.flush()
    rollouts.advance(session, row.rollout_id)


def sweep(session: Session, *, resend_seconds: float, limit: int) -> list[UUID]:
    """Free the consultations of dead workers, end those past their deadline, and move on rollouts that wait for no
    expert that may train; returns the consultations to be sent (again)."""
    session.execute(
        update(ConsultationRow)
        .where(
            ConsultationRow.id.in_(
                select(ConsultationRow.id)
                .where(
                    ConsultationRow.status == ConsultationStatus.ASKED.value,
                    ConsultationRow.lease_until < func.now(),
                )
                .with_for_update(skip_locked=True)
            )
        )
        .values(status=ConsultationStatus.PENDING.value, lease_until=None, sent_at=None)
    )
    late = session.execute(
        select(ConsultationRow.id, ConsultationRow.rollout_id)
        .where(
            ConsultationRow.status.in_([ConsultationStatus.PENDING.value, ConsultationStatus.WAITING.value]),
            ConsultationRow.deadline < func.now(),
        )
        .order_by(ConsultationRow.rollout_id)
        .limit(limit)
    ).all()
    unheard = session.execute(
        select(ConsultationRow.id, ConsultationRow.rollout_id)
        .join(ExpertRow, ExpertRow.id == ConsultationRow.expert_id)
        .where(
            ConsultationRow.status == ConsultationStatus.PENDING.value,
            ExpertRow.status == ExpertStatus.QUARANTINED.value,
            ~trust.may_train(ExpertRow),
        )
        .order_by(ConsultationRow.rollout_id)
        .limit(limit)
    ).all()
    ended = [(each, "no answer before its deadline") for each in late]
    ended += [(each, "the expert, whose answers carry no weight, went into quarantine") for each in unheard]
    for (consultation_id, rollout_id), why in sorted(ended, key=lambda one: one[0][1]):  # in the order of every lock
        session.execute(select(RolloutRow.id).where(RolloutRow.id == rollout_id).with_for_update())
        row = session.scalars(
            select(ConsultationRow).where(ConsultationRow.id == consultation_id).with_for_update()
        ).one()
        if row.status in (ConsultationStatus.PENDING.value, ConsultationStatus.WAITING.value):
            kill(session, row, f"{why}; last: {row.reason or 'never asked'}")
    rollouts.advance_unheld(session, limit)
    due = (
        select(ConsultationRow.id)
        .join(ExpertRow, ExpertRow.id == ConsultationRow.expert_id)
        .where(
            ConsultationRow.status == ConsultationStatus.PENDING.value,
            ConsultationRow.not_before <= func.now(),
            (ConsultationRow.sent_at.is_(None))
            | (ConsultationRow.sent_at < func.now() - timedelta(seconds=resend_seconds)),
            ExpertRow.status.in_([ExpertStatus.ACTIVE.value, ExpertStatus.PROBATION.value]),
        )
        .order_by(ConsultationRow.id)
        .limit(limit)
        .with_for_update(skip_locked=True, of=ConsultationRow)
    )
    return list(
        session.scalars(
            update(ConsultationRow)
            .where(ConsultationRow.id.in_(due))
            .values(sent_at=func.now())
            .returning(ConsultationRow.id)
        )
    )
