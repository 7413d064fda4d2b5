"""Bring a database to the newest schema, or back; what `preceptor` and the tests call."""

from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from services.store.store import sqlalchemy_url

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"
_LOCK = 0x7072656365707401  # any constant of our own: two processes that migrate at once take turns


def config() -> Config:
    """Alembic's configuration, independent of the working directory."""
    return Config(str(MIGRATIONS / "alembic.ini"))


def upgrade(url: str, revision: str = "head") -> None:
    """Migrate up to `revision`."""
    _run(url, lambda cfg: command.upgrade(cfg, revision))


def downgrade(url: str, revision: str) -> None:
    """Migrate down to `revision` (`base` is the empty database)."""
    _run(url, lambda cfg: command.downgrade(cfg, revision))


def find_head() -> str:
    """The newest revision this code has."""
    head = ScriptDirectory.from_config(config()).get_current_head()
    assert head is not None, "the migrations folder is empty"
    return head


def find_revision(session: Session) -> str | None:
    """The revision the database is at; None for one that was never migrated."""
    return MigrationContext.configure(session.connection()).get_current_revision()


def _run(url: str, do: Callable[[Config], None]) -> None:
    engine = create_engine(sqlalchemy_url(url))
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
            connection.commit()
            try:
                cfg = config()
                cfg.attributes["connection"] = connection
                do(cfg)
                connection.commit()
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _LOCK})
                connection.commit()
    finally:
        engine.dispose()
