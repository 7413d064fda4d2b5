"""Requests by route for Prometheus, and who may read `/metrics`.

Labels come from closed sets (methods of HTTP, routes as templates, statuses), so that a caller cannot make series.
"""

import hmac
import time
from collections.abc import Iterable
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sandbox.http.loopback import is_loopback
from sandbox.http.watching import StatusWatch

PATH: Final = "/metrics"
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNMATCHED: Final = "unmatched"
REQUEST_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)
"""Upper edges of the histogram: from a read by id to a draw that waits for the policy's batch."""


class RequestMeter:
    """ASGI middleware: counts requests and their seconds by method and route template.

    The time ends when the response is sent whole. A request whose handler raises counts as a 500.
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
            method = scope["method"] if scope["method"] in METHODS else "other"
            route = name_route(scope, outer_root)
            self._requests.labels(method, route, str(watch.status)).inc()
            self._seconds.labels(method, route).observe(time.perf_counter() - began)


def name_route(scope: Scope, outer_root: str = "") -> str:
    """The template of the route that took the request, the mount for mounted files, `unmatched` for none.

    A route of a router that was included under a prefix knows its own part only; the prefix stands before it.
    """
    mount = scope.get("root_path", "").removeprefix(outer_root)
    route = scope.get("route")
    if not isinstance(route, Route):
        return mount or UNMATCHED
    path: str = scope["path"]
    starts = (place for place, letter in enumerate(path) if letter == "/" and route.path_regex.match(path[place:]))
    return path[: next(starts, 0)] + route.path


def show(registry: CollectorRegistry) -> Response:
    """Every figure, in Prometheus' text format."""
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def may_scrape(scope: Scope, keys: Iterable[bytes]) -> bool:
    """Whether the caller is on this machine, or sends one of these values of the header `Authorization`."""
    client = scope.get("client")
    if client is not None and is_loopback(client[0]):
        return True
    given = Headers(scope=scope).get("authorization", "").encode()
    return any(hmac.compare_digest(given, key) for key in keys)
