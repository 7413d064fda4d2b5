"""Brings a database to the newest schema, forward only."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, make_url, text
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Session

from services.runtime.errors import Conflict, InvalidInput
from services.store.core.connecting import LONG, open_engine
from services.store.core.transaction import sqlalchemy_url

MIGRATIONS = Path(__file__).resolve().parents[3] / "migrations"
_LOCK = 0x7072656365707401  # any constant that no other program uses


class DatabaseUrlWrong(InvalidInput):
    """DATABASE_URL is not the address of a Postgres database."""

    title = "Not the address of a Postgres database"
    hint = "DATABASE_URL is written postgresql://USER:PASSWORD@HOST:PORT/NAME."


class DatabaseNewer(Conflict):
    """A newer version of Preceptor, or another program, has migrated the database; it is left alone."""

    title = "The database is newer than this version of Preceptor"
    hint = "Install the version that migrated it, or restore a backup that was made before."


def check_url(url: str) -> None:
    """Pass when a URL can be that of a Postgres; the server is not asked. Errors: DatabaseUrlWrong."""
    try:
        driver = make_url(sqlalchemy_url(url)).drivername
    except (ArgumentError, ValueError) as error:  # neither quoted: the URL may hold a password
        raise DatabaseUrlWrong("DATABASE_URL cannot be read as an address") from error
    if driver != "postgresql+psycopg":
        raise DatabaseUrlWrong(f"DATABASE_URL is an address of {driver}")


def config() -> Config:
    """Alembic's configuration, independent of the working directory."""
    return Config(str(MIGRATIONS / "alembic.ini"))


def find_head() -> str:
    """The newest revision this code has."""
    head = ScriptDirectory.from_config(config()).get_current_head()
    assert head is not None, "the migrations folder is empty"
    return head


def knows(revision: str) -> bool:
    """Whether this code has a revision; a revision it lacks belongs to a newer version."""
    return revision in {script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()}


def find_revision(session: Session) -> str | None:
    """The revision the database is at; None for one that was never migrated."""
    return MigrationContext.configure(session.connection()).get_current_revision()


def upgrade(url: str) -> None:
    """Migrate a database to the newest schema; two processes that do so at once take turns.

    Errors: DatabaseNewer, DatabaseUrlWrong.
    """
    check_url(url)
    engine = open_engine(sqlalchemy_url(url), LONG, connect_args={"application_name": "preceptor-migrate"})
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
            connection.commit()
            try:
                _upgrade(connection)
            finally:
                connection.rollback()
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _LOCK})
                connection.commit()
    finally:
        engine.dispose()


def _upgrade(connection: Connection) -> None:
    present = MigrationContext.configure(connection).get_current_revision()
    connection.rollback()
    if present is not None and not knows(present):
        raise DatabaseNewer(f"the database is at {present}, this version knows no later than {find_head()}")
    cfg = config()
    cfg.attributes["connection"] = connection
    command.upgrade(cfg, "head")
    connection.commit()
