"""Every error of the api as a problem document that says what is wrong with this request and what to do about it."""

import re
import traceback
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final
from uuid import uuid4

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from services.contracts.base import JsonObject, Problem
from services.http.problems import MAX_TEXT_CHARS, TYPE_PREFIX, describe_errors, on_preceptor_error, render, shorten
from services.runtime.errors import InvalidInput, PreceptorError

HINTS: Final[Mapping[int, str]] = {
    404: "GET /openapi.json lists every route.",
    405: "GET /openapi.json lists every route with its methods.",
}

log = structlog.get_logger(__name__)


class RowsRefused(InvalidInput):
    """Some parts of the request are wrong; `errors` says which and why. Nothing was stored."""

    title = "Some rows cannot be accepted"
    hint = "`errors` names the rows and what is wrong with each; mend them and send the whole batch again."

    def __init__(self, detail: str, errors: Sequence[JsonObject]) -> None:
        super().__init__(detail)
        self.errors = tuple(errors)


def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = describe_errors(error.errors())
    first = f"{errors[0]['where']}: {errors[0]['what']}" if errors else "the request does not fit its contract"
    more = f" (and {len(error.errors()) - 1} more)" if len(error.errors()) > 1 else ""
    problem = Problem(
        type=TYPE_PREFIX + "request-invalid",
        title="Invalid request",
        status=422,
        detail=first + more,
        hint="`errors` names every place that does not fit; GET /openapi.json has the contract. Nothing was stored.",
        instance=request.url.path,
        errors=errors,
    )
    return render(problem)


def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    title = HTTPStatus(error.status_code).phrase
    detail = error.detail if error.detail != title else f"{request.method} {request.url.path}: {title.lower()}"
    problem = Problem(
        type="about:blank",
        title=title,
        status=error.status_code,
        detail=shorten(detail, MAX_TEXT_CHARS),
        hint=HINTS.get(error.status_code, ""),
        instance=shorten(request.url.path, MAX_TEXT_CHARS),
    )
    return render(problem, error.headers)


def hide_rows(cause: str) -> str:
    """The text of an error without the row that Postgres quotes in it."""
    return re.sub(r"^DETAIL:.*?(?=\n\[SQL|\n\n|\Z)", "DETAIL: (hidden)", cause, flags=re.DOTALL | re.MULTILINE)


def _on_fault(request: Request, error: Exception) -> Response:
    fault = f"urn:uuid:{uuid4()}"
    # Formatted here and plainly: a renderer that shows local variables would write secrets into the log.
    cause = hide_rows("".join(traceback.format_exception(error)))
    log.error("request failed", fault=fault, method=request.method, path=request.url.path, exception=cause)
    problem = Problem(
        type=TYPE_PREFIX + "fault",
        title="Internal error",
        status=500,
        detail="The request met a fault of ours; nothing of it was stored.",
        hint="The server's log has the cause under the id in `instance`.",
        instance=fault,
    )
    return render(problem)


def install(app: FastAPI) -> None:
    """Render every error of this app as a problem document."""
    app.add_exception_handler(PreceptorError, on_preceptor_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_fault)
