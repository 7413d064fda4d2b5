"""The state of a worker process between tasks: settings, store, the policy's client, one asyncio loop for HTTP."""

import asyncio
import threading
from collections.abc import Coroutine
from functools import cache
from typing import Any, TypeVar

from celery.signals import worker_ready, worker_shutdown
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.contracts.sources import ContextSettings
from services.experts.protocol.client import ExpertClient
from services.http import metrics
from services.jobs.asking import Asker
from services.jobs.metrics import WorkerMeter
from services.policy.client import PolicyClient
from services.runtime.collector import open_tracing
from services.runtime.settings import Settings
from services.store.core.transaction import Store

DRAIN_SECONDS = 5.0
"""How long a stopping worker waits for consultations in progress; later ones are sent again."""

T = TypeVar("T")


class TrainerContexts(ContextSettings, BaseSettings):
    """What the trainer's settings say of contexts, for teachers that draw."""

    model_config = SettingsConfigDict(env_prefix="PRECEPTOR_TRAINER_", frozen=True)


class Runtime:
    """Made once per process, on first use; worker threads share it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.contexts: ContextSettings = TrainerContexts()
        self.store = Store(settings.database_url, pool_size=12)
        self.policy = PolicyClient(settings.policy_url, settings.internal_key)
        self.registry = metrics.make_registry()
        self.meter = WorkerMeter(self.registry)
        self._metrics = metrics.open_server(self.registry, settings.metrics_listen, settings.metrics_key)
        self.tracing = open_tracing(settings.otlp_endpoint, "worker")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="experts-http", daemon=True)
        self._thread.start()
        self.experts = self.run(self._make_client())
        self.asker = Asker(self._loop, self.store, self.experts, settings, self.meter, self.tracing)

    async def _make_client(self) -> ExpertClient:
        return ExpertClient(self.settings.allowed_expert_networks, trace_configs=self.tracing.watch_client())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the process's loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """Close all connections."""
        if self._metrics is not None:
            self._metrics.close()
        self.asker.close()
        self.run(self.experts.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.tracing.flush()
        self.policy.close()
        self.store.close()


@cache
def runtime() -> Runtime:
    """This process's runtime."""
    return Runtime(Settings())


@worker_ready.connect
def _begin(**_: object) -> None:
    """Make the runtime before the first task: /metrics answers from the start."""
    runtime()


@worker_shutdown.connect
def _finish(**_: object) -> None:
    """Record the answers that are about to arrive."""
    runtime().asker.drain(DRAIN_SECONDS)
