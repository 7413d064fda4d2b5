"""The figures of a report: unbiased pass@k, and paired differences with t-intervals over families.

Tasks of one family are alike, so the family is the unit of the interval: differences are averaged within a family
first, and the interval says how far another draw of families could move the mean. Shares and differences of shares
have ends, and their intervals stay within them. An interval of fewer than five units is said to be not reliable.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import ndtri, stdtrit

from services.contracts.evaluations import TaskResult

CONFIDENCE = 0.95
RELIABLE_NUM = 5
"""Units from which on an interval is worth relying on: with fewer, one unit more may move it anywhere."""
SHARE = (0.0, 1.0)
DIFFERENCE_OF_SHARES = (-1.0, 1.0)


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its two-sided 95 % interval; the ends are NaN where too little is known for one.

    num: the units it is over, such as families or trials.
    """

    mean: float
    low: float
    high: float
    num: int

    @property
    def is_known(self) -> bool:
        """Whether there is an interval at all."""
        return not math.isnan(self.low)

    @property
    def is_reliable(self) -> bool:
        """Whether it is an interval of enough units to rely on."""
        return self.is_known and self.num >= RELIABLE_NUM


def say(interval: Interval, sign: str = "") -> str:
    """A mean and its interval in words, with a warning where it is not reliable. sign: "+" for differences."""
    mean = f"{interval.mean:{sign}.3f}"
    if not interval.is_known:
        return f"{mean} (no interval)"
    ends = f"[{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"
    return f"{mean} {ends}" if interval.is_reliable else f"{mean} {ends} not reliable"


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """The unbiased estimate of the chance that at least one of k samples passes (arXiv 2107.03374, eq. 1).

    Raises ValueError when k exceeds the number of samples: there is no unbiased estimate.
    """
    if not 0 <= num_passed <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} of {num_passed} passes in {num_samples} samples")
    return 1.0 - math.comb(num_samples - num_passed, k) / math.comb(num_samples, k)


def t_interval(values: Sequence[float], ends: tuple[float, float]) -> Interval:
    """The mean of values that lie between two ends, and its t-interval between them.

    Of values that are all alike the spread cannot be estimated: their interval is Wilson's, for the widest spread that
    values of this mean between these ends can have. Raises ValueError without values.
    """
    if not values:
        raise ValueError("no values")
    mean, num = fmean(values), len(values)
    if num < 2:
        return Interval(mean, math.nan, math.nan, num)
    least, most = ends
    error = stdev(values) / math.sqrt(num)
    if math.isclose(error, 0.0, abs_tol=1e-12):
        low, high = (least + (most - least) * end for end in _wilson_ends((mean - least) / (most - least), num))
        return Interval(mean, low, high, num)
    half = float(stdtrit(num - 1, (1 + CONFIDENCE) / 2)) * error
    return Interval(mean, max(least, mean - half), min(most, mean + half), num)


def wilson_interval(num_passed: int, num: int) -> Interval | None:
    """A share of independent trials with its Wilson interval (JASA 22, 1927, p. 209); None without trials.

    Rollouts of one task are alike, so for a policy's ability this interval is too narrow; it says how well a share of
    rollouts is known. Raises ValueError for more passes than trials.
    """
    if not 0 <= num_passed <= num:
        raise ValueError(f"{num_passed} passes in {num} trials")
    if num == 0:
        return None
    share = num_passed / num
    return Interval(share, *_wilson_ends(share, num), num)


def _wilson_ends(share: float, num: int) -> tuple[float, float]:
    z = float(ndtri((1 + CONFIDENCE) / 2))
    middle = (share + z**2 / (2 * num)) / (1 + z**2 / num)
    half = z / (1 + z**2 / num) * math.sqrt(max(0.0, share * (1 - share)) / num + z**2 / (4 * num**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def family_means(results: Sequence[TaskResult], k: int) -> dict[str, float]:
    """pass@k by family, averaged over its tasks that have at least k judged samples."""
    by_family: dict[str, list[float]] = defaultdict(list)
    for task in results:
        if task.num_judged >= k:
            by_family[task.family].append(pass_at_k(task.num_judged, task.num_passed, k))
    return {family: fmean(values) for family, values in by_family.items()}


def score(results: Sequence[TaskResult], k: int) -> Interval | None:
    """pass@k of these tasks over their families; None when no task has k judged samples."""
    means = family_means(results, k)
    return t_interval(list(means.values()), SHARE) if means else None


def paired_difference(before: Sequence[TaskResult], after: Sequence[TaskResult], k: int) -> Interval | None:
    """How much pass@k rose: per family over the tasks measured both times, then over families."""
    common = {t.key for t in before if t.num_judged >= k} & {t.key for t in after if t.num_judged >= k}
    old = family_means([t for t in before if t.key in common], k)
    new = family_means([t for t in after if t.key in common], k)
    return t_interval([new[family] - old[family] for family in old], DIFFERENCE_OF_SHARES) if old else None
