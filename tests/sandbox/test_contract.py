"""What the contract accepts, and what it turns away before anything runs."""

import base64
import subprocess
import sys

import pytest
from pydantic import ValidationError

from sandbox.contract import BatchRequest, Limits, RunRequest


def test_file_bytes_travel_as_standard_base64() -> None:
    data = bytes(range(256))
    request = RunRequest(code="", files={"a/b.bin": data})
    text = request.model_dump_json()
    assert base64.b64encode(data).decode() in text
    assert RunRequest.model_validate_json(text) == request


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../up", "a/../../b", "a//b", ".", "a/.", "", "nul\0", "main.py", "main.py/x", "a/" * 9 + "b"],
)
def test_a_path_that_leaves_the_folder_or_hides_the_code_is_refused(path: str) -> None:
    with pytest.raises(ValidationError):
        RunRequest(code="", files={path: b""})


def test_a_path_that_is_file_and_folder_is_refused() -> None:
    with pytest.raises(ValidationError, match="both a file and a folder"):
        RunRequest(code="", files={"a": b"", "a/b": b""})


@pytest.mark.parametrize(
    "text",
    [
        '{"code": "", "files": {"a": "not base64!"}}',
        '{"code": "", "language": "perl"}',
        '{"code": "", "limits": {"wall_seconds": 1e9}}',
        '{"code": "", "limits": {"wall_seconds": NaN}}',
        '{"code": "", "limits": {"memory_bytes": 1}}',
        '{"code": "", "surprise": 1}',
        '{"code": "\\ud800"}',
        "{}",
    ],
)
def test_a_request_outside_the_contract_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        RunRequest.model_validate_json(text)


def test_a_batch_may_ask_for_so_much_output_and_no_more() -> None:
    run = RunRequest(code="", limits=Limits(output_bytes=1 << 20))
    BatchRequest(runs=(run,) * 8)
    BatchRequest(runs=(RunRequest(code=""),) * 64)
    with pytest.raises(ValidationError, match="bytes of output together"):
        BatchRequest(runs=(run,) * 9)


def test_too_many_bytes_of_files_are_refused() -> None:
    with pytest.raises(ValidationError, match="bytes together"):
        RunRequest(code="", files={str(n): bytes(1 << 20) for n in range(9)})


def test_limits_have_defaults_that_fit_a_unit_test() -> None:
    assert Limits() == Limits(
        wall_seconds=5, cpu_seconds=5, memory_bytes=256 << 20, output_bytes=64 << 10, processes=16
    )


def test_the_contract_loads_without_a_server_or_the_sandbox_itself() -> None:
    code = (
        "import sys, sandbox.contract\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'fastapi', 'uvicorn', 'services', 'torch'}, loaded\n"
        "assert [n for n in sys.modules if n.startswith('sandbox.')] == ['sandbox.contract']"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
