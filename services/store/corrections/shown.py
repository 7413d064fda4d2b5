"""Corrections shown to experts: when a correction is taken back or erased, its words leave their consultations too.

Experts of the second stage are asked with the answers so far as context. Their answers that rest on such a correction
are withdrawn. Callers hold the rollouts' locks; consultations are locked after them, in the order of their ids.
"""

from typing import Final

from sqlalchemy import ColumnElement, any_, case, delete, func, literal, or_, select, update
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerStatus
from services.contracts.consultations import ConsultationStatus
from services.contracts.effects import EffectStatus
from services.contracts.experts import Ask
from services.contracts.rollouts import RolloutStatus
from services.store.core.id_lists import Ids, listed
from services.store.loop import contexts, rollouts, trust
from services.store.tables.corrections import EffectRow
from services.store.tables.loop import AnswerRow, AttemptRow, ConsultationRow, DistributionRow, ExpertRow, RolloutRow

WORDS: Final = ("solution", "precedents", "feedback", "evidence")
"""The columns of an answer that hold words."""


def was_shown(of_rollouts: Ids) -> ColumnElement[bool]:
    """A condition on consultations about these rollouts: a person's words are in their context."""
    of_people = select(AnswerRow.id).join(ExpertRow, ExpertRow.id == AnswerRow.expert_id)
    shown = AnswerRow.id == any_(ConsultationRow.shown)
    in_it = of_people.where(AnswerRow.rollout_id == ConsultationRow.rollout_id, shown, trust.is_people(ExpertRow))
    return ConsultationRow.rollout_id.in_(of_rollouts) & in_it.exists()


def withdraw_answers(session: Session, answers: Ids) -> None:
    """Delete the text of these answers, and never train on them again; nor on what teachers drew that were shown them,
    or on what was said about that."""
    _withdraw(session, answers)
    _withdraw(session, listed(contexts.withdraw(session, answers)))


def _withdraw(session: Session, answers: Ids) -> None:
    for step in (
        delete(DistributionRow).where(DistributionRow.answer_id.in_(answers)),
        update(AnswerRow)
        .where(AnswerRow.id.in_(answers))
        .values(status=AnswerStatus.WITHDRAWN.value, distribution_kind=None, **dict.fromkeys(WORDS)),
    ):
        session.execute(step.execution_options(synchronize_session=False))


def take_out(session: Session, of_rollouts: Ids, reason: str) -> None:
    """Delete people's words from the consultations about these rollouts, and from the reasons of failed ones.

    Experts that are being asked are asked anew, without the words. A consultation left without context ends, and so
    does one that waits for a late answer, because its expert has the words. Call this after the answers are withdrawn:
    rollouts move on with the answers that are left.
    """
    _take_out(session, was_shown(of_rollouts), trust.is_people(ExpertRow), reason)


def take_answer_out(session: Session, answer: AnswerRow, reason: str) -> None:
    """Delete one answer from the consultations that it was shown in, as `take_out` does with people's words."""
    shown = literal(answer.id) == any_(ConsultationRow.shown)
    of_rollout = ConsultationRow.rollout_id == answer.rollout_id
    _take_out(session, of_rollout & shown, AnswerRow.id == answer.id, reason)


def _take_out(session: Session, asked_with: ColumnElement[bool], which: ColumnElement[bool], reason: str) -> None:
    """asked_with: the consultations. which: the answers, joined to their experts, that leave them."""
    found = select(ConsultationRow).where(asked_with).order_by(ConsultationRow.id)
    rows = session.scalars(found.with_for_update()).all()
    for row in rows:
        _hide(session, row, which)
    session.flush()
    shown = listed([row.id for row in rows])
    changed = update(ConsultationRow).where(ConsultationRow.id.in_(shown))
    status, nothing_left = ConsultationRow.status, func.cardinality(ConsultationRow.shown) == 0
    asked, pending, waiting = (
        word.value for word in (ConsultationStatus.ASKED, ConsultationStatus.PENDING, ConsultationStatus.WAITING)
    )
    for step in (
        update(AttemptRow)
        .where(AttemptRow.consultation_id.in_(shown), or_(AttemptRow.reason.is_not(None), AttemptRow.outcome.is_(None)))
        .values(
            outcome=func.coalesce(AttemptRow.outcome, "failed"),
            ended_at=func.coalesce(AttemptRow.ended_at, func.now()),
            reason=reason,
        ),
        changed.values(reason=case((ConsultationRow.reason.is_not(None), reason))),
        changed.where(status == asked, ~nothing_left).values(status=pending, lease_until=None, sent_at=None),
        changed.where(status == pending, nothing_left).values(status=asked),  # a consultation ends from there
        changed.where(status.in_([asked, waiting])).values(
            status=ConsultationStatus.ABSTAINED.value, reason=reason, lease_until=None, settled_at=func.now()
        ),
    ):
        session.execute(step.execution_options(synchronize_session=False))
    unsettled = select(ConsultationRow.rollout_id).where(ConsultationRow.id.in_(shown))
    still_open = select(RolloutRow.id).where(
        RolloutRow.id.in_(unsettled), RolloutRow.status == RolloutStatus.OPEN.value
    )
    for rollout_id in session.scalars(still_open.order_by(RolloutRow.id)).all():
        rollouts.advance(session, rollout_id)


def _hide(session: Session, consultation: ConsultationRow, which: ColumnElement[bool]) -> None:
    """Delete these answers from the consultation's context."""
    leaving = (
        select(AnswerRow.id)
        .join(ExpertRow, ExpertRow.id == AnswerRow.expert_id)
        .where(AnswerRow.id.in_(consultation.shown), which)
    )
    hidden = set(session.scalars(leaving))
    kept = [
        (answer_id, said)
        for answer_id, said in zip(consultation.shown, Ask.model_validate(consultation.ask).context, strict=True)
        if answer_id not in hidden
    ]
    consultation.shown = [answer_id for answer_id, _ in kept]
    consultation.ask = consultation.ask | {"context": [said.model_dump(mode="json") for _, said in kept]}


def forget_effects(session: Session, of_corrections: Ids, reason: str) -> None:
    """Delete the answers of versions trained on these corrections, which may repeat the words; ask none again.

    How probable the words were stays.
    """
    effects = update(EffectRow).where(EffectRow.correction_id.in_(of_corrections))
    for step in (
        effects.values(answer=None),
        effects.where(EffectRow.status == EffectStatus.PENDING.value).values(
            status=EffectStatus.GONE.value, reason=reason
        ),
    ):
        session.execute(step.execution_options(synchronize_session=False))
