"""Scores from the policy for experts that ask it: unreadable rollouts are abstentions, its faults unavailable."""

from services.contracts.experts import ConsultAbstain
from services.policy.client import PolicyClient, PolicyRefused
from services.policy.contract import ScoreRequest, ScoreResponse
from services.runtime.errors import ServiceUnavailable


def score_or_abstain(policy: PolicyClient, request: ScoreRequest) -> ScoreResponse | ConsultAbstain:
    """The scores, or an abstention when this text is more than the policy reads.

    Errors: PolicyUnavailable (503); ServiceUnavailable (503) when the policy refuses us for another reason.
    """
    try:
        return policy.score(request)
    except PolicyRefused as error:
        if error.status_code in (413, 422):
            return ConsultAbstain(reason=f"the policy cannot read this: {error.detail}"[:2000])
        raise ServiceUnavailable(f"the policy refuses the expert: {error.detail}") from error
