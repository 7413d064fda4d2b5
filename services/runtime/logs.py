"""The log of our processes: one line per event on standard output, time first, ids under the same names everywhere.

`PRECEPTOR_LOG_FORMAT` is `text` (key=value, for people) or `json` (one object per line, for collectors). Lines of
libraries (uvicorn, Celery, kombu) are written the same way. Tracebacks come without the values of locals, which could
be keys. Text of a caller cannot end its line: lines of a traceback begin with blanks.

The ids: `rollout_id`, `consultation_id`, `group_id`, `lesson_id`, `update` (its number) with `update_id`, `version` (of
the policy). `request_id` is the id that a caller of ours sent: that of the consultation it works on.
"""

import logging
import sys
from typing import Final, Literal

import structlog
from pydantic_settings import BaseSettings, SettingsConfigDict
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.types import EventDict, Processor, WrappedLogger

from sandbox.http.access_log import REQUEST_ID, escape, find_request_id

QUIET: Final = {
    "alembic": logging.WARNING,  # two lines for every look at the schema, one a healthcheck
    "celery.app.trace": logging.ERROR,  # a line for every task that went well; ours carry the ids
    "celery.beat": logging.WARNING,
    "celery.worker.strategy": logging.WARNING,
    "httpcore2": logging.WARNING,
    "httpx2": logging.WARNING,
}
"""The lowest level that is logged, for loggers of libraries."""


class LogSettings(BaseSettings):
    """The format of the log. Environment: PRECEPTOR_LOG_*."""

    model_config = SettingsConfigDict(env_prefix="PRECEPTOR_LOG_", frozen=True, extra="ignore")

    format: Literal["text", "json"] = "text"


def configure() -> None:
    """Set up logging; called once at each process's entrypoint. Start uvicorn with `log_config=None` after it."""
    pre: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*pre, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*pre, _take_fields],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(LogSettings().format)],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    for name, level in QUIET.items():
        logging.getLogger(name).setLevel(level)


def _renderers(log_format: Literal["text", "json"]) -> list[Processor]:
    if log_format == "text":
        return [
            _escape_fields,
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
            _indent_others,
        ]
    return [
        structlog.processors.format_exc_info,
        _put_first("timestamp", "level", "event"),
        structlog.processors.JSONRenderer(ensure_ascii=False),
        lambda _, __, line: escape(str(line)),
    ]


def _escape_fields(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {name: escape(value) if isinstance(value, str) else value for name, value in event.items()}


def _indent_others(_: WrappedLogger, __: str, text: object) -> str:
    """A traceback with its lines indented, so that none of them can be taken for an event."""
    first, *others = str(text).splitlines()
    return "\n".join([first, *(f"  {escape(line)}" for line in others)])


def _put_first(*names: str) -> Processor:
    def order(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        return {**{name: event[name] for name in names if name in event}, **event}

    return order


def _take_fields(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """The fields of a line that was logged through the standard library, e.g. of a request."""
    event.update(getattr(event["_record"], "fields", {}))
    return event


def request_headers() -> dict[str, str]:
    """The header that names the consultation to another of our services; empty where there is none."""
    consultation = structlog.contextvars.get_contextvars().get("consultation_id")
    return {} if consultation is None else {REQUEST_ID: str(consultation)}


class BindRequestId:
    """ASGI middleware: every line logged while a request is served carries the id that its caller sent."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = find_request_id(scope) if scope["type"] == "http" else None
        if given is None:
            await self._app(scope, receive, send)
            return
        with structlog.contextvars.bound_contextvars(request_id=given):
            await self._app(scope, receive, send)
