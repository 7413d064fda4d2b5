"""The checks that a policy version must pass before it serves. Pure: numbers in, checks out.

Not covered: measuring the numbers (`publish`), and whether the version is any better (evaluations).
"""

import math
from typing import Final

from services.contracts.policies import GateCheck

PROBE: Final = "probe_difference"
KL_BASE: Final = "kl_base"
KL_PREVIOUS: Final = "kl_previous"
LENGTH: Final = "length_ratio"


def check_finite(num_bad: int) -> GateCheck:
    """No weight is NaN or infinite."""
    return GateCheck(name="finite_weights", passed=num_bad == 0, value=num_bad, bound=0)


def check_probe(max_difference: float, tolerance: float, num_tokens: int) -> GateCheck:
    """The server computes the trainer's logprobs: the largest difference over the probe, in nats."""
    return _bounded(PROBE, max_difference, tolerance, f"{num_tokens} tokens")


def check_kl(name: str, kl: float, bound: float) -> GateCheck:
    """The version has not moved too far from another one: mean KL over the probe's tokens, in nats."""
    return _bounded(name, kl, bound, "nats a token")


def check_length(new_tokens: float, old_tokens: float, ratio: float) -> GateCheck:
    """Answers have not become `ratio` times longer or shorter; in tokens. The value is the larger of the two ratios."""
    new, old = max(new_tokens, 1.0), max(old_tokens, 1.0)
    return _bounded(LENGTH, max(new / old, old / new), ratio, f"{new_tokens:.1f} after {old_tokens:.1f} tokens")


def _bounded(name: str, value: float, bound: float, detail: str) -> GateCheck:
    if not math.isfinite(value):  # a check must be storable: the contract refuses NaN
        return GateCheck(name=name, passed=False, value=-1, bound=bound, detail="NaN or infinite")
    return GateCheck(name=name, passed=value <= bound, value=value, bound=bound, detail=detail)
