"""Problem documents (RFC 9457) on the wire: from our errors to a response.

Nothing of a request is echoed but names and short excerpts: inputs may be huge, and may be secrets.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI
from fastapi.encoders import jsonable_encoder
from fastapi.openapi.models import Schema
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from services.contracts.base import JsonObject, Problem
from services.runtime.errors import PreceptorError

MEDIA_TYPE: Final = "application/problem+json"
MAX_ERRORS: Final = 50
MAX_DETAIL_CHARS: Final = 2000
MAX_TEXT_CHARS: Final = 500
TYPE_PREFIX: Final = "urn:preceptor:problem:"
COMPONENTS: Final = "#/components/schemas/{model}"


class DocumentedApp(FastAPI):
    """An app whose OpenAPI document has the problem document, and the bodies that routes read by themselves, among its
    components; `document` and `body_of` refer to them there."""

    def __init__(self, *, read_by_routes: Sequence[type[BaseModel]] = (), **settings: Any) -> None:
        super().__init__(**settings)
        self._extra: tuple[type[BaseModel], ...] = (Problem, *read_by_routes)

    def openapi(self) -> dict[str, Any]:
        """The document, made once. Raises ValueError where two contracts of one name differ."""
        made = super().openapi()
        schemas = made.setdefault("components", {}).setdefault("schemas", {})
        _, wanted = models_json_schema([(model, "validation") for model in self._extra], ref_template=COMPONENTS)
        for name, plain in wanted["$defs"].items():
            schema = jsonable_encoder(Schema(**plain), by_alias=True, exclude_none=True)  # as FastAPI writes its own
            if schemas.setdefault(name, schema) != schema:
                raise ValueError(f"two contracts are called {name}")
        return made


def document(meanings: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    """What a schema says of these statuses: a problem document each, for FastAPI's `responses=`."""
    content = {MEDIA_TYPE: {"schema": {"$ref": COMPONENTS.format(model=Problem.__name__)}}}
    return {status: {"description": meaning, "content": content} for status, meaning in meanings.items()}


def body_of(contract: type[BaseModel]) -> dict[str, Any]:
    """What a schema says of a body that a route reads by itself, for FastAPI's `openapi_extra=`."""
    content = {"application/json": {"schema": {"$ref": COMPONENTS.format(model=contract.__name__)}}}
    return {"requestBody": {"required": True, "content": content}}


def render(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """The problem as a response."""
    body = problem.model_dump_json(exclude_defaults=True)
    return Response(body, problem.status, dict(headers or {}), media_type=MEDIA_TYPE)


def render_error(error: PreceptorError, instance: str = "") -> Response:
    """One of our own errors as a response."""
    headers = {} if error.retry_after_seconds is None else {"Retry-After": str(error.retry_after_seconds)}
    if error.status_code == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return render(describe(error, instance), headers)


def describe(error: PreceptorError, instance: str = "") -> Problem:
    """One of our own errors as a problem document."""
    return Problem(
        type=TYPE_PREFIX + error.slug,
        title=error.title,
        status=error.status_code,
        detail=shorten(error.detail, MAX_DETAIL_CHARS),
        hint=error.hint,
        instance=shorten(instance, MAX_TEXT_CHARS),
        errors=list(error.errors[:MAX_ERRORS]),
    )


def on_preceptor_error(request: Request, error: Exception) -> Response:
    """The exception handler for PreceptorError that every service of ours installs."""
    assert isinstance(error, PreceptorError)
    return render_error(error, request.url.path)


def on_http_error(request: Request, error: Exception) -> Response:
    """The exception handler for what the framework itself refuses: unknown paths and methods, unreadable bodies."""
    assert isinstance(error, HTTPException)
    title = HTTPStatus(error.status_code).phrase
    problem = Problem(
        type="about:blank",
        title=title,
        status=error.status_code,
        detail=shorten(str(error.detail), MAX_TEXT_CHARS),
        instance=shorten(request.url.path, MAX_TEXT_CHARS),
    )
    return render(problem, error.headers)


def describe_errors(errors: Sequence[ErrorDetails]) -> list[JsonObject]:
    """Validation errors as {where, what}, without the values that were sent."""
    return [
        {
            "where": shorten(".".join(str(part) for part in error["loc"]), MAX_TEXT_CHARS),
            "what": shorten(error["msg"].removeprefix("Value error, "), MAX_TEXT_CHARS),
        }
        for error in errors[:MAX_ERRORS]
    ]


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters of a text, with a mark where it was cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
