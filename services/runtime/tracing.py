"""Traces from a draw to the update it shaped, through OpenTelemetry's API; nothing is recorded without a collector.

Context needs no columns and no messages: it follows from ids. A group's UUID *is* the trace's id (16 bytes both), and
the last eight bytes of a row's UUID, which are random, are the id of its span. So a worker, an expert and a trainer
that never met write into one trace:

    trace GROUP:   group ─ rollout ─ consultation ─ (over HTTP: traceparent) expert
                              └───── lesson ┄┄ link ┄┄ update
    trace UPDATE:  update, linked with every lesson it used

Requests between processes are traced by OpenTelemetry's own instrumentations; the SDK is loaded by collector.py alone.
"""

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final
from uuid import UUID

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    NoOpTracerProvider,
    SpanContext,
    TraceFlags,
    TracerProvider,
    set_span_in_context,
)

from services.runtime.version import VERSION

if TYPE_CHECKING:
    import aiohttp
    from fastapi import FastAPI

SCOPE: Final = "preceptor"
Attribute = str | int | float | bool

next_place: Final[ContextVar[SpanContext | None]] = ContextVar("next_place", default=None)
"""The place of the span that is being started, where a row decides it."""


class Tracing:
    """Traces that go nowhere; subclasses send them. No method raises or waits, but `flush` for seconds."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self.tracer = (provider or NoOpTracerProvider()).get_tracer(SCOPE, VERSION)

    def watch_app(self, app: "FastAPI") -> None:
        """Trace the requests that this app answers."""

    def watch_client(self) -> "list[aiohttp.TraceConfig]":
        """For a client session that is to trace its requests, and to name them to whom it asks."""
        return []

    def flush(self) -> None:
        """Send the spans that have ended, within seconds."""

    def record(
        self,
        name: str,
        place: SpanContext,
        *,
        began: int,
        ended: int,
        parent: SpanContext | None = None,
        attributes: Mapping[str, Attribute],
        links: Sequence[SpanContext] = (),
    ) -> None:
        """Record the span of a row, which has ended. Times in nanoseconds since 1970."""
        token = next_place.set(place)
        try:
            span = self.tracer.start_span(
                name,
                Context() if parent is None else within(parent),
                attributes=attributes,
                links=[Link(one) for one in links],
                start_time=began,
            )
        finally:
            next_place.reset(token)
        span.end(ended)


def place_of(trace: UUID, row: UUID) -> SpanContext:
    """The place of a row's span in the trace of a group or update."""
    return SpanContext(
        trace.int, int.from_bytes(row.bytes[8:]), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)
    )


def within(place: SpanContext) -> Context:
    """The context of spans whose parent is at this place."""
    return set_span_in_context(NonRecordingSpan(place), Context())
