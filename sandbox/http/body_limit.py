"""Bounds the body of a request before an application sees it."""

import asyncio
import contextlib
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandbox.http.problems import MAX_TEXT_CHARS, TYPE_PREFIX, Problem, shorten
from sandbox.http.rendering import render
from sandbox.inside.json_bounds import JsonBounds, TooMuchJson

LINGER_BYTES: Final = 64 << 20
LINGER_SECONDS: Final = 2.0
"""For how long, and for how many bytes, the rest of a refused body is read: a caller that is still sending reads its
answer only then."""
FORMS: Final = ("application/x-www-form-urlencoded", "multipart/form-data")


class BodyTooLarge(Exception):
    """The message says what the limit is."""


class BodyLimit:
    """ASGI middleware: passes a request on with its whole body, or answers 413 and closes the connection.

    It counts the bytes, as announced and as they arrive, and the values of what may be JSON: all but forms.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, hint: str = "") -> None:
        """hint: what a caller can do about a body that is too large."""
        self._app = app
        self._max_bytes = max_bytes
        self._hint = hint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(Headers(scope=scope), receive)
        except BodyTooLarge as error:
            await self._refuse(str(error), scope, receive, send)
            return
        if body is not None:
            whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
            await self._app(scope, lambda: _replay(whole, receive), send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        """The body; None when the caller hung up before its end. Raises BodyTooLarge."""
        announced = headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            raise BodyTooLarge(f"the body has {int(announced):,} bytes; at most {self._max_bytes:,} are accepted")
        bounds = None if media_type(headers) in FORMS else JsonBounds()
        pieces: list[bytes] = []
        num_bytes, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            pieces.append(message.get("body", b""))
            more = message.get("more_body", False)
            num_bytes += len(pieces[-1])
            if num_bytes > self._max_bytes:
                raise BodyTooLarge(f"the body has more than the {self._max_bytes:,} bytes that are accepted")
            if bounds is not None:
                _count(bounds, pieces[-1])
        return b"".join(pieces)

    async def _refuse(self, detail: str, scope: Scope, receive: Receive, send: Send) -> None:
        problem = Problem(
            type=TYPE_PREFIX + "body-too-large",
            title="Request body too large",
            status=413,
            detail=detail,
            hint=self._hint,
            instance=shorten(scope["path"], MAX_TEXT_CHARS),
        )
        response = render(problem, {"Connection": "close"})
        await send({"type": "http.response.start", "status": 413, "headers": response.raw_headers})
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(_discard(receive), LINGER_SECONDS)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def media_type(headers: Headers) -> str:
    """The media type that a request declares, in lower case and without parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _count(bounds: JsonBounds, piece: bytes) -> None:
    try:
        bounds.take(piece)
    except TooMuchJson as error:
        raise BodyTooLarge(str(error)) from None


async def _replay(whole: list[Message], receive: Receive) -> Message:
    return whole.pop() if whole else await receive()


async def _discard(receive: Receive) -> None:
    seen = 0
    while seen < LINGER_BYTES:
        message = await receive()
        seen += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
