"""How long a client of ours waits for Postgres, by kind of work: the one place with these deadlines.

A server that is stopped (SIGSTOP, a frozen virtual machine, a disk that hangs) still acknowledges every packet, so that
neither keep-alive nor the server's own timeouts end the wait. So the client counts: when an answer is overdue the
connection is closed, and whoever waited gets an error.
"""

import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.rows import TupleRow
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.pool import ConnectionPoolEntry

NETWORK: Final[dict[str, Any]] = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""libpq's parameters that end a connection whose other side is gone; seconds, but the last in milliseconds."""

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long a kind of work waits, in seconds.

    answer: for one round trip. ping: for the one that tries a pooled connection before it is used. connect: for a new
    connection. pool: for a connection that others use.
    """

    answer: float
    ping: float
    connect: int
    pool: float


REQUEST: Final = Patience(answer=6, ping=2, connect=3, pool=3)
"""For requests: the longest sum, an answer after the wait for the pool, stays under 10 s."""
WORK: Final = Patience(answer=35, ping=5, connect=5, pool=10)
"""Workers and the trainer: longer than the server lets a statement run, so that its own error comes first."""
LONG: Final = Patience(answer=6 * 3600, ping=6 * 3600, connect=10, pool=10)
"""For migrations, backups and erasing, where one statement may go through all rows."""


class NoAnswer(psycopg.OperationalError):
    """Postgres did not answer in time; the connection is closed, and the statement may have had its effect or not."""


class PatientConnection(psycopg.Connection[TupleRow]):
    """A connection that is closed when one answer takes longer than its patience. Raises NoAnswer then."""

    patience: Patience = LONG

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """As psycopg's, within the patience unless the caller names a time of its own."""
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        # outside a transaction there is only SQLAlchemy's ping, and the lineage's lock, whose statements are as short
        seconds = self.patience.ping if self.autocommit else self.patience.answer
        try:
            return super().wait(gen, interval, seconds)
        except psycopg.errors._WaitTimeout:
            self._hang_up()
            raise NoAnswer(f"no answer within {seconds:g} s") from None

    def _hang_up(self) -> None:
        """Close without a goodbye, which could wait as well."""
        with suppress(OSError), socket.socket(fileno=self.pgconn.socket) as other_end:
            try:
                other_end.shutdown(socket.SHUT_RDWR)
            finally:
                other_end.detach()  # the descriptor is libpq's
        self.close()


def connect(url: str, patience: Patience, *, autocommit: bool = False) -> PatientConnection:
    """A connection outside any pool. Raises psycopg's errors."""
    made = PatientConnection.connect(url, autocommit=autocommit, connect_timeout=patience.connect, **NETWORK)
    made.patience = patience
    return made


def open_engine(url: str, patience: Patience, *, connect_args: dict[str, object], **options: Any) -> Engine:
    """An engine whose connections have this patience, and have it again when they are given back. url: SQLAlchemy's."""
    arguments = {**NETWORK, "connect_timeout": patience.connect, **connect_args}
    engine = create_engine(url, connect_args=arguments, **options)

    @event.listens_for(engine, "do_connect")
    def make(_: object, __: object, cargs: tuple[str, ...], cparams: dict[str, Any]) -> PatientConnection:
        made = PatientConnection.connect(*cargs, **cparams)
        made.patience = patience
        return made

    @event.listens_for(engine, "checkin")
    def calm(connection: PatientConnection | None, _: ConnectionPoolEntry) -> None:
        if connection is not None:
            connection.patience = patience

    return engine
