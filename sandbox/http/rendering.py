"""Problem documents as responses and in OpenAPI documents, and the handlers that every server of ours installs."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.models import Schema
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from sandbox.http.problems import MAX_TEXT_CHARS, MEDIA_TYPE, TYPE_PREFIX, Problem, describe_invalid, shorten

COMPONENTS: Final = "#/components/schemas/{model}"
ROUTES_HINT: Final = "GET /openapi.json lists every route with its methods."


class DocumentedApp(FastAPI):
    """An app whose OpenAPI document has, among its components, the problem document and the bodies that routes read
    by themselves; `document` and `body_of` refer to them there."""

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
    """Problem documents with these statuses, for FastAPI's `responses=`."""
    content = {MEDIA_TYPE: {"schema": {"$ref": COMPONENTS.format(model=Problem.__name__)}}}
    return {status: {"description": meaning, "content": content} for status, meaning in meanings.items()}


def body_of(contract: type[BaseModel]) -> dict[str, Any]:
    """A body that a route reads by itself, for FastAPI's `openapi_extra=`."""
    content = {"application/json": {"schema": {"$ref": COMPONENTS.format(model=contract.__name__)}}}
    return {"requestBody": {"required": True, "content": content}}


def render(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """The problem as a response."""
    body = problem.model_dump_json(exclude_defaults=True)
    return Response(body, problem.status, dict(headers or {}), media_type=MEDIA_TYPE)


def install(app: FastAPI, server: str) -> None:
    """Render invalid requests, refusals of the framework and unexpected exceptions as problem documents.

    server: the subject of a sentence about a fault, e.g. `the sandbox`.
    """

    def on_fault(_: Request, error: Exception) -> Response:
        # named, not quoted: its text may hold a caller's secrets
        detail = f"{server} failed with {type(error).__name__}; its log has the cause"
        return render(Problem(type=TYPE_PREFIX + "fault", title="Internal error", status=500, detail=detail))

    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_fault)


def on_invalid(request: Request, error: Exception) -> Response:
    """The handler of requests that do not fit their contract."""
    assert isinstance(error, RequestValidationError)
    return render(describe_invalid(error.errors(), request.url.path))


def on_http_error(request: Request, error: Exception) -> Response:
    """The handler of refusals by the framework itself: unknown paths and methods, unreadable bodies."""
    assert isinstance(error, HTTPException)
    title = HTTPStatus(error.status_code).phrase
    detail = error.detail if error.detail != title else f"{request.method} {request.url.path}: {title.lower()}"
    problem = Problem(
        type="about:blank",
        title=title,
        status=error.status_code,
        detail=shorten(detail, MAX_TEXT_CHARS),
        hint=ROUTES_HINT if error.status_code in (404, 405) else "",
        instance=shorten(request.url.path, MAX_TEXT_CHARS),
    )
    return render(problem, error.headers)
