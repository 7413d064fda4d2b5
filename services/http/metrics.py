"""A process's own figures for Prometheus, at `GET /metrics`.

A scrape from this machine needs no key; from anywhere else it needs `Authorization: Bearer` with
PRECEPTOR_METRICS_KEY, and is refused while that is not set. The figures hold no text, key or address; labels come from
closed sets (routes as templates, registered experts, statuses), so that a caller cannot make series.
"""

import socket
import threading
from collections.abc import Callable, Iterable
from typing import Final, Self

import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from prometheus_client.core import InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from sandbox.http import edge
from sandbox.http.meter import PATH, RequestMeter, may_scrape, show
from services.runtime.version import VERSION

START_SECONDS: Final = 10.0


class BuildInfo(Collector):
    """The version that runs."""

    def collect(self) -> Iterable[Metric]:
        """One constant."""
        yield InfoMetricFamily("preceptor_build", "The version that runs.", {"version": VERSION})


def make_registry() -> CollectorRegistry:
    """A registry with the process's CPU time, memory and open files, and the version."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(BuildInfo())
    return registry


def install(app: FastAPI, registry: CollectorRegistry, key: str) -> None:
    """Count the app's requests and serve the registry at /metrics. An empty key: to this machine only."""
    app.add_middleware(RequestMeter, registry=registry)
    app.add_route(PATH, _make_endpoint(registry, key), include_in_schema=False)


class MetricsServer:
    """Serves /metrics alone on a port of its own, in a thread, for processes without a server."""

    def __init__(self, registry: CollectorRegistry, listen: str, key: str) -> None:
        """listen: `HOST:PORT`, IPv6 addresses in brackets. Raises OSError when the port is taken."""
        host, _, port = listen.rpartition(":")
        family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
        self._socket = socket.create_server((host.strip("[]"), int(port)), family=family)
        app = Starlette()
        app.add_route(PATH, _make_endpoint(registry, key))
        self._server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, **edge.bounds())
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="metrics", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens; for a port 0 the one it got."""
        port: int = self._socket.getsockname()[1]
        return port

    def close(self) -> None:
        """Stop listening."""
        self._server.should_exit = True
        self._thread.join(START_SECONDS)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ended: object) -> None:
        self.close()


def open_server(registry: CollectorRegistry, listen: str, key: str) -> MetricsServer | None:
    """A MetricsServer at `listen`; None where the settings name no place."""
    return MetricsServer(registry, listen, key) if listen else None


def _make_endpoint(registry: CollectorRegistry, key: str) -> Callable[[Request], Response]:
    accepted = [f"Bearer {key}".encode()] if key else []

    def answer(request: Request) -> Response:
        """Every figure, in Prometheus' text format. Errors: 403 from elsewhere without the key."""
        if not may_scrape(request.scope, accepted):
            return PlainTextResponse("from another machine the key of PRECEPTOR_METRICS_KEY is needed\n", 403)
        return show(registry)

    return answer
