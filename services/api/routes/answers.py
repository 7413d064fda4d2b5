"""Answers: what experts said, and withdrawing it."""

from uuid import UUID

from sqlalchemy.orm import Session

from services.api.auth import needs
from services.api.deps import StoreDep
from services.api.once import OnceDep
from services.api.routes.common import build_router, problems
from services.contracts.answers import Answer
from services.contracts.persons import Right
from services.jobs import dispatch
from services.store.loop import consultations, withdrawals

router = build_router("answers")


@router.post("/answers/{answer_id}/withdraw", dependencies=[needs(Right.OPERATE)], responses=problems(404, 409))
def withdraw_answer(answer_id: UUID, store: StoreDep, once: OnceDep) -> Answer:
    """Withdraw an answer for good: its words go, no lesson or teacher uses it from now on, its score is no verdict.

    What experts said that were shown it is withdrawn too. An update that has begun is begun again without it. Updates
    that were applied stay as they are; the ledger says which used it.

    Errors: AnswerNotFound (404), IllegalStatusChange (409).
    """
    with store.transaction() as session:
        gone = once(session, lambda: _withdraw(session, answer_id))
        opened = consultations.pending_of(session, [gone.rollout_id])
    dispatch.consultations(opened)
    dispatch.lessons()
    return gone


def _withdraw(session: Session, answer_id: UUID) -> Answer:
    return Answer.model_validate(withdrawals.withdraw(session, answer_id))
