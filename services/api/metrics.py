"""The loop's figures at the api's /metrics: work in progress in the database, the broker's queues, the pool.

Read on each scrape with a few index scans and one round-trip to the broker, and cached for a moment, so that many
scrapers cost as much as one. An unavailable database or broker is a figure (`…_up` 0), not an error.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from typing import Final

import redis
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from services.jobs.app import LESSONS_QUEUE, app
from services.runtime.settings import Settings
from services.store.core.transaction import Store, StoreUnavailable
from services.store.loop import lineages
from services.store.loop.lineages import LineageNotFound
from services.store.views import under_way
from services.store.views.under_way import Figures

KEPT_SECONDS: Final = 2.0
BROKER_SECONDS: Final = 1.0
QUEUES: Final = (*(queue.name for queue in app.conf.task_queues), LESSONS_QUEUE)


class LoopCollector(Collector):
    """Reads the loop for one lineage. Safe to share between threads."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._turn = threading.Lock()
        self._read_at = -KEPT_SECONDS
        self._found: list[Metric] = []

    def describe(self) -> Iterable[Metric]:
        """No metrics: the database may be unavailable when the registry is made."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Every family; at most `KEPT_SECONDS` old."""
        with self._turn:
            if time.monotonic() - self._read_at >= KEPT_SECONDS:
                self._found = [*self._of_pool(), *self._of_database(), *self._of_broker()]
                self._read_at = time.monotonic()
            return list(self._found)

    def _of_pool(self) -> Iterator[Metric]:
        use = self._store.pool_use()
        connections = GaugeMetricFamily(
            "preceptor_database_connections", "Of this process, by state.", labels=("state",)
        )
        connections.add_metric(("in_use",), use.in_use)
        connections.add_metric(("idle",), use.idle)
        yield connections
        yield GaugeMetricFamily("preceptor_database_connections_limit", "Connections it may have at once.", use.limit)

    def _of_database(self) -> Iterator[Metric]:
        try:
            with self._store.reading() as session:
                found = under_way.read(session, lineages.get(session, self._settings.lineage).id)
        except LineageNotFound:
            yield GaugeMetricFamily("preceptor_database_up", "Whether the database answers.", 1)
            return
        except StoreUnavailable:
            yield GaugeMetricFamily("preceptor_database_up", "Whether the database answers.", 0)
            return
        yield GaugeMetricFamily("preceptor_database_up", "Whether the database answers.", 1)
        yield from _families(found)
        yield GaugeMetricFamily(
            "preceptor_backlog_limit_rollouts",
            "Rollouts under way at which no more are drawn.",
            self._settings.max_backlog_lessons,
        )

    def _of_broker(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("preceptor_broker_up", "Whether the broker answers.")
        depth = GaugeMetricFamily("preceptor_queue_messages", "Messages waiting in a queue.", labels=("queue",))
        try:
            with redis.Redis.from_url(
                self._settings.redis_url, socket_timeout=BROKER_SECONDS, socket_connect_timeout=BROKER_SECONDS
            ) as client:
                pipe = client.pipeline(transaction=False)
                for queue in QUEUES:
                    pipe.llen(queue)
                pipe.hlen("unacked")
                lengths = pipe.execute()
        except (redis.RedisError, OSError):
            up.add_metric((), 0)
        else:
            up.add_metric((), 1)
            for name, length in zip((*QUEUES, "unacknowledged"), lengths, strict=True):
                depth.add_metric((name,), length)
        yield up
        yield depth


def _families(found: Figures) -> Iterator[Metric]:
    for noun in sorted({noun for noun, _ in found.counts}):
        family = GaugeMetricFamily(
            f"preceptor_{noun}",
            f"By status, those in progress or waiting for people; {under_way.MOST} means at least.",
            labels=("status",),
        )
        for (of, status), count in found.counts.items():
            if of == noun:
                family.add_metric((status,), count)
        yield family
    yield GaugeMetricFamily(
        "preceptor_backlog_rollouts", "Train rollouts drawn or asked for and not yet trained on.", found.backlog
    )
    yield CounterMetricFamily("preceptor_ledger_updates", "The number of the last applied update.", found.num_updates)
    if found.serving_number is not None:
        yield GaugeMetricFamily(
            "preceptor_serving_version", "The number of the serving policy version.", found.serving_number
        )
    switch = GaugeMetricFamily("preceptor_loop_switch", "1 while it is on.", labels=("switch",))
    switch.add_metric(("sampling",), found.sampling)
    switch.add_metric(("training",), found.training)
    yield switch
    yield GaugeMetricFamily(
        "preceptor_loop_blocked", "1 while sampling is stopped because a disk is nearly full.", found.is_blocked
    )
    beats = GaugeMetricFamily(
        "preceptor_process_silent_seconds", "Since the last heartbeat of a process.", labels=("process",)
    )
    for name, seconds in found.beats.items():
        beats.add_metric((name,), seconds)
    yield beats
    yield GaugeMetricFamily("preceptor_database_bytes", "The database's size on its disk.", found.database_bytes)
