"""The sandbox's figures for Prometheus: slots, queue, how runs ended, verdicts."""

from collections.abc import Iterable
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from sandbox.contract import JudgeResult, RunResult

RUN_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Runs(Protocol):
    """The part of a runner that the figures read."""

    @property
    def num_running(self) -> int: ...
    @property
    def num_waiting(self) -> int: ...
    @property
    def num_replaced(self) -> int: ...
    @property
    def num_retried(self) -> int: ...
    @property
    def is_ready(self) -> bool: ...


class SandboxMeter:
    """Counts what one sandbox does; every label is a word of the contract."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._runs = Counter("preceptor_sandbox_runs", "Runs, by how they ended.", ("status",), registry=self.registry)
        self._run_seconds = Histogram(
            "preceptor_sandbox_run_seconds", "A run's wall time.", buckets=RUN_SECONDS, registry=self.registry
        )
        self._judged = Counter(
            "preceptor_sandbox_judgements", "Solutions judged, by status.", ("status",), registry=self.registry
        )
        self._verdicts = Counter(
            "preceptor_sandbox_verdicts", "Verdicts on single tests.", ("verdict",), registry=self.registry
        )

    def watch(self, runner: Runs, slots: int, queue_limit: int) -> None:
        """Show this runner's slots and queue as well."""
        self.registry.register(_RunnerCollector(runner, slots, queue_limit))

    def ran(self, result: RunResult) -> None:
        """One run ended."""
        self._runs.labels(result.status.value).inc()
        self._run_seconds.observe(result.wall_seconds)

    def judged(self, result: JudgeResult) -> None:
        """One solution was judged."""
        self._judged.labels(result.status).inc()
        for test in result.tests:
            self._verdicts.labels(test.verdict.value).inc()


class _RunnerCollector(Collector):
    def __init__(self, runner: Runs, slots: int, queue_limit: int) -> None:
        self._runner, self._slots, self._queue_limit = runner, slots, queue_limit

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        runner = self._runner
        yield GaugeMetricFamily("preceptor_sandbox_ready", "1 unless its keepers are being replaced.", runner.is_ready)
        yield GaugeMetricFamily("preceptor_sandbox_slots", "Runs it takes at one time.", self._slots)
        yield GaugeMetricFamily("preceptor_sandbox_running", "Slots taken.", runner.num_running)
        yield GaugeMetricFamily("preceptor_sandbox_waiting", "Runs waiting for a slot.", runner.num_waiting)
        yield GaugeMetricFamily("preceptor_sandbox_waiting_limit", "Runs that may wait.", self._queue_limit)
        yield CounterMetricFamily("preceptor_sandbox_zygotes_replaced", "Interpreters replaced.", runner.num_replaced)
        yield CounterMetricFamily("preceptor_sandbox_runs_retried", "Runs begun anew by itself.", runner.num_retried)
