"""The conformance suite's sample answers in the policy's own tokens: an expert that gives distributions needs them."""

from collections.abc import Mapping

from services.experts.protocol.conformance import SAMPLE_TEXTS, SampleTokens
from services.policy.client import PolicyClient, PolicyRefused, PolicyUnavailable
from services.policy.contract import TokenizeRequest


def read(policy_url: str, key: str) -> Mapping[str, SampleTokens] | None:
    """By text; None where the policy is away or refuses us."""
    with PolicyClient(policy_url, key) as policy:
        try:
            found = {text: policy.tokenize(TokenizeRequest(text=text)) for text in SAMPLE_TEXTS}
        except (PolicyUnavailable, PolicyRefused):
            return None
    return {text: SampleTokens(one.token_ids, one.tokenizer_hash) for text, one in found.items()}
