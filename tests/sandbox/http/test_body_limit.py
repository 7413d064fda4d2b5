"""The body limit that all servers share."""

import asyncio
from collections.abc import Iterator

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Message

from sandbox.http.body_limit import BodyLimit
from sandbox.http.problems import Problem
from sandbox.inside.json_bounds import MAX_CONTAINERS
from tests.serving import serve

MAX_BYTES = 4 * MAX_CONTAINERS
MANY_ARRAYS = b"[" + b"[]," * (MAX_CONTAINERS + 1) + b"0]"


async def count(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


@pytest.fixture
def url() -> Iterator[str]:
    app = Starlette()
    app.add_route("/", count, methods=["POST"])
    app.add_middleware(BodyLimit, max_bytes=MAX_BYTES, hint="Send less.")
    with serve(app) as where:
        yield where


def in_pieces(body: bytes) -> Iterator[bytes]:
    return (body[start : start + 65_536] for start in range(0, len(body), 65_536))


def test_a_body_at_the_limit_arrives_whole_whether_its_length_is_announced_or_not(url: str) -> None:
    body = b"x" * MAX_BYTES
    assert httpx2.post(url, content=body, timeout=None).text == str(MAX_BYTES)
    assert httpx2.post(url, content=in_pieces(body), timeout=None).text == str(MAX_BYTES)


def test_one_byte_more_is_a_problem_whether_its_length_is_announced_or_not(url: str) -> None:
    body = b"x" * (MAX_BYTES + 1)
    for answer in (
        httpx2.post(url, content=body, timeout=None),
        httpx2.post(url, content=in_pieces(body), timeout=None),
    ):
        problem = Problem.model_validate_json(answer.content)
        assert (answer.status_code, problem.status, problem.hint) == (413, 413, "Send less.")
        assert f"{MAX_BYTES:,}" in problem.detail
        assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("declared", ["application/json", "text/plain", ""])
def test_very_many_values_are_refused_whatever_the_body_is_called(url: str, declared: str) -> None:
    answer = httpx2.post(url, content=MANY_ARRAYS, headers={"Content-Type": declared}, timeout=None)
    assert answer.status_code == 413
    assert "arrays and objects" in Problem.model_validate_json(answer.content).detail


@pytest.mark.parametrize("declared", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_brackets_in_a_form_are_text(url: str, declared: str) -> None:
    answer = httpx2.post(url, content=MANY_ARRAYS, headers={"Content-Type": declared}, timeout=None)
    assert answer.text == str(len(MANY_ARRAYS))


def test_a_caller_that_hangs_up_within_its_body_is_not_passed_on() -> None:
    came: list[Message] = [{"type": "http.request", "body": b"[", "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> Message:
        return came.pop(0)

    async def fail(*_: object) -> None:
        raise AssertionError("passed on, or answered")

    asyncio.run(BodyLimit(fail, 10)({"type": "http", "path": "/", "headers": []}, receive, fail))
    assert came == []
