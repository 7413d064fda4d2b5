"""Spans to a collector, with OpenTelemetry's SDK; imported only where traces are on."""

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from services.runtime.tracing import Place, Span

FLUSH_MILLISECONDS = 5_000


class CollectorTracing:
    """Sends spans in the background, in batches; what the collector does not take is dropped and logged by the SDK."""

    is_on = True

    def __init__(self, endpoint: str, service: str, version: str) -> None:
        """endpoint: the collector's base URL; traces go to `/v1/traces` below it."""
        self._resource = Resource.create({SERVICE_NAME: service, SERVICE_VERSION: version})
        self._scope = InstrumentationScope("preceptor", version)
        url = endpoint.rstrip("/")
        exporter = OTLPSpanExporter(endpoint=url if url.endswith("/v1/traces") else f"{url}/v1/traces")
        self._processor = BatchSpanProcessor(exporter)

    def record(self, *spans: Span) -> None:
        """Queue the spans; a full queue drops the oldest."""
        for span in spans:
            self._processor.on_end(self._convert(span))

    def flush(self) -> None:
        """Send what is queued."""
        self._processor.force_flush(FLUSH_MILLISECONDS)

    def _convert(self, span: Span) -> ReadableSpan:
        return ReadableSpan(
            name=span.name,
            context=_context(span.place, is_remote=False),
            parent=None if span.parent is None else _context(span.parent, is_remote=True),
            resource=self._resource,
            attributes=dict(span.attributes),
            links=[Link(_context(place, is_remote=True)) for place in span.links],
            kind=SpanKind[span.kind.value],
            status=Status(StatusCode.OK if span.failed is None else StatusCode.ERROR, span.failed),
            start_time=span.began,
            end_time=span.ended,
            instrumentation_scope=self._scope,
        )


def _context(place: Place, *, is_remote: bool) -> SpanContext:
    return SpanContext(place.trace_id, place.span_id, is_remote, TraceFlags(TraceFlags.SAMPLED))
