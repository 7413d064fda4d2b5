"""Making a Postgres stand still."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from services.local.servers.postgres import EmbeddedPostgres


@contextmanager
def frozen(postgres: EmbeddedPostgres) -> Iterator[None]:
    """Every process of the server stopped until the block ends: its connections stay up and nothing answers."""
    assert postgres.pid is not None
    top = psutil.Process(postgres.pid)
    processes = [top, *top.children(recursive=True)]
    stopped = [process for process in processes if process.name().startswith("postgres")]
    for process in stopped:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in reversed(stopped):
            if process.is_running():
                process.send_signal(signal.SIGCONT)
