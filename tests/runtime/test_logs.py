"""Lines of logs as a collector gets them: one JSON object each, the same ids everywhere, no values of locals."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from services.contracts.base import JsonObject

REPOSITORY: Final = Path(__file__).parents[2]
SECRET: Final = "not-to-be-seen"  # noqa: S105


def log(program: str, log_format: str) -> list[str]:
    """What a process prints that set its logging up and then ran the program."""
    head = (
        "import logging, structlog\nfrom services.runtime import logs\n"
        "logs.configure()\nlog = structlog.get_logger('mine')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", head + program],
        cwd=REPOSITORY,
        env={**os.environ, "PRECEPTOR_LOG_FORMAT": log_format},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def as_json(program: str) -> list[JsonObject]:
    return [json.loads(line) for line in log(program, "json")]


def test_an_event_is_one_object_with_its_time_level_and_ids() -> None:
    (line,) = as_json("log.info('lesson used', rollout_id='r', update=3)")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", str(line.pop("timestamp")))
    assert line == {"level": "info", "event": "lesson used", "logger": "mine", "rollout_id": "r", "update": 3}


def test_what_libraries_log_goes_the_same_way() -> None:
    (line,) = as_json("logging.getLogger('kombu').warning('away for %d s', 3)")
    assert (line["event"], line["logger"], line["level"]) == ("away for 3 s", "kombu", "warning")


def test_a_request_is_logged_in_fields_without_its_query_and_those_of_machines_are_not() -> None:
    program = (
        "import asyncio\n"
        "from sandbox.http.access_log import LogRequests\n"
        "async def app(scope, receive, send): await send({'type': 'http.response.start', 'status': 200})\n"
        "async def drop(message): pass\n"
        "for path in ('/v1/rollouts/r', '/healthz', '/metrics'):\n"
        "  scope = {'type': 'http', 'method': 'GET', 'path': path, 'query_string': b'token=x', 'headers': []}\n"
        "  asyncio.run(LogRequests(app)({**scope, 'client': ('1.2.3.4', 5)}, None, drop))\n"
    )
    (line,) = as_json(program)
    assert (line["event"], line["method"], line["path"], line["status"]) == ("request", "GET", "/v1/rollouts/r", 200)
    assert line["client"] == "1.2.3.4:5"


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_a_traceback_shows_no_values(log_format: str) -> None:
    program = f"def fail():\n  key = ''.join({list(SECRET)!r})\n  return 1 / 0\n"
    program += "try:\n  fail()\nexcept ZeroDivisionError:\n  log.exception('bad')\n  logging.exception('worse')\n"
    said = "\n".join(log(program, log_format))
    assert said.count("ZeroDivisionError: division by zero") == 2
    assert SECRET not in said


def test_lines_for_people_have_the_same_ids() -> None:
    (line,) = log("log.info('rollout drawn', rollout_id='r-1', version='v2')", "text")
    assert re.search(r"\[info +\] rollout drawn +\[mine\] rollout_id=r-1 version=v2$", line)


def test_what_a_caller_sent_along_is_in_every_line_of_its_request() -> None:
    program = (
        "import asyncio\n"
        "async def app(scope, receive, send): log.info('scored')\n"
        "async def call(headers):\n"
        "  await logs.BindRequestId(app)({'type': 'http', 'headers': headers}, None, None)\n"
        "asyncio.run(call([(b'x-request-id', b'c-1')])); asyncio.run(call([]))\n"
    )
    assert [line.get("request_id") for line in as_json(program)] == ["c-1", None]


@pytest.mark.parametrize("log_format", ["json", "text"])
@pytest.mark.parametrize("end", ["\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\x1b[2K", "\u202e"])
def test_what_a_caller_writes_never_begins_a_line(log_format: str, end: str) -> None:
    forged = f"a{end}2026-01-01T00:00:00Z [info] forged"
    program = (
        f"forged = {forged!r}\n"
        "log.info('one', request_id=forged)\n"
        "log.info(forged)\n"
        "log.info('three', reason=ValueError(forged), many={'a': forged})\n"
        "logging.getLogger('uvicorn.error').warning('four %s', forged)\n"
        "try: raise ValueError(forged)\nexcept ValueError: log.exception('five')\n"
    )
    lines = [line for line in log(program, log_format) if not line.startswith("  ")]
    assert len(lines) == 5
    assert all(line.isprintable() for line in lines)
    assert not any(line.startswith("2026-01-01") for line in lines)
