"""One line per request on the standard logger, and text that cannot end a line."""

import json
import logging
import time
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sandbox.http.watching import StatusWatch

MAX_PATH_CHARS: Final = 200
REQUEST_ID: Final = "X-Request-Id"
MAX_REQUEST_ID: Final = 100
UNLOGGED_PATHS: Final = ("/healthz", "/metrics")
"""Machines ask for them every few seconds."""

log = logging.getLogger("access")


class LogRequests:
    """ASGI middleware: logs a request once it is answered, with the id its caller sent and without its query.

    The fields of the line are in the record's attribute `fields`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNLOGGED_PATHS:
            await self._app(scope, receive, send)
            return
        began, watch = time.monotonic(), StatusWatch(send)
        try:
            await self._app(scope, receive, watch)
        finally:
            fields = {"method": scope["method"], "path": scope["path"][:MAX_PATH_CHARS], "status": watch.status}
            if client := scope.get("client"):
                fields["client"] = f"{client[0]}:{client[1]}"
            if request_id := find_request_id(scope):
                fields["request_id"] = request_id
            log.info("request", extra={"fields": fields | {"seconds": round(time.monotonic() - began, 3)}})


def find_request_id(scope: Scope) -> str | None:
    """The id that a request's caller sent along, cut to MAX_REQUEST_ID characters."""
    given = Headers(scope=scope).get(REQUEST_ID)
    return given and given[:MAX_REQUEST_ID]


def escape(text: str) -> str:
    """The text without what could end its line or control a terminal: JSON's escapes stand for such characters."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)
