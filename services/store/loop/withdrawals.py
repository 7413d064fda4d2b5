"""Withdrawing an answer: from now on it does not count, and neither do the answers of experts that were shown it.

Updates that were applied keep it: their ledger says so, and the weights stay as they are.
"""

from uuid import UUID

from sqlalchemy import any_, literal, select, text, update
from sqlalchemy.orm import Session

from services.contracts.answers import ANSWER_CHANGES, AnswerStatus
from services.contracts.base import check_change
from services.contracts.lessons import LessonStatus
from services.contracts.updates import UpdateStatus
from services.runtime.errors import NotFound
from services.store.core.id_lists import listed
from services.store.core.transaction import take_long
from services.store.corrections import ranking, shown
from services.store.ledger import updates
from services.store.loop import rollouts
from services.store.people import erasing
from services.store.tables.corrections import CorrectionRow
from services.store.tables.ledger import LessonRow, UpdateRow
from services.store.tables.loop import AnswerRow, ConsultationRow, RolloutRow

REASON = "an answer of it was withdrawn"


class AnswerNotFound(NotFound):
    """No answer with this id."""


def withdraw(session: Session, answer_id: UUID) -> AnswerRow:
    """Withdraw an answer and those derived from it; lessons left without an answer are withdrawn too.

    Errors: AnswerNotFound (404), IllegalStatusChange (409).
    """
    rollout_id = session.scalar(select(AnswerRow.rollout_id).where(AnswerRow.id == answer_id))
    if rollout_id is None:
        raise AnswerNotFound(f"no answer {answer_id}")
    take_long(session)
    rollout = session.scalars(select(RolloutRow).where(RolloutRow.id == rollout_id).with_for_update()).one()
    answer = session.get_one(AnswerRow, answer_id, populate_existing=True)
    check_change(ANSWER_CHANGES, AnswerStatus(answer.status), AnswerStatus.WITHDRAWN)
    of_shown = select(ConsultationRow.id).where(
        ConsultationRow.rollout_id == rollout_id, literal(answer_id) == any_(ConsultationRow.shown)
    )
    made = session.scalars(
        select(AnswerRow.id).where(AnswerRow.rollout_id == rollout_id, AnswerRow.consultation_id.in_(of_shown))
    ).all()
    gone = [answer_id, *made]
    shown.withdraw_answers(session, listed(gone))
    session.expire_all()
    shown.take_answer_out(session, answer, REASON)
    of_corrections = select(CorrectionRow.id).where(CorrectionRow.consultation_id == answer.consultation_id)
    shown.forget_effects(session, of_corrections, REASON)
    session.execute(text("LOCK TABLE lesson IN SHARE ROW EXCLUSIVE MODE"))  # last: no lesson is claimed meanwhile
    begun = session.scalars(
        select(UpdateRow.id).where(
            UpdateRow.lineage_id == rollout.lineage_id, UpdateRow.status == UpdateStatus.STARTED.value
        )
    ).all()
    for update_id in begun:
        updates.abandon(session, update_id, REASON)
    session.execute(
        update(LessonRow)
        .where(LessonRow.id.in_(listed(session.scalars(erasing.emptied(gone)).all())))
        .values(status=LessonStatus.WITHDRAWN.value, reason=REASON, owner=None, lease_until=None)
        .execution_options(synchronize_session=False)
    )
    erasing.forget_teachers(session, gone)
    session.expire_all()
    rollouts.judge_again(session, rollout)
    ranking.rank_again(session, rollout_id)
    session.flush()
    return session.get_one(AnswerRow, answer_id, populate_existing=True)
