"""Chooses where the spans of a process go: to the collector that the settings name, or nowhere."""

from functools import cache

from services.runtime.errors import InvalidInput
from services.runtime.tracing import Tracing


class TracingMissing(InvalidInput):
    """A collector is named, but the packages that send spans are not installed."""

    title = "Traces cannot be sent"
    hint = "Install it: `pip install 'preceptor[otel]'`, or name no collector (PRECEPTOR_OTLP_ENDPOINT)."


@cache
def open_tracing(endpoint: str, service: str) -> Tracing:
    """The tracing of this process: to the collector at `endpoint` (OTLP over HTTP), nowhere when it is empty.

    The standard OTEL_* variables for headers, timeouts and resource attributes hold. One per process and endpoint.
    """
    if not endpoint:
        return Tracing()
    try:
        from services.runtime.tracing_sdk import CollectorTracing
    except ModuleNotFoundError as error:
        raise TracingMissing(f"traces are to go to {endpoint}, and {error.name} is not installed") from None
    return CollectorTracing(endpoint, f"preceptor-{service}")
