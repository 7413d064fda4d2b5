"""Answers of experts, and withdrawing them."""

from uuid import UUID

from services.acts import answers
from services.api.auth import needs
from services.api.calls import CallDep
from services.api.routes.common import build_router, problems
from services.contracts.answers import Answer
from services.contracts.persons import Right

router = build_router("answers")


@router.post("/answers/{answer_id}/withdraw", dependencies=[needs(Right.OPERATE)], responses=problems(404, 409))
def withdraw_answer(answer_id: UUID, call: CallDep) -> Answer:
    """Withdraw an answer for good: its words go, no lesson or teacher uses it from now on, its score is no verdict.

    Answers of experts that were shown it are withdrawn too. An update that has begun is begun again without it. Updates
    that were applied stay as they are; the ledger says which used it.

    Errors: AnswerNotFound (404), IllegalStatusChange (409).
    """
    return answers.withdraw(call, answer_id)
