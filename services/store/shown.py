"""What experts were shown of people's corrections: it goes where the correction goes, and so does what they made of it.

Experts of the second stage are asked with the answers that were given so far. When a correction is taken back or
erased, its words leave those questions, and what the experts said with them in view is withdrawn. Callers hold the
rollouts; questions are locked after them, in the order of their ids.
"""

from sqlalchemy import (
    ARRAY,
    Boolean,
    ColumnElement,
    Text,
    case,
    cast,
    delete,
    func,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, JSONPATH
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerStatus
from services.contracts.consultations import ConsultationStatus
from services.contracts.effects import EffectStatus
from services.contracts.rollouts import RolloutStatus
from services.store import rollouts
from services.store.id_lists import Ids, listed
from services.store.models import AnswerRow, AttemptRow, ConsultationRow, DistributionRow, EffectRow, RolloutRow
from services.store.ranking import HUMAN_EXPERT

_OF_OTHERS = f'$.context[*] ? (@.expert != "{HUMAN_EXPERT}")'


def was_shown(of_rollouts: Ids) -> ColumnElement[bool]:
    """A condition on questions about these rollouts: what a person wrote is part of them."""
    holds = cast({"context": [{"expert": HUMAN_EXPERT}]}, JSONB)
    in_it = ConsultationRow.ask.op("@>", return_type=Boolean())(holds)
    return ConsultationRow.rollout_id.in_(of_rollouts) & in_it


def withdraw_answers(session: Session, answers: Ids) -> None:
    """Take the words out of these answers, and never train on them again."""
    session.execute(
        delete(DistributionRow)
        .where(DistributionRow.answer_id.in_(answers))
        .execution_options(synchronize_session=False)
    )
    session.execute(
        update(AnswerRow)
        .where(AnswerRow.id.in_(answers))
        .values(
            status=AnswerStatus.WITHDRAWN.value, solution=None, feedback=None, evidence=None, distribution_kind=None
        )
        .execution_options(synchronize_session=False)
    )


def take_out(session: Session, of_rollouts: Ids, reason: str) -> None:
    """Take people's words out of the questions about these rollouts, and out of why experts did not answer them.

    Who is being asked is asked anew, without them; a question in which nothing else was shown ends, and so does one
    whose answer was to come later: the expert has the words. The answers are withdrawn before this is called, for
    rollouts move on with those that are left.
    """
    found = select(ConsultationRow.id).where(was_shown(of_rollouts)).order_by(ConsultationRow.id)
    shown = listed(session.scalars(found.with_for_update()).all())
    questions = update(ConsultationRow).where(ConsultationRow.id.in_(shown))
    status, nothing_left = ConsultationRow.status, func.jsonb_array_length(ConsultationRow.ask["context"]) == 0
    others = func.jsonb_path_query_array(ConsultationRow.ask, cast(_OF_OTHERS, JSONPATH))
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
        questions.values(
            ask=func.jsonb_set(ConsultationRow.ask, literal(["context"], ARRAY(Text())), others),
            reason=case((ConsultationRow.reason.is_not(None), reason)),
        ),
        questions.where(status == asked, ~nothing_left).values(status=pending, lease_until=None, sent_at=None),
        questions.where(status == pending, nothing_left).values(status=asked),  # a question ends from there
        questions.where(status.in_([asked, waiting])).values(
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


def forget_effects(session: Session, of_corrections: Ids, reason: str) -> None:
    """Take out what versions trained on these corrections answered: it may be the words again. None is asked any more.

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
