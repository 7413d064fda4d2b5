"""Places follow from ids; headers are W3C's; nothing of the SDK is loaded while traces are off."""

import subprocess
import sys
from uuid import UUID

import pytest

from services.contracts.ids import new_id
from services.runtime.tracing import NoTracing, TracingMissing, open_tracing, place_of, read_traceparent

GROUP = UUID("01a202fb-4945-710c-b9bf-eb2c9dc05be9")
ROLLOUT = UUID("01a202fb-4946-7abc-8def-0123456789ab")


def test_a_trace_is_its_groups_uuid_and_a_span_its_rows_random_half() -> None:
    place = place_of(GROUP, ROLLOUT)
    assert place.traceparent == "00-01a202fb4945710cb9bfeb2c9dc05be9-8def0123456789ab-01"


def test_a_header_reads_back_as_the_place_it_was_written_for() -> None:
    place = place_of(new_id(), new_id()).make_child()
    assert read_traceparent(place.traceparent) == place


@pytest.mark.parametrize(
    "header",
    ["", "garbage", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "00-" + "1" * 32 + "-" + "0" * 16 + "-01", "01-a-b-c"],
)
def test_a_header_that_names_no_place_is_none(header: str) -> None:
    assert read_traceparent(header) is None


def test_rows_made_together_have_spans_of_their_own() -> None:
    ids = [new_id() for _ in range(1000)]
    assert len({place_of(ids[0], one).span_id for one in ids}) == 1000


def test_without_a_collector_nothing_is_recorded_and_no_sdk_is_loaded() -> None:
    assert isinstance(open_tracing("", "worker"), NoTracing)
    asked = (
        "import sys, services.runtime.tracing as t; t.open_tracing('', 'x'); print('opentelemetry.sdk' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "False"


def test_a_collector_without_what_sends_to_it_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "services.runtime.tracing_sdk", None)
    with pytest.raises(TracingMissing, match=r"http://127\.0\.0\.1:4318"):
        open_tracing("http://127.0.0.1:4318", "of a test")
