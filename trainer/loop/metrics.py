"""The trainer's Prometheus metrics: updates and their seconds, the last one's loss terms, and where time goes."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

UPDATE_SECONDS: Final = (1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1200)
TERMS: Final = ("loss", "local", "future", "imitation", "kl")
"""Parts of the objective, nats a token."""
MEASURES: Final = ("gap", "grad_norm", "pass_rate", "num_rows")
_SPENT: Final = "_seconds"


class UpdateMeter:
    """Counts the trainer's updates."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._updates = Counter(
            "preceptor_updates", "Updates tried: applied, abandoned, set_aside.", ("outcome",), registry=registry
        )
        self._seconds = Histogram(
            "preceptor_update_seconds",
            "From a claim to its checkpoint, of applied updates.",
            buckets=UPDATE_SECONDS,
            registry=registry,
        )
        self._terms = Gauge(
            "preceptor_update_term_nats", "The last update's terms, nats a token.", ("term",), registry=registry
        )
        self._measures = Gauge(
            "preceptor_update_measure", "Other measurements of the last update.", ("measure",), registry=registry
        )
        self._number = Gauge("preceptor_update_number", "The last update applied by this process.", registry=registry)

    def watch(self, counters: Callable[[], Mapping[str, float]]) -> None:
        """Show these running totals too, those that end in `_seconds`."""
        self._registry.register(SpentCollector(counters))

    def applied(self, number: int, metrics: Mapping[str, object]) -> None:
        """One update counts."""
        self._updates.labels("applied").inc()
        self._number.set(number)
        seconds = metrics.get("seconds")
        if isinstance(seconds, float | int):
            self._seconds.observe(seconds)
        for name in TERMS:
            self._terms.labels(name).set(_read(metrics.get(name)))
        for name in MEASURES:
            self._measures.labels(name).set(_read(metrics.get(name)))

    def gave_up(self, outcome: str) -> None:
        """One update does not count: `abandoned` (its lessons come again) or `set_aside` (they do not)."""
        self._updates.labels(outcome).inc()


class SpentCollector(Collector):
    """The trainer's seconds by activity."""

    def __init__(self, counters: Callable[[], Mapping[str, float]]) -> None:
        self._counters = counters

    def describe(self) -> Iterable[Metric]:
        """Empty until the first count."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The totals since the start."""
        family = CounterMetricFamily("preceptor_trainer_seconds", "Where the time went.", labels=("spent",))
        for name, total in self._counters().items():
            if name.endswith(_SPENT):
                family.add_metric((name.removesuffix(_SPENT),), total)
        yield family


def _read(value: object) -> float:
    return float(value) if isinstance(value, float | int) else math.nan
