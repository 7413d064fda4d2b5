"""Spans to a collector, with OpenTelemetry's SDK and instrumentations; imported only where traces are on."""

from typing import Final

import aiohttp
from fastapi import FastAPI
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.aiohttp_client import create_trace_config
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

from sandbox.http.access_log import UNLOGGED_PATHS
from services.runtime.tracing import Tracing, next_place
from services.runtime.version import VERSION

FLUSH_MILLISECONDS: Final = 5_000
UNTRACED_URLS: Final = ",".join(f"{path}$" for path in UNLOGGED_PATHS)


class RowIds(RandomIdGenerator):
    """The ids of a row's span, where a row decides them; random ones otherwise."""

    def generate_trace_id(self) -> int:
        """The id of a new trace."""
        place = next_place.get()
        return super().generate_trace_id() if place is None else place.trace_id

    def generate_span_id(self) -> int:
        """The id of a new span."""
        place = next_place.get()
        return super().generate_span_id() if place is None else place.span_id


class CollectorTracing(Tracing):
    """Sends spans in the background, in batches; the SDK drops and logs those that the collector does not take."""

    def __init__(self, endpoint: str, service: str) -> None:
        """endpoint: the collector's base URL; traces go to `/v1/traces` below it."""
        self._provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: service, SERVICE_VERSION: VERSION}),
            id_generator=RowIds(),
            span_limits=SpanLimits(max_links=SpanLimits.UNSET),  # an update has one for each of its lessons
        )
        url = endpoint.rstrip("/")
        exporter = OTLPSpanExporter(endpoint=url if url.endswith("/v1/traces") else f"{url}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        super().__init__(self._provider)

    def watch_app(self, app: FastAPI) -> None:
        """Trace the requests that this app answers, but those of machines for its health and figures."""
        FastAPIInstrumentor.instrument_app(
            app,
            tracer_provider=self._provider,
            meter_provider=NoOpMeterProvider(),
            excluded_urls=UNTRACED_URLS,
            exclude_spans=["receive", "send"],
        )

    def watch_client(self) -> list[aiohttp.TraceConfig]:
        """For a client session that is to trace its requests, and to name them to whom it asks."""
        return [create_trace_config(tracer_provider=self._provider, meter_provider=NoOpMeterProvider())]

    def flush(self) -> None:
        """Send the spans that have ended."""
        self._provider.force_flush(FLUSH_MILLISECONDS)
