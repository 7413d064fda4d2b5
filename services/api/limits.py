"""Checks before a route: the size of bodies, strict JSON, known parameters, NUL in addresses."""

from collections.abc import Callable, Coroutine
from typing import Any, Final

from fastapi import Request, Response
from fastapi.dependencies.utils import get_flat_params
from fastapi.params import Query
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.types import ASGIApp, Receive, Scope, Send

from sandbox.http.body_limit import BodyLimit
from sandbox.http.problems import shorten
from services.contracts.base import Json
from services.contracts.strict_json import NotStrictJson, parse_json, read_contract
from services.http.json_bodies import MAX_SHOWN_CHARS, BodyNotJson, check_media_type
from services.http.problems import render_error
from services.runtime.errors import InvalidInput

MAX_BODY_BYTES: Final = 8 * 1024 * 1024
TOO_LARGE_HINT: Final = "Send imports in smaller batches; split or shorten a rollout of that size."


class AddressNotText(InvalidInput):
    """The path or query holds a NUL character."""

    title = "Address not acceptable"
    hint = "Leave NUL characters (%00) out of the path and the query."


class UnknownParameter(InvalidInput):
    """The query has an unknown parameter: a misspelt filter would return everything."""

    title = "Unknown parameter"
    hint = "GET /openapi.json has the parameters of every route."


class ParameterTwice(InvalidInput):
    """The query has a parameter more than once, so that it is unclear which one was meant."""

    title = "Parameter given twice"
    hint = "Give every parameter once; ask once for each value."


class RequestLimits:
    """ASGI middleware: passes on requests whose body is within limits and whose address is text."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = BodyLimit(app, MAX_BODY_BYTES, TOO_LARGE_HINT)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_http = scope["type"] == "http"
        if is_http and ("\0" in scope["path"] or b"%00" in scope["query_string"] or b"\0" in scope["query_string"]):
            await render_error(AddressNotText("the address holds a NUL character"))(scope, receive, send)
            return
        await self._app(scope, receive, send)


class StrictRequest(Request):
    """A request whose JSON is read strictly."""

    contract: type[BaseModel] | None = None
    """The contract into which the body is parsed directly, without JSON in between."""

    async def json(self) -> Json | BaseModel:
        """The body's value, or the contract that was read from it. Errors: BodyNotJson (422)."""
        if not hasattr(self, "_json"):
            data = await self.body()
            try:
                read = None if self.contract is None else read_contract(self.contract, data)
                self._json = parse_json(data) if read is None else read
            except NotStrictJson as error:
                raise BodyNotJson(f"invalid request body: {error}") from None
            except RecursionError:
                raise BodyNotJson("the body is nested too deeply") from None
        value: Json | BaseModel = self._json
        return value


class StrictRoute(APIRoute):
    """A route that reads its JSON strictly, and before anything else, so that the reason is ours."""

    def find_contract(self) -> type[BaseModel] | None:
        """The contract into which bodies are parsed directly; None unless a subclass has one."""
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
                check_media_type(checked.headers)
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
