"""Does a source teach? The sequential test of a measurement: a few looks at growing numbers of tasks.

Tasks are the units: a task's gap is the teacher's pass rate on it less the student's, its net the gap less the
control's. A source teaches when the one-sided lower bounds of both means lie above 0.

The bounds are those of a gambler who bets on each task that the mean is higher than it is said to be, with stakes that
cannot lose everything. While that is not so, the capital is expected not to grow, so that it ever reaches 1 / level
times its start in at most `level` of all measurements (Ville's inequality; Waudby-Smith and Ramdas, JRSS B 86, 2024,
p. 1). That holds for every distribution of the gaps, also where a source mostly helps a little and sometimes ruins,
and whatever the number of looks.

The lower bounds let a source in, so their level is shared by all that could let the same expert in. The upper bounds
keep a source out, which lets nothing in: theirs is LEVEL in every measurement.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean, stdev
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from services.contracts.measurements import LOOKS

LEVEL: Final = 0.10
SHARES: Final = (np.arange(16) + 0.5) / 16
"""Of the largest stake that cannot lose everything: the capital is divided equally over these."""
HALVINGS: Final = 40
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
    """A mean over tasks with its one-sided lower and upper bound."""

    mean: float
    low: float
    high: float


def find_bounds(values: Sequence[float], level: float) -> Bounds:
    """The mean of differences of pass rates, with bounds that hold at all looks together: the true mean is below the
    lower one in at most `level` of all measurements, and above the upper one in at most LEVEL."""
    gaps = np.asarray(values)
    return Bounds(fmean(values), _find_low(gaps, level), -_find_low(-gaps, LEVEL))


def grow(gaps: NDArray[np.float64], mean: float) -> float:
    """The capital after betting on each of these tasks that the mean gap is higher than this one, above -1."""
    odds = (1 + gaps) / (1 + mean)
    with np.errstate(over="ignore"):
        return float(np.mean(np.prod(1 + np.outer(SHARES, odds - 1), axis=1)))


def _find_low(gaps: NDArray[np.float64], level: float) -> float:
    """The highest mean that the bets refute: the capital falls as the mean rises, and is at most 1 at the gaps' own."""
    low, high = -1.0, float(np.mean(gaps))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if middle > -1 and grow(gaps, middle) >= 1 / level:
            low = middle
        else:
            high = middle
    return low


def one_sided(values: Sequence[float], level: float) -> Bounds:
    """The mean of at least two values without ends, less t(1 - level / looks, n - 1) standard errors and plus
    t(1 - LEVEL / looks, n - 1): the level is shared equally over the looks. Of values that are all alike the bounds are
    their mean. Raises ValueError for fewer than two values.
    """
    num = len(values)
    if num < 2:
        raise ValueError(f"no bounds from {num} values")
    mean = fmean(values)
    error = stdev(values) / math.sqrt(num)
    below, above = (float(stdtrit(num - 1, 1 - one / len(LOOKS))) * error for one in (level, LEVEL))
    return Bounds(mean, mean - below, mean + above)


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
