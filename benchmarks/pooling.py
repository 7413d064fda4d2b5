"""Rises of several seeds as one: a family's difference is averaged over the seeds first, and the interval is over
families. Seeds share their tasks, so more of them narrow the noise of training and drawing, not that of the tasks."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from services.contracts.evaluations import EvaluationDetail
from services.store.stats.estimates import (
    DIFFERENCE_OF_SHARES,
    SHARE,
    Interval,
    family_differences,
    family_means,
    pick,
    t_interval,
)

GREEDY, WARM = 0.0, 0.5


@dataclass(frozen=True)
class Seed:
    """One seed's evaluations."""

    before: EvaluationDetail
    after: EvaluationDetail


@dataclass(frozen=True)
class Figure:
    """What is compared. temperature: of both sides; None: each side's best."""

    title: str
    k: int
    temperature: float | None


def choose_figures(num_samples: int) -> list[Figure]:
    """The headline, greedy, and at .5."""
    return [
        Figure("best less best, pass@1", 1, None),
        Figure("greedy, pass@1", 1, GREEDY),
        Figure("T=.5, pass@1", 1, WARM),
        Figure(f"T=.5, pass@{num_samples}", num_samples, WARM),
    ]


def pool_rise(seeds: Sequence[Seed], domain: str, figure: Figure) -> Interval | None:
    """The rise over families; None where nothing was measured both times, or no temperature could be chosen."""
    found = [
        family_differences(
            pick(seed.before.results, domain, find_temperature(seed.before, domain, figure)),
            pick(seed.after.results, domain, find_temperature(seed.after, domain, figure)),
            figure.k,
        )
        for seed in seeds
    ]
    return _over_families(found, DIFFERENCE_OF_SHARES)


def pool_level(evaluations: Sequence[EvaluationDetail], domain: str, figure: Figure) -> Interval | None:
    """pass@k over families, as `pool_rise`."""
    found = [
        family_means(pick(one.results, domain, find_temperature(one, domain, figure)), figure.k) for one in evaluations
    ]
    return _over_families(found, SHARE)


def find_temperature(side: EvaluationDetail, domain: str, figure: Figure) -> float | None:
    """At which this side is read."""
    if figure.temperature is not None:
        return figure.temperature
    return next((best.temperature for best in side.best if (best.domain, best.k) == (domain, figure.k)), None)


def say(interval: Interval | None) -> str:
    """A rise in a table's cell."""
    if interval is None:
        return "–"
    if not interval.is_known:
        return f"{interval.mean:+.3f}"
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def _over_families(by_seed: Sequence[dict[str, float]], ends: tuple[float, float]) -> Interval | None:
    of_family: dict[str, list[float]] = {}
    for found in by_seed:
        for family, value in found.items():
            of_family.setdefault(family, []).append(value)
    return t_interval([fmean(values) for values in of_family.values()], ends) if of_family else None
