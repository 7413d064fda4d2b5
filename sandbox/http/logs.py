"""The sandbox's log: one line per event on standard output, as key=value or as JSON.

Text of a caller cannot end its line; lines of a traceback begin with blanks. The output of runs is never logged.
"""

import json
import logging
import re
import sys
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from sandbox.http.access_log import escape

_NOT_PLAIN: Final = re.compile(r"[\s=\"\\]")


class LogFormat(StrEnum):
    """How lines are written: for people, or for collectors."""

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
            return escape(json.dumps(fields, ensure_ascii=False))
        trace = str(fields.pop("exception", "")).splitlines()
        said = [str(fields.pop("timestamp")), f"[{fields.pop('level')}]", escape(str(fields.pop("event")))]
        line = " ".join([*said, *(f"{name}={_quote(str(value))}" for name, value in fields.items())])
        return "\n".join([line, *(f"  {escape(text)}" for text in trace)])


def _quote(value: str) -> str:
    """The value, quoted where it could be read as several fields."""
    return escape(json.dumps(value, ensure_ascii=False)) if _NOT_PLAIN.search(value) or not value else escape(value)


def configure(log_format: LogFormat) -> None:
    """Set up logging, uvicorn's included; start uvicorn with `log_config=None`."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Formatter(log_format))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
