"""How processes log: one line an event on standard output, time first, the ids as fields of the same names everywhere.

`PRECEPTOR_LOG_FORMAT` is `text` (key=value, for people) or `json` (one object a line, for collectors). What libraries
log (uvicorn, Celery, kombu) goes the same way. Tracebacks come without the values of locals, which could be keys. What
a caller writes cannot end its line: lines of a traceback begin with blanks.

The ids: `rollout_id`, `consultation_id`, `group_id`, `lesson_id`, `update` (its number) with `update_id`, `version` (of
the policy). `request_id` is what a caller of ours sent along: the id of the consultation it works on.
"""

import json
import logging
import sys
from typing import Final, Literal

import structlog
from pydantic_settings import BaseSettings, SettingsConfigDict
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.types import EventDict, Processor, WrappedLogger

QUIET: Final = {
    "alembic": logging.WARNING,  # two lines for every look at the schema, one a healthcheck
    "celery.app.trace": logging.ERROR,  # a line for every task that went well; ours carry the ids
    "celery.beat": logging.WARNING,
    "celery.worker.strategy": logging.WARNING,
    "httpcore2": logging.WARNING,
    "httpx2": logging.WARNING,
}
"""From where on the loggers of libraries are of interest."""
UNLOGGED_PATHS: Final = ("/healthz", "/metrics")
"""Asked for every few seconds by machines."""
ACCESS: Final = "uvicorn.access"
ACCESS_PARTS: Final = 5  # client, method, path, HTTP's version, status
REQUEST_ID: Final = "X-Request-Id"
MAX_REQUEST_ID: Final = 100


class LogSettings(BaseSettings):
    """How to log. Environment: PRECEPTOR_LOG_*."""

    model_config = SettingsConfigDict(env_prefix="PRECEPTOR_LOG_", frozen=True, extra="ignore")

    format: Literal["text", "json"] = "text"


def configure() -> None:
    """Set logging up; called once at each process's entrypoint. Start uvicorn with `log_config=None` after it."""
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
            foreign_pre_chain=[*pre, _split_access],
            pass_foreign_args=True,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(LogSettings().format)],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    for name, level in QUIET.items():
        logging.getLogger(name).setLevel(level)
    logging.getLogger(ACCESS).addFilter(_is_worth_a_line)


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


def escape(text: str) -> str:
    """The text without what could end its line, or have a terminal do something: as JSON writes such characters."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)


def _escape_fields(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {name: escape(value) if isinstance(value, str) else value for name, value in event.items()}


def _indent_others(_: WrappedLogger, __: str, text: object) -> str:
    """The lines of a traceback, so that none of them can be taken for an event."""
    first, *others = str(text).splitlines()
    return "\n".join([first, *(f"  {escape(line)}" for line in others)])


def _put_first(*names: str) -> Processor:
    def order(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        return {**{name: event[name] for name in names if name in event}, **event}

    return order


def _split_access(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """An access line of uvicorn as fields, without the query."""
    given = event.pop("positional_args", ())
    if event.get("logger") == ACCESS and len(given) == ACCESS_PARTS:
        client, method, path, _version, status = given
        event.update(event="request", method=method, path=str(path).partition("?")[0], status=status, client=client)
    return event


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    given = record.args if isinstance(record.args, tuple) else ()
    return len(given) != ACCESS_PARTS or str(given[2]).partition("?")[0] not in UNLOGGED_PATHS


def request_headers() -> dict[str, str]:
    """The header that tells another of our services for which consultation it is asked; empty where there is none."""
    consultation = structlog.contextvars.get_contextvars().get("consultation_id")
    return {} if consultation is None else {REQUEST_ID: str(consultation)}


class BindRequestId:
    """ASGI middleware: every line logged while a request is served carries the id that its caller sent."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = Headers(scope=scope).get(REQUEST_ID) if scope["type"] == "http" else None
        if given is None:
            await self._app(scope, receive, send)
            return
        with structlog.contextvars.bound_contextvars(request_id=given[:MAX_REQUEST_ID]):
            await self._app(scope, receive, send)
