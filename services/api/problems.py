"""The api's problem documents, and faults under an id that the log has too."""

import re
import traceback
from uuid import uuid4

import structlog
from fastapi import FastAPI, Request, Response

from sandbox.http.problems import TYPE_PREFIX, Problem
from sandbox.http.rendering import render
from services.http import problems

log = structlog.get_logger(__name__)


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
        detail="Internal error; the request was not stored.",
        hint="The server's log has the cause under the id in `instance`.",
        instance=fault,
    )
    return render(problem)


def install(app: FastAPI) -> None:
    """Render every error of this app as a problem document."""
    problems.install(app, "the api")
    app.add_exception_handler(Exception, _on_fault)
