"""Withdrawing an answer."""

from uuid import UUID

from services.acts.call import Call
from services.contracts.answers import Answer
from services.jobs import dispatch
from services.store.loop import consultations, withdrawals


def withdraw(call: Call, answer_id: UUID) -> Answer:
    """Withdraw an answer for good: no lesson or teacher uses it from now on, and its score is no verdict.

    Errors: AnswerNotFound (404), IllegalStatusChange (409).
    """
    with call.begin() as act:
        withdrawn = act.keep(Answer.model_validate(withdrawals.withdraw(act.session, answer_id)))
        act.record("answers.withdraw", "answer", answer_id)
        opened = consultations.pending_of(act.session, [withdrawn.rollout_id])
    dispatch.consultations(opened)
    dispatch.lessons()
    return withdrawn
