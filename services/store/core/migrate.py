"""Bring a database to the newest schema, or back; what `preceptor` and the tests call."""

from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import make_url, text
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Session

from services.runtime.errors import Conflict, InvalidInput
from services.store.core.connecting import LONG, open_engine
from services.store.core.transaction import sqlalchemy_url

MIGRATIONS = Path(__file__).resolve().parents[3] / "migrations"
_LOCK = 0x7072656365707401  # any constant of our own: two processes that migrate at once take turns


class DatabaseUrlWrong(InvalidInput):
    """What names the database is no address of a Postgres."""

    title = "Not the address of a Postgres database"
    hint = "DATABASE_URL is written postgresql://USER:PASSWORD@HOST:PORT/NAME."


class DatabaseNewer(Conflict):
    """A newer version of Preceptor has migrated the database, or another program has; it is left alone."""

    title = "The database is newer than this version of Preceptor"
    hint = "Install the version that migrated it, or restore a backup that was made before."


def check_url(url: str) -> None:
    """That a URL can be one of a Postgres; the server is not asked. Errors: DatabaseUrlWrong."""
    try:
        driver = make_url(sqlalchemy_url(url)).drivername
    except (ArgumentError, ValueError) as error:  # neither quoted: the URL may hold a password
        raise DatabaseUrlWrong("DATABASE_URL cannot be read as an address") from error
    if driver != "postgresql+psycopg":
        raise DatabaseUrlWrong(f"DATABASE_URL is an address of {driver}")


def config() -> Config:
    """Alembic's configuration, independent of the working directory."""
    return Config(str(MIGRATIONS / "alembic.ini"))


def upgrade(url: str, revision: str = "head") -> None:
    """Migrate up to `revision`. Errors: DatabaseNewer, DatabaseUrlWrong."""
    _run(url, lambda cfg: command.upgrade(cfg, revision))


def downgrade(url: str, revision: str) -> None:
    """Migrate down to `revision` (`base` is the empty database)."""
    _run(url, lambda cfg: command.downgrade(cfg, revision))


def find_head() -> str:
    """The newest revision this code has."""
    head = ScriptDirectory.from_config(config()).get_current_head()
    assert head is not None, "the migrations folder is empty"
    return head


def knows(revision: str) -> bool:
    """Whether this code has a revision; one it has not is a newer version's."""
    return revision in {script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()}


def find_revision(session: Session) -> str | None:
    """The revision the database is at; None for one that was never migrated."""
    return MigrationContext.configure(session.connection()).get_current_revision()


def _run(url: str, do: Callable[[Config], None]) -> None:
    check_url(url)
    engine = open_engine(sqlalchemy_url(url), LONG, connect_args={"application_name": "preceptor-migrate"})
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
            connection.commit()
            try:
                present = MigrationContext.configure(connection).get_current_revision()
                connection.rollback()
                if present is not None and not knows(present):
                    raise DatabaseNewer(f"the database is at {present}, this version knows no later than {find_head()}")
                cfg = config()
                cfg.attributes["connection"] = connection
                do(cfg)
                connection.commit()
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _LOCK})
                connection.commit()
    finally:
        engine.dispose()
