"""Scores and draws from the policy for experts that ask it: unreadable rollouts are abstentions, its faults
unavailable."""

from collections.abc import Callable
from typing import TypeVar

from services.contracts.experts import ConsultAbstain
from services.policy.client import PolicyClient, PolicyRefused
from services.policy.contract import SampleRequest, SampleResponse, ScoreRequest, ScoreResponse
from services.runtime.errors import ServiceUnavailable

Asked = TypeVar("Asked")
Told = TypeVar("Told")


def score_or_abstain(policy: PolicyClient, request: ScoreRequest) -> ScoreResponse | ConsultAbstain:
    """The scores, or an abstention when this text is more than the policy reads.

    Errors: PolicyUnavailable (503); ServiceUnavailable (503) when the policy refuses us for another reason.
    """
    return _ask_or_abstain(policy.score, request)


def draw_or_abstain(policy: PolicyClient, request: SampleRequest) -> SampleResponse | ConsultAbstain:
    """The draws, or an abstention when their prompt is more than the policy reads. Errors: as `score_or_abstain`."""
    return _ask_or_abstain(policy.sample, request)


def _ask_or_abstain(ask: Callable[[Asked], Told], request: Asked) -> Told | ConsultAbstain:
    try:
        return ask(request)
    except PolicyRefused as error:
        if error.status_code in (413, 422):
            return ConsultAbstain(reason=f"the policy cannot read this: {error.detail}"[:2000])
        raise ServiceUnavailable(f"the policy refuses the expert: {error.detail}") from error
