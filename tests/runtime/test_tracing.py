"""Places follow from ids; nothing of the SDK is loaded while traces are off, and no process needs it."""

import subprocess
import sys
from uuid import UUID

import pytest
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.contracts.ids import new_id
from services.runtime.collector import TracingMissing, open_tracing
from services.runtime.tracing import Tracing, place_of, within

GROUP = UUID("01a202fb-4945-710c-b9bf-eb2c9dc05be9")
ROLLOUT = UUID("01a202fb-4946-7abc-8def-0123456789ab")
PROCESSES = "services.experts.__main__, services.jobs.runtime, trainer.loop.train, services.web.app"


def test_a_trace_is_its_groups_uuid_and_a_span_its_rows_random_half() -> None:
    sent: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(sent, within(place_of(GROUP, ROLLOUT)))
    assert sent["traceparent"] == "00-01a202fb4945710cb9bfeb2c9dc05be9-8def0123456789ab-01"


def test_rows_made_together_have_spans_of_their_own() -> None:
    ids = [new_id() for _ in range(1000)]
    assert len({place_of(ids[0], one).span_id for one in ids}) == 1000


def test_without_a_collector_nothing_is_recorded_and_no_sdk_is_loaded() -> None:
    tracing = open_tracing("", "worker")
    assert type(tracing) is Tracing
    assert not tracing.tracer.start_span("rollout").is_recording()
    assert tracing.watch_client() == []
    asked = (
        "import sys, services.runtime.collector as c; c.open_tracing('', 'x');"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.instr'))])"
    )
    said = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


def test_every_process_starts_without_the_packages_that_send_spans() -> None:
    program = (
        "import sys\n"
        "for name in ('sdk', 'exporter', 'instrumentation'): sys.modules[f'opentelemetry.{name}'] = None\n"
        f"import {PROCESSES}\n"
        "from services.runtime.collector import open_tracing\n"
        "open_tracing('', 'worker').flush()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_collector_without_what_sends_to_it_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "services.runtime.tracing_sdk", None)
    with pytest.raises(TracingMissing, match=r"http://127\.0\.0\.1:4318"):
        open_tracing("http://127.0.0.1:4318", "of a test")
