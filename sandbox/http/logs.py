"""How the server logs: one line an event on standard output, as key=value or as one JSON object a line.

A request is logged when it is answered, with the id its caller gave it in `X-Request-Id`. What a caller writes cannot
end its line; lines of a traceback begin with blanks. What runs print is never logged.
"""

import json
import logging
import re
import sys
import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sandbox.http.watching import StatusWatch

MAX_REQUEST_ID: Final = 100
UNLOGGED_PATHS: Final = ("/healthz", "/metrics")
"""Asked for every few seconds by machines."""

_NOT_PLAIN: Final = re.compile(r"[\s=\"\\]")

log = logging.getLogger("sandbox")


class LogFormat(StrEnum):
    """For people, or for collectors."""

    TEXT = "text"
    JSON = "json"


class _Formatter(logging.Formatter):
    def __init__(self, log_format: LogFormat) -> None:
        super().__init__()
        self._is_json = log_format is LogFormat.JSON

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if self._is_json:
            return _escape(json.dumps(fields, ensure_ascii=False))
        trace = str(fields.pop("exception", "")).splitlines()
        said = [str(fields.pop("timestamp")), f"[{fields.pop('level')}]", _escape(str(fields.pop("event")))]
        line = " ".join([*said, *(f"{name}={_quote(str(value))}" for name, value in fields.items())])
        return "\n".join([line, *(f"  {_escape(text)}" for text in trace)])


def _escape(text: str) -> str:
    """The text without what could end its line, or have a terminal do something: as JSON writes such characters."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)


def _quote(value: str) -> str:
    """The value so that it cannot be taken for several fields."""
    return _escape(json.dumps(value, ensure_ascii=False)) if _NOT_PLAIN.search(value) or not value else _escape(value)


def configure(log_format: LogFormat) -> None:
    """Set logging up, uvicorn's too; start it with `log_config=None`."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Formatter(log_format))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)


class LogRequests:
    """ASGI middleware: a line for each request but those for health and figures, when its answer is out."""

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
            fields = {"method": scope["method"], "path": scope["path"][:200], "status": watch.status or 0}
            if request_id := Headers(scope=scope).get("x-request-id"):
                fields["request_id"] = request_id[:MAX_REQUEST_ID]
            log.info("request", extra={"fields": fields | {"seconds": round(time.monotonic() - began, 3)}})
