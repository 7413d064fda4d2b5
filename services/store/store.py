"""The one place that commits: `Store.transaction()`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from services.errors import ServiceUnavailable

STATEMENT_SECONDS = 30
"""The longest a statement may run; the longest of ours, an import's, take milliseconds each."""
LOCK_SECONDS = 10
"""The longest a statement may wait for another transaction's row."""

NETWORK = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""libpq's parameters that end a connection whose other side is gone; seconds, but the last in milliseconds."""


class StoreUnavailable(ServiceUnavailable):
    """The database is away or gave up this transaction; nothing of it was kept."""

    title = "The database is away"


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


class Store:
    """Connections to one database. Safe to share between threads."""

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        self._engine = create_engine(
            sqlalchemy_url(url),
            pool_size=pool_size,
            max_overflow=pool_size,  # `pool_use` counts on the sum
            pool_pre_ping=True,
            pool_timeout=10,
            hide_parameters=True,  # what was sent may be secret or huge, and errors are logged
            connect_args={
                **NETWORK,
                "application_name": "preceptor",
                "options": f"-c statement_timeout={STATEMENT_SECONDS}s -c lock_timeout={LOCK_SECONDS}s",
            },
        )

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A transaction that commits where the block ends and rolls back where it raises.

        Errors: StoreUnavailable (503) when the database is away, at the start, inside or at the commit, and when a
        statement ran or waited for a lock too long.
        """
        with Session(self._engine, expire_on_commit=False) as session:
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


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0] if str(error) else type(error).__name__
