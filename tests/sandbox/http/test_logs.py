"""A line for each request, which nothing that a caller writes can end or imitate."""

import asyncio
import json
import logging
from collections.abc import Iterator

import pytest
from starlette.types import Receive, Scope, Send

from sandbox.http import access_log
from sandbox.http.access_log import LogRequests
from sandbox.http.logs import LogFormat, configure


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level


async def fail(scope: Scope, receive: Receive, send: Send) -> None:
    raise ValueError(scope["path"])


def log_request(path: str, request_id: str) -> None:
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "headers": [(b"x-request-id", request_id.encode("latin-1"))],
    }
    try:
        asyncio.run(LogRequests(fail)(scope, None, None))  # type: ignore[arg-type]
    except ValueError:
        access_log.log.exception("failed")


@pytest.mark.parametrize("end", ["\n", "\r", "\x0b", "\x1c", "\x85", "\u2028", "\x1b[2K", "\u202e", "\ud800"])
def test_no_path_and_no_header_ends_its_line(capsys: pytest.CaptureFixture[str], end: str) -> None:
    configure(LogFormat.TEXT)
    log_request(f"/a{end}2026-01-01T00:00:00Z [info] request method=GET", f"b\x85c {end if ord(end[0]) < 256 else ''}")
    request, failed, *trace = capsys.readouterr().out.splitlines()
    assert 'request logger=access method=GET path="/a' in request
    assert "failed" in failed
    assert request.isprintable()
    assert trace
    assert all(line.startswith("  ") and line.isprintable() for line in trace)
    configure(LogFormat.JSON)
    log_request(f"/a{end}b", "c")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert json.loads(lines[0])["path"] == f"/a{end}b"


def test_a_field_cannot_be_taken_for_several(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogFormat.TEXT)
    log_request("/x status=200", "1")
    assert 'path="/x status=200" status=500' in capsys.readouterr().out
