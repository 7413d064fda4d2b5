"""A lock that is held as long as a process lives: Postgres gives it back the moment the connection dies."""

from uuid import UUID

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from services.store.core.connecting import WORK, open_engine
from services.store.core.transaction import StoreUnavailable, sqlalchemy_url


class LineageLock:
    """At most one holder a lineage, over all machines. Not safe to share between threads."""

    def __init__(self, url: str, lineage_id: UUID) -> None:
        self._engine = open_engine(
            sqlalchemy_url(url),
            WORK,
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args={"application_name": "preceptor-lock"},
        )
        self._key = int.from_bytes(lineage_id.bytes[8:], "big", signed=True)
        self._connection: Connection | None = None

    @property
    def held(self) -> bool:
        """Whether the last `hold` had the lock; the connection may have been lost since."""
        return self._connection is not None

    def hold(self) -> bool:
        """Make sure of the lock: True if it is ours now, after taking it again if the connection was lost.

        Errors: StoreUnavailable (503).
        """
        try:
            if self._connection is not None:
                self._connection.execute(text("SELECT 1"))
                return True
            connection = self._engine.connect()
            if connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": self._key}):
                self._connection = connection
                return True
            connection.close()
            return False
        except DBAPIError as error:
            self.release()
            raise StoreUnavailable(f"the lineage's lock was lost: {str(error.orig).splitlines()[0]}") from error

    def release(self) -> None:
        """Give the lock back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()  # closes it for good, which releases the lock
            connection.close()
