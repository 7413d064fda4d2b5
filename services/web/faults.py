"""Errors as pages for browsers, in the words of the problem document."""

from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from sandbox.http.problems import Problem
from services.runtime.errors import PreceptorError
from services.web import rendering
from services.web.security import add_headers
from services.web.visitors import LoginNeeded

API_PATHS: Final = ("/v1/", "/healthz", "/metrics", "/openapi.json")
Handler = Callable[[Request, Exception], Response]
AnyHandler = Callable[[Request, Any], Response | Awaitable[Response]]


def install(app: FastAPI) -> None:
    """Render the errors of pages as pages; those of the api stay problem documents."""
    for kind in (PreceptorError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _page_or(app.exception_handlers[kind]))


def wants_page(request: Request) -> bool:
    """Whether a browser asks for a page, not for the api."""
    return "text/html" in request.headers.get("accept", "") and not request.url.path.startswith(API_PATHS)


def _page_or(handle: AnyHandler) -> Handler:
    def respond(request: Request, error: Exception) -> Response:
        response = handle(request, error)
        assert isinstance(response, Response), "the api's handlers are not asynchronous"
        is_fragment = request.headers.get("hx-request") == "true"
        if not (wants_page(request) or is_fragment):
            return response
        if isinstance(error, LoginNeeded):
            return _send_to_login(request, is_fragment=is_fragment)
        problem = Problem.model_validate_json(bytes(response.body))
        if isinstance(error, HTTPException):
            problem = problem.model_copy(update={"hint": ""})  # it is about the api's routes
        html = rendering.render("fault-piece.html" if is_fragment else "fault.html", problem=problem)
        kept = {name: value for name, value in response.headers.items() if name in ("retry-after", "allow")}
        made = Response(html, problem.status, {**kept, "Cache-Control": "no-store"}, media_type="text/html")
        add_headers(made.headers)  # an internal error is rendered outside all middleware
        return made

    return respond


def _send_to_login(request: Request, *, is_fragment: bool) -> Response:
    """Redirect to the login page, which leads back here; a form is not sent again."""
    path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    after = f"?next={quote(path, safe='/')}" if request.method == "GET" and not is_fragment else ""
    if is_fragment:
        return Response(status_code=401, headers={"HX-Redirect": "/login", "Cache-Control": "no-store"})
    return Response(status_code=303, headers={"Location": f"/login{after}", "Cache-Control": "no-store"})
