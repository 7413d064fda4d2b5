"""Does a source teach? The sequential test of a measurement: a few looks at growing numbers of tasks.

Tasks are the units: a task's gap is the teacher's pass rate on it less the student's, its net the gap less the
control's. A source teaches when the one-sided lower bounds of both means lie above 0. The level is shared equally over
the looks, so that a source without any gap passes at one of them in at most LEVEL of all measurements (Bonferroni).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean, stdev
from typing import Final

from scipy.special import ndtri, stdtrit

from services.contracts.measurements import LOOKS

LEVEL: Final = 0.10
LEVEL_PER_LOOK: Final = LEVEL / len(LOOKS)
LARGEST_GAP: Final = 1.0
"""A difference of two pass rates lies between its negative and this."""


class Decision(StrEnum):
    """What a look finds: an end, or `go_on` with more tasks."""

    TEACHES = "teaches"
    DOES_NOT_TEACH = "does_not_teach"
    GO_ON = "go_on"


@dataclass(frozen=True)
class Bounds:
    """A mean over tasks with its one-sided lower and upper bound, each at the level of one look."""

    mean: float
    low: float
    high: float


def one_sided(values: Sequence[float], level: float = LEVEL_PER_LOOK, largest: float | None = LARGEST_GAP) -> Bounds:
    """The mean of at least two values, less and plus t(1 - level, n - 1) standard errors.

    largest: the values lie within plus and minus this, and so do the bounds; None where they have no ends. Of values
    that are all alike the spread cannot be estimated: their bounds are Wilson's, for the widest spread that values of
    this mean can have, and their mean alone where they have no ends. Raises ValueError for fewer than two values.
    """
    num = len(values)
    if num < 2:
        raise ValueError(f"no bounds from {num} values")
    mean = fmean(values)
    error = stdev(values) / math.sqrt(num)
    if not math.isclose(error, 0.0, abs_tol=1e-12):
        half = float(stdtrit(num - 1, 1 - level)) * error
        low, high = mean - half, mean + half
    elif largest is None:
        low = high = mean
    else:
        low, high = (largest * (2 * end - 1) for end in _wilson_ends((mean / largest + 1) / 2, num, level))
    return Bounds(mean, low, high) if largest is None else Bounds(mean, max(-largest, low), min(largest, high))


def _wilson_ends(share: float, num: int, level: float) -> tuple[float, float]:
    z = float(ndtri(1 - level))
    middle = (share + z**2 / (2 * num)) / (1 + z**2 / num)
    half = z / (1 + z**2 / num) * math.sqrt(max(0.0, share * (1 - share)) / num + z**2 / (4 * num**2))
    return middle - half, middle + half


def decide(gap: Bounds, net: Bounds | None, *, is_last: bool) -> Decision:
    """What a look finds. net: None where there is no control. After the last look a source that has not been seen to
    teach does not."""
    bounds = [gap] if net is None else [gap, net]
    if all(one.low > 0 for one in bounds):
        return Decision.TEACHES
    if is_last or any(one.high <= 0 for one in bounds):
        return Decision.DOES_NOT_TEACH
    return Decision.GO_ON


def mixing_gain(scores: Sequence[float], log_ratios: Sequence[Sequence[float]], cap: float = 5.0) -> float:
    """How much mixing an expert's distribution into the policy would raise the score, to first order, on one task.

    The derivative of the expected score along (1 - e) policy + e expert, at e = 0, estimated from sibling rollouts:
    the mean of (score - the mean of the siblings' scores) * sum_t (min(expert(y_t) / policy(y_t), cap) - 1).

    scores: one per rollout, of at least two; log_ratios: of each rollout, log expert(y_t) - log policy(y_t) in nats at
    the tokens where the expert speaks, -inf where it gives the token no probability. Raises ValueError for one rollout.
    """
    num = len(scores)
    if num < 2:
        raise ValueError(f"a rollout's score needs siblings to be compared with, and there are {num} rollouts")
    total = math.fsum(scores)
    gains = (
        (score - (total - score) / (num - 1)) * math.fsum(math.exp(min(one, math.log(cap))) - 1 for one in ratios)
        for score, ratios in zip(scores, log_ratios, strict=True)
    )
    return math.fsum(gains) / num
