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

from scipy.special import stdtrit

from services.contracts.measurements import LOOKS
from services.store.stats.estimates import wilson_ends

LEVEL: Final = 0.10
LEVEL_PER_LOOK: Final = LEVEL / len(LOOKS)
LARGEST_GAP: Final = 1.0
"""A difference of two pass rates lies between its negative and this."""
LARGEST_RATIO: Final = 5.0
"""Of an expert's probability of a token to the policy's, as it is counted: one rare token must not decide."""
SMALLEST_LOGPROB: Final = -600.0
"""Whose probability is still above 0 in double precision."""


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
        low, high = (largest * (2 * end - 1) for end in wilson_ends((mean / largest + 1) / 2, num, level))
    return Bounds(mean, low, high) if largest is None else Bounds(mean, max(-largest, low), min(largest, high))


def decide(gap: Bounds, net: Bounds | None, *, is_last: bool) -> Decision:
    """What a look finds. net: None where there is no control. After the last look a source that has not been seen to
    teach does not."""
    bounds = [gap] if net is None else [gap, net]
    if all(one.low > 0 for one in bounds):
        return Decision.TEACHES
    if is_last or any(one.high <= 0 for one in bounds):
        return Decision.DOES_NOT_TEACH
    return Decision.GO_ON


def mixing_gain(scores: Sequence[float], excesses: Sequence[Sequence[float]]) -> float:
    """How much mixing an expert's distribution into the policy would raise the score, to first order, on one task.

    The derivative of the expected score along (1 - e) policy + e expert, at e = 0, estimated from sibling rollouts:
    the mean of (score - the mean of the siblings' scores) * sum_t excess(y_t).

    scores: one per rollout, of at least two; excesses: of each rollout, at the tokens where the expert speaks, its
    ratio to the policy's probability of the token less that of the control (`top_k_excess`, `samples_excess`). Raises
    ValueError for one rollout.
    """
    num = len(scores)
    if num < 2:
        raise ValueError(f"a rollout's score needs siblings to be compared with, and there are {num} rollouts")
    total = math.fsum(scores)
    gains = (
        (score - (total - score) / (num - 1)) * math.fsum(excess)
        for score, excess in zip(scores, excesses, strict=True)
    )
    return math.fsum(gains) / num


def top_k_excess(expert: float | None, tail_mass: float, policy: float) -> float:
    """The ratio of a top K to the policy at a token, less 1, which is the ratio of the policy's own top K.

    expert, policy: log-probabilities in nats; None where the token is outside the top K. There the ratio is as large as
    the tail allows, and at most 1: a cut alone tells nothing.
    """
    if expert is None:
        return min(tail_mass / _to_probability(policy), 1.0) - 1.0
    return math.exp(min(expert - policy, math.log(LARGEST_RATIO))) - 1.0


def samples_excess(num_same: int, num_samples: int, policy: float) -> float:
    """The ratio of the share of an expert's samples that go on with a token to the policy's probability of it, at most
    `LARGEST_RATIO`, less what as many samples of the policy itself give on average.

    policy: the token's log-probability in nats.
    """
    chance = _to_probability(policy)

    def ratio(num: int) -> float:
        return min(num / (num_samples * chance), LARGEST_RATIO)

    expected = math.fsum(
        math.comb(num_samples, num) * chance**num * (1 - chance) ** (num_samples - num) * ratio(num)
        for num in range(1, num_samples + 1)
    )
    return ratio(num_same) - expected


def _to_probability(logprob: float) -> float:
    return min(1.0, math.exp(max(logprob, SMALLEST_LOGPROB)))
