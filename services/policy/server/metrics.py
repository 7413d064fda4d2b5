"""The policy process's figures: tokens that its engine sampled and scored, and its queue."""

from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from services.policy.contract import PolicyInfo


class EngineCollector(Collector):
    """Reads the engine's own counters when asked."""

    def __init__(self, info: Callable[[], PolicyInfo]) -> None:
        self._info = info

    def describe(self) -> Iterable[Metric]:
        """Nothing: the engine is asked at a scrape only."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Tokens and seconds since the start, rows now, versions loaded."""
        info = self._info()
        counters = info.counters
        tokens = CounterMetricFamily("preceptor_policy_tokens", "Tokens, by what was done with them.", labels=("work",))
        tokens.add_metric(("sampled",), counters.tokens_sampled)
        tokens.add_metric(("scored",), counters.tokens_scored)
        tokens.add_metric(("prefilled",), counters.tokens_prefilled)
        tokens.add_metric(("reused",), counters.tokens_reused)
        yield tokens
        yield CounterMetricFamily(
            "preceptor_policy_busy_seconds", "Seconds in which the model was computing.", counters.busy_seconds
        )
        rows = GaugeMetricFamily("preceptor_policy_rows", "Samples and scores, by state.", labels=("state",))
        rows.add_metric(("active",), counters.active_rows)
        rows.add_metric(("waiting",), counters.waiting_rows)
        rows.add_metric(("waiting_score",), counters.waiting_score_rows)
        yield rows
        yield GaugeMetricFamily("preceptor_policy_versions", "Versions loaded.", len(info.versions))
