"""The figures of a report: unbiased pass@k, paired differences with t-intervals over families, and the headline.

The headline of a comparison is the best of the later version less the best of the earlier one: each is read at the
temperature at which it passed most validation tasks. At one fixed temperature a version that only became more certain
looks better than it is, because drawing the earlier one at a lower temperature would have done the same.

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

from services.contracts.evaluations import BestTemperature, EvaluationDetail, EvaluationStatus, TaskResult

CONFIDENCE = 0.95
TIE = 1e-9
"""Means of pass rates that differ by less are equal but for rounding."""
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
        if (estimate := task_pass_at_k(task, k)) is not None:
            by_family[task.family].append(estimate)
    return {family: fmean(values) for family, values in by_family.items()}


def task_pass_at_k(task: TaskResult, k: int) -> float | None:
    """pass@k of one task; None with fewer than k judged samples. At temperature 0 all k samples are the same one."""
    num_needed = 1 if task.temperature == 0 else k
    return pass_at_k(task.num_judged, task.num_passed, num_needed) if task.num_judged >= num_needed else None


def score(results: Sequence[TaskResult], k: int) -> Interval | None:
    """pass@k of these tasks over their families; None when no task has k judged samples."""
    means = family_means(results, k)
    return t_interval(list(means.values()), SHARE) if means else None


def paired_difference(before: Sequence[TaskResult], after: Sequence[TaskResult], k: int) -> Interval | None:
    """How much pass@k rose: per family over the tasks measured both times, then over families.

    before, after: each at one temperature.
    """
    differences = family_differences(before, after, k)
    return t_interval([*differences.values()], DIFFERENCE_OF_SHARES) if differences else None


def family_differences(before: Sequence[TaskResult], after: Sequence[TaskResult], k: int) -> dict[str, float]:
    """How much pass@k rose in each family, over its tasks measured both times."""
    common = _measured(before, k) & _measured(after, k)
    old = family_means([t for t in before if t.key in common], k)
    new = family_means([t for t in after if t.key in common], k)
    return {family: new[family] - old[family] for family in old}


def _measured(results: Sequence[TaskResult], k: int) -> set[str]:
    return {task.key for task in results if task_pass_at_k(task, k) is not None}


def domains(results: Sequence[TaskResult]) -> list[str]:
    """The domains of these tasks, in order."""
    return sorted({task.domain for task in results})


def temperatures(results: Sequence[TaskResult]) -> list[float]:
    """The temperatures of these results, the lowest first."""
    return sorted({task.temperature for task in results})


def pick(results: Sequence[TaskResult], domain: str, temperature: float | None) -> list[TaskResult]:
    """The results of one domain at one temperature; none at None."""
    return [task for task in results if task.domain == domain and task.temperature == temperature]


def figures(results: Sequence[TaskResult]) -> list[int]:
    """The k of pass@k worth showing: 1, and the largest number of answers that a task has."""
    return sorted({1, max((task.num_judged + task.num_unjudged for task in results), default=1)})


def choose_best(results: Sequence[TaskResult], validation: Sequence[TaskResult] | None) -> list[BestTemperature]:
    """The best temperature of each domain of these results, for pass@1 and pass@k, chosen on validation tasks.

    validation: None where the results are those of validation tasks: read on the tasks that it was chosen on, the best
    of several temperatures looks better than it is, so none is chosen.
    """
    reason = None
    if len(temperatures(results)) < 2:
        reason = "one temperature only"
    elif validation is None:
        reason = "it would be chosen on these very tasks"
    return [
        BestTemperature(domain=domain, k=k, temperature=None, num_tasks=0, reason=reason)
        if reason is not None
        else _choose(domain, k, [task for task in validation or () if task.domain == domain])
        for domain in domains(results)
        for k in figures(results)
    ]


def _choose(domain: str, k: int, validation: Sequence[TaskResult]) -> BestTemperature:
    """Over the tasks that were judged at every temperature, so that all temperatures are read on the same ones."""
    drawn = {t: pick(validation, domain, t) for t in temperatures(validation)}
    common = set.intersection(*(_measured(tasks, k) for tasks in drawn.values())) if drawn else set()
    if not common:
        reason = "no validation task judged" if validation else "no validation tasks"
        return BestTemperature(domain=domain, k=k, temperature=None, num_tasks=0, reason=reason)
    best, best_mean = 0.0, -1.0
    for temperature, tasks in drawn.items():
        mean = fmean(family_means([task for task in tasks if task.key in common], k).values())
        if mean > best_mean + TIE:
            best, best_mean = temperature, mean
    return BestTemperature(domain=domain, k=k, temperature=best, num_tasks=len(common), reason=None)


@dataclass(frozen=True)
class Change:
    """A domain before and after, each at one temperature: pass@k over families with 95 % intervals.

    rise: paired by family. reason: why there is no figure, where a temperature is None.
    """

    domain: str
    k: int
    before_temperature: float | None
    after_temperature: float | None
    before: Interval | None
    after: Interval | None
    rise: Interval | None
    reason: str | None = None

    @property
    def num_families(self) -> int:
        """The families that the difference is over."""
        return 0 if self.rise is None else self.rise.num


def headline(before: EvaluationDetail, after: EvaluationDetail) -> list[Change]:
    """The best of the later evaluation less the best of the earlier one, by domain, for pass@1 and pass@k.

    Both must have been drawn at the same temperatures: otherwise one would have had more to choose from.
    """
    reason = None
    if EvaluationStatus.RUNNING in (before.status, after.status):
        reason = "not finished"
    elif temperatures(before.results) != temperatures(after.results):
        reason = "measured at different temperatures"
    return [
        _compare_best(before, after, domain, k, reason)
        for domain in domains([*before.results, *after.results])
        for k in figures(after.results)
    ]


def _compare_best(before: EvaluationDetail, after: EvaluationDetail, domain: str, k: int, reason: str | None) -> Change:
    chosen = [
        next((best for best in side.best if (best.domain, best.k) == (domain, k)), None) for side in (before, after)
    ]
    old, new = (None if best is None else best.temperature for best in chosen)
    if reason is None and old is not None and new is not None:
        return _compare(before.results, after.results, domain, k, (old, new))
    told = [best.reason for best in chosen if best is not None and best.reason is not None]
    return Change(domain, k, None, None, None, None, None, reason or next(iter(told), "not measured both times"))


def by_temperature(before: Sequence[TaskResult], after: Sequence[TaskResult]) -> list[Change]:
    """Both at equal temperatures, by domain, for pass@1 and pass@k."""
    return [
        _compare(before, after, domain, k, (at, at))
        for domain in domains([*before, *after])
        for k in figures(after)
        for at in temperatures([*before, *after])
    ]


def _compare(
    before: Sequence[TaskResult], after: Sequence[TaskResult], domain: str, k: int, at: tuple[float, float]
) -> Change:
    old, new = pick(before, domain, at[0]), pick(after, domain, at[1])
    return Change(domain, k, *at, score(old, k), score(new, k), paired_difference(old, new, k))
