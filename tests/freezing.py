"""Making a Postgres stand still."""

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import psutil

from services.local.servers.postgres import EmbeddedPostgres


@contextmanager
def frozen(postgres: EmbeddedPostgres) -> Iterator[None]:
    """Every process of the server stopped until the block ends: its connections stay up and nothing answers."""
    assert postgres.pid is not None
    top = psutil.Process(postgres.pid)
    stopped: list[psutil.Process] = []
    try:
        while new := [each for each in _find_postgres(top) if each not in stopped]:  # the first may just have forked
            stopped += new
            _send(signal.SIGSTOP, new)
        yield
    finally:
        _send(signal.SIGCONT, reversed(stopped))


def _find_postgres(top: psutil.Process) -> Iterator[psutil.Process]:
    for process in (top, *top.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            if process.name().startswith("postgres") and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def _send(number: signal.Signals, processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # a worker of Postgres that has ended
            process.send_signal(number)
