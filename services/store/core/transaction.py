"""The one place that commits, `Store.transaction()`, and its twin that cannot write, `Store.reading()`."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final

import psycopg
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from services.runtime.errors import ServiceUnavailable
from services.store.core.connecting import LONG, REQUEST, WORK, NoAnswer, Patience, PatientConnection, open_engine

STATEMENT_SECONDS = 30
"""The longest a statement may run; the longest of ours, an import's, take milliseconds each."""
LOCK_SECONDS = 10
"""The longest a statement may wait for another transaction's row."""

RETRY_SECONDS = 1.0
"""Requests are refused at once for so long after an answer failed to come; then one of them tries again."""


class StoreUnavailable(ServiceUnavailable):
    """The database is unavailable or gave up this transaction, which was rolled back."""

    title = "The database is unavailable"


def sqlalchemy_url(url: str) -> str:
    """The URL with our driver named: `postgres://` and `postgresql://` mean psycopg 3."""
    scheme, _, rest = url.partition("://")
    return f"postgresql+psycopg://{rest}" if scheme in ("postgres", "postgresql") else url


@dataclass(frozen=True)
class PoolUse:
    """Connections in use and kept open without use, and how many there may be at once."""

    in_use: int
    idle: int
    limit: int


NEVER_CAME: Final = (NoAnswer, psycopg.errors.ConnectionTimeout)


class Fuse:
    """Keeps callers from queueing for a database that does not answer: one caller at a time tries it again.

    Safe to share between threads.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._blown = False
        self._is_tried = False
        self._failed_at = 0.0

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Blown by an answer that does not come in time, whole again when one comes. Errors: StoreUnavailable."""
        with self._guard:
            tries = self._blown
            if tries and (self._is_tried or time.monotonic() - self._failed_at < RETRY_SECONDS):
                raise StoreUnavailable("the database has not answered in time; it is tried again")
            self._is_tried = tries
        try:
            yield
        except StoreUnavailable as error:
            cause = error.__cause__
            if isinstance(cause, DBAPIError) and isinstance(cause.orig, NEVER_CAME):
                with self._guard:
                    self._blown, self._failed_at = True, time.monotonic()
            raise
        except BaseException:  # of the block: the database answered
            self._mend()
            raise
        else:
            self._mend()
        finally:
            if tries:
                with self._guard:
                    self._is_tried = False

    def _mend(self) -> None:
        with self._guard:
            self._blown = False


class Store:
    """Connections to one database. Safe to share between threads."""

    def __init__(self, url: str, *, pool_size: int = 10, patience: Patience = WORK) -> None:
        statement, lock = (min(most, int(patience.answer) - 1) for most in (STATEMENT_SECONDS, LOCK_SECONDS))
        self._fuse = Fuse() if patience is REQUEST else None
        self._engine = open_engine(
            sqlalchemy_url(url),
            patience,
            pool_size=pool_size,
            max_overflow=pool_size,  # `pool_use` counts on the sum
            pool_pre_ping=True,
            pool_timeout=patience.pool,
            hide_parameters=True,  # parameters may be secret or huge, and errors are logged
            connect_args={
                "application_name": "preceptor",
                "options": f"-c statement_timeout={statement}s -c lock_timeout={lock}s",
            },
        )
        self._reader = self._engine.execution_options(postgresql_readonly=True)  # the same connections

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A transaction that commits where the block ends and rolls back where it raises.

        Errors: StoreUnavailable (503) when the database is unavailable or does not answer in time, at the start,
        inside or at the commit, and when a statement ran or waited for a lock too long.
        """
        with self._begin(self._engine) as session:
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction in which Postgres refuses to write and to lock rows. Errors: StoreUnavailable (503)."""
        with self._begin(self._reader) as session:
            yield session

    @contextmanager
    def _begin(self, engine: Engine) -> Iterator[Session]:
        with (
            nullcontext() if self._fuse is None else self._fuse.watch(),
            Session(engine, expire_on_commit=False) as session,
        ):
            try:
                with session.begin():
                    yield session
            except (OperationalError, PoolTimeout) as error:
                raise StoreUnavailable(f"the database did not answer: {_first_line(error)}") from error
            except DBAPIError as error:
                if error.connection_invalidated:
                    raise StoreUnavailable(f"the connection was lost: {_first_line(error)}") from error
                raise

    def pool_use(self) -> PoolUse:
        """How the connections are used at this moment."""
        pool = self._engine.pool
        assert isinstance(pool, QueuePool)
        return PoolUse(in_use=pool.checkedout(), idle=pool.checkedin(), limit=2 * pool.size())

    def close(self) -> None:
        """Give back every connection."""
        self._engine.dispose()


def take_long(session: Session) -> None:
    """Let the statements of this transaction run for as long as they need: they go through all rows."""
    session.execute(text("SET LOCAL statement_timeout = 0"))
    connection = session.connection().connection.driver_connection
    assert isinstance(connection, PatientConnection)
    connection.patience = LONG


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0] if str(error) else type(error).__name__
