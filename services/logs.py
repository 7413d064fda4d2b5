"""How processes log: one line an event, time first, the ids as key=value; tracebacks without the values of locals."""

import sys

import structlog


def configure() -> None:
    """Set structlog up; called once at each process's entrypoint. Values of locals could be keys, so none are shown."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
