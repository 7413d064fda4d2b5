"""Renders errors of ours as problem documents (RFC 9457)."""

from http import HTTPStatus

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from sandbox.http import rendering
from sandbox.http.problems import MAX_DETAIL_CHARS, MAX_ERRORS, MAX_TEXT_CHARS, TYPE_PREFIX, Problem, shorten
from sandbox.http.rendering import render
from services.runtime.errors import PreceptorError


def install(app: FastAPI, server: str) -> None:
    """Render every error of this app as a problem document.

    server: the subject of a sentence about a fault, e.g. `the policy`.
    """
    rendering.install(app, server)
    app.add_exception_handler(PreceptorError, on_preceptor_error)


def on_preceptor_error(request: Request, error: Exception) -> Response:
    """The handler of PreceptorError."""
    assert isinstance(error, PreceptorError)
    return render_error(error, request.url.path)


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
