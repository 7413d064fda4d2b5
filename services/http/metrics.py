"""What a process measures of itself, for Prometheus: counts of requests, and `GET /metrics`.

A scrape from this machine needs no key; from anywhere else it needs `Authorization: Bearer` with
PRECEPTOR_METRICS_KEY, and is refused while that is not set. What is shown holds no text, key or address; labels come
from closed sets (routes as templates, registered experts, statuses), so that a caller cannot make series.
"""

import hmac
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, Self

import uvicorn
from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sandbox.http import edge
from sandbox.http.watching import StatusWatch
from services.runtime.version import VERSION

PATH: Final = "/metrics"
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNMATCHED: Final = "unmatched"
REQUEST_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)
"""Upper edges of the histogram: from a read by id to a draw that waits for the policy's batch."""
START_SECONDS: Final = 10.0


class BuildInfo(Collector):
    """Which Preceptor this is."""

    def collect(self) -> Iterable[Metric]:
        """One constant."""
        yield InfoMetricFamily("preceptor_build", "The version that runs.", {"version": VERSION})


def make_registry() -> CollectorRegistry:
    """A registry with the process's CPU time, memory and open files, and the version."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(BuildInfo())
    return registry


class RequestMeter:
    """ASGI middleware: counts requests and their seconds by method and route template.

    The time is until the response is sent whole. A request whose handler raises counts as a 500.
    """

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self._app = app
        self._requests = Counter(
            "preceptor_http_requests", "Requests answered.", ("method", "route", "status"), registry=registry
        )
        self._seconds = Histogram(
            "preceptor_http_request_seconds",
            "From a request's first byte to its answer's last.",
            ("method", "route"),
            buckets=REQUEST_SECONDS,
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == PATH:
            await self._app(scope, receive, send)
            return
        outer_root = scope.get("root_path", "")
        watch = StatusWatch(send)
        began = time.perf_counter()
        try:
            await self._app(scope, receive, watch)
        finally:
            status = watch.status or 500  # it raised before it answered
            method = scope["method"] if scope["method"] in METHODS else "other"
            route = name_route(scope, outer_root)
            self._requests.labels(method, route, str(status)).inc()
            self._seconds.labels(method, route).observe(time.perf_counter() - began)


def name_route(scope: Scope, outer_root: str = "") -> str:
    """The template of the route that took the request, the mount for mounted files, `unmatched` for none.

    A route of a router that was included under a prefix knows its own part only; the prefix is what stands before it.
    """
    mount = scope.get("root_path", "").removeprefix(outer_root)
    route = scope.get("route")
    if not isinstance(route, Route):
        return mount or UNMATCHED
    path: str = scope["path"]
    starts = (place for place, letter in enumerate(path) if letter == "/" and route.path_regex.match(path[place:]))
    return path[: next(starts, 0)] + route.path


def install(app: FastAPI, registry: CollectorRegistry, key: str) -> None:
    """Count the app's requests and serve the registry at /metrics. An empty key: to this machine only."""
    app.add_middleware(RequestMeter, registry=registry)
    app.add_route(PATH, _make_endpoint(registry, key), include_in_schema=False)


class MetricsServer:
    """/metrics alone on a port of its own, for processes that serve nothing else; runs in a thread."""

    def __init__(self, registry: CollectorRegistry, listen: str, key: str) -> None:
        """listen: `HOST:PORT`, IPv6 addresses in brackets. Raises OSError when the port cannot be had."""
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
    def show(request: Request) -> Response:
        """Every figure, in Prometheus' text format. Errors: 403 from elsewhere without the key."""
        if not may_scrape(request, key):
            return PlainTextResponse("from another machine the key of PRECEPTOR_METRICS_KEY is needed\n", 403)
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return show


def may_scrape(request: Request, key: str) -> bool:
    """Whether the caller is on this machine, or has the key."""
    given = request.headers.get("authorization", "").encode()
    if key and hmac.compare_digest(given, f"Bearer {key}".encode()):
        return True
    return request.client is not None and is_loopback(request.client.host)


def is_loopback(host: str) -> bool:
    """Whether this is an address of this machine only."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
