"""What is refused before a route sees it: bodies that are too large, bodies that are not strict JSON, NUL in addresses.

A body over the limit is refused at its Content-Length, or at the chunk that crosses the limit; what the client still
sends is thrown away for a moment, so that it can read the reason before the connection closes.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Final

from fastapi import Request, Response
from fastapi.dependencies.utils import get_flat_params
from fastapi.params import Query
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandbox.inside.json_bounds import JsonBounds, TooMuchJson
from services.contracts.base import Json
from services.contracts.strict_json import NotStrictJson, parse_json, read_contract
from services.http.problems import render_error, shorten
from services.runtime.errors import InvalidInput, PreceptorError

MAX_BODY_BYTES: Final = 8 * 1024 * 1024
LINGER_BYTES: Final = 64 * 1024 * 1024
LINGER_SECONDS: Final = 2.0
MAX_SHOWN_CHARS: Final = 100
JSON: Final = "application/json"


class BodyTooLarge(PreceptorError):
    """The body is larger than any that is accepted."""

    status_code = 413
    title = "Request body too large"
    hint = "Send imports in smaller batches; split or shorten a rollout of that size."


class BodyNotJson(InvalidInput):
    """The body is not JSON that can be kept."""

    title = "Not strict JSON"
    hint = "Send RFC 8259 JSON in UTF-8: no NaN or Infinity, no NUL characters, no lone surrogates, no key twice."


class WrongMediaType(PreceptorError):
    """The body was not declared as JSON."""

    status_code = 415
    title = "Unsupported media type"
    hint = "Send the header Content-Type: application/json."


class AddressNotText(InvalidInput):
    """The path or query holds a NUL character."""

    title = "Address not acceptable"
    hint = "Leave NUL characters (%00) out of the path and the query."


class UnknownParameter(InvalidInput):
    """The query has a parameter that the route does not know: a filter misspelt would filter nothing."""

    title = "Unknown parameter"
    hint = "GET /openapi.json has the parameters of every route."


class ParameterTwice(InvalidInput):
    """The query has a parameter more than once: which one was meant nobody can tell."""

    title = "Parameter given twice"
    hint = "Give every parameter once; ask once for each value."


class RequestLimits:
    """ASGI middleware: passes a request on with its body read whole, or answers what is wrong with it."""

    def __init__(self, app: ASGIApp, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._max = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if "\0" in scope["path"] or b"%00" in scope["query_string"] or b"\0" in scope["query_string"]:
            await render_error(AddressNotText("the address holds a NUL character"))(scope, receive, send)
            return
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._max:
            await self._refuse(self._too_large(f"the body has {int(declared):,} bytes"), scope, receive, send)
            return
        body, bounds = bytearray(), JsonBounds()
        is_json = _media_type(headers) == JSON
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            piece = message.get("body", b"")
            body += piece
            more = message.get("more_body", False)
            try:
                if is_json:
                    bounds.take(piece)
            except TooMuchJson as error:
                await self._refuse(BodyTooLarge(f"{error}: no more are read"), scope, receive, send)
                return
            if len(body) > self._max:
                await self._refuse(self._too_large("the body goes on"), scope, receive, send)
                return
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]
        await self._app(scope, lambda: _replay(whole, receive), send)

    def _too_large(self, what: str) -> BodyTooLarge:
        return BodyTooLarge(f"{what}; at most {self._max:,} bytes are accepted")

    async def _refuse(self, error: BodyTooLarge, scope: Scope, receive: Receive, send: Send) -> None:
        response = render_error(error, scope["path"])
        headers = [*response.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(_discard(receive), LINGER_SECONDS)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _media_type(headers: Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


async def _replay(whole: list[Message], receive: Receive) -> Message:
    return whole.pop() if whole else await receive()


async def _discard(receive: Receive) -> None:
    seen = 0
    while seen < LINGER_BYTES:
        message = await receive()
        seen += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return


class StrictRequest(Request):
    """A request whose JSON is read strictly."""

    contract: type[BaseModel] | None = None
    """What the body may be read as at once, without the JSON in between."""

    async def json(self) -> Json | BaseModel:
        """The body's value, or the contract that was read from it. Errors: BodyNotJson (422)."""
        if not hasattr(self, "_json"):
            data = await self.body()
            try:
                read = None if self.contract is None else read_contract(self.contract, data)
                self._json = parse_json(data) if read is None else read
            except NotStrictJson as error:
                raise BodyNotJson(f"the body is not acceptable: {error}") from None
            except RecursionError:
                raise BodyNotJson("the body is nested too deeply") from None
        value: Json | BaseModel = self._json
        return value


class StrictRoute(APIRoute):
    """A route that reads its JSON strictly, and before anything else, so that the reason is ours."""

    def find_contract(self) -> type[BaseModel] | None:
        """What bodies are read as at once: nothing, unless a subclass knows."""
        return None

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, behind the checks."""
        handle = super().get_route_handler()
        reads_body = self.body_field is not None
        contract = self.find_contract()
        known = {field.alias for field in get_flat_params(self.dependant) if isinstance(field.field_info, Query)}

        async def strict(request: Request) -> Response:
            checked = StrictRequest(request.scope, request.receive)
            checked.contract = contract
            if unknown := set(checked.query_params) - known:
                raise UnknownParameter(f"the query has no parameter {shorten(min(unknown), MAX_SHOWN_CHARS)!r}")
            if len(checked.query_params.multi_items()) != len(checked.query_params):  # no parameter of ours is a list
                raise ParameterTwice("the query has a parameter more than once")
            if reads_body and await checked.body():
                media_type = _media_type(checked.headers)
                if media_type != JSON:
                    raise WrongMediaType(f"the body is declared as {media_type[:100] or 'nothing'}")
                await checked.json()
            return await handle(checked)

        return strict


class ContractRoute(StrictRoute):
    """A strict route whose body is a contract without a field of free JSON: read three times as fast."""

    def find_contract(self) -> type[BaseModel] | None:
        """The contract of the route's body."""
        if self.body_field is None:
            return None
        contract = self.body_field.field_info.annotation
        assert isinstance(contract, type)
        assert issubclass(contract, BaseModel)
        return contract
