"""Traces from a draw to the update it shaped, in OpenTelemetry's protocol; off unless the settings name a collector.

Context needs no columns and no messages: it follows from ids. A group's UUID *is* the trace's id (16 bytes both), and
the last eight bytes of a row's UUID, which are random, are the id of its span. So a worker, an expert and a trainer
that never met write into one trace:

    trace GROUP:   group ─ rollout ─ consultation ─ (over HTTP: traceparent) expert
                              └───── lesson ┄┄ link ┄┄ update
    trace UPDATE:  update, linked with every lesson it used

Spans are recorded when they are over. The SDK is imported only where traces are on.
"""

import atexit
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Final, Protocol
from uuid import UUID

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sandbox.http.watching import StatusWatch
from services.runtime.errors import InvalidInput
from services.runtime.version import VERSION

_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
Attribute = str | int | float | bool


class Kind(StrEnum):
    """Which side of a conversation a span is."""

    INTERNAL = "INTERNAL"
    CLIENT = "CLIENT"
    SERVER = "SERVER"


@dataclass(frozen=True)
class Place:
    """Where a span stands: its trace's id (16 bytes) and its own (8 bytes)."""

    trace_id: int
    span_id: int

    @property
    def traceparent(self) -> str:
        """As W3C's header carries it, sampled."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-01"

    def make_child(self) -> "Place":
        """A new place in the same trace."""
        return Place(self.trace_id, secrets.randbits(64) or 1)


@dataclass(frozen=True)
class Span:
    """Something that is over. Times in nanoseconds since 1970; failed: why, None when it did not."""

    name: str
    place: Place
    began: int
    ended: int
    parent: Place | None = None
    kind: Kind = Kind.INTERNAL
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    links: Sequence[Place] = ()
    failed: str | None = None


def place_of(trace: UUID, row: UUID) -> Place:
    """The place of a row's span in the trace of a group or update."""
    return Place(trace.int, int.from_bytes(row.bytes[8:]))


def read_traceparent(header: str) -> Place | None:
    """The place a caller names; None for anything that is not W3C's version 00."""
    found = _TRACEPARENT.fullmatch(header.strip())
    if found is None or int(found[1], 16) == 0 or int(found[2], 16) == 0:
        return None
    return Place(int(found[1], 16), int(found[2], 16))


class Tracing(Protocol):
    """Where spans go. Neither raises nor waits."""

    @property
    def is_on(self) -> bool:
        """Whether it is worth making spans."""
        ...

    def record(self, *spans: Span) -> None:
        """Take these spans; they are sent in the background."""
        ...

    def flush(self) -> None:
        """Send what was recorded so far, within seconds."""
        ...


class NoTracing:
    """Traces are off."""

    is_on = False

    def record(self, *spans: Span) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""


class TracingMissing(InvalidInput):
    """A collector is named, and what would send it spans is not installed."""

    title = "Traces cannot be sent"
    hint = "Install it: `pip install 'preceptor[otel]'`, or name no collector (PRECEPTOR_OTLP_ENDPOINT)."


@cache
def open_tracing(endpoint: str, service: str) -> Tracing:
    """Where the spans of this process go: to the collector at `endpoint` (OTLP over HTTP), nowhere when it is empty.

    The standard OTEL_* variables for headers, timeouts and resource attributes hold. One a process and endpoint.
    """
    if not endpoint:
        return NoTracing()
    try:
        from services.runtime.tracing_sdk import CollectorTracing
    except ModuleNotFoundError as error:
        raise TracingMissing(f"traces are to go to {endpoint}, and {error.name} is not installed") from None
    tracing = CollectorTracing(endpoint, f"preceptor-{service}", VERSION)
    atexit.register(tracing.flush)
    return tracing


class TraceRequests:
    """ASGI middleware: a span for every request that carries a traceparent, as a child of its caller's."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        parent = read_traceparent(Headers(scope=scope).get("traceparent", "")) if scope["type"] == "http" else None
        if parent is None:
            await self._app(scope, receive, send)
            return
        watch = StatusWatch(send)
        began = time.time_ns()
        try:
            await self._app(scope, receive, watch)
        finally:
            status = watch.status or 500  # it raised before it answered
            self._tracing.record(
                Span(
                    name=f"{scope['method']} {scope['path'][:200]}",
                    place=parent.make_child(),
                    parent=parent,
                    began=began,
                    ended=time.time_ns(),
                    kind=Kind.SERVER,
                    attributes={"http.response.status_code": status},
                    failed=f"status {status}" if status >= 500 else None,
                )
            )
