"""Real servers for tests that need them: one embedded Postgres and one Valkey per process, a fresh database per use.

`make test` runs several processes side by side; each takes one file after another and has servers of its own.

A test asks for what it needs: `fresh_database` (a function that returns the URL of a new, migrated, empty database),
`database_url` (one such database, dropped after the test), `redis_url` (an emptied Valkey). Tests that use them are
marked `integration`. Nothing is read from DATABASE_URL or REDIS_URL, and nothing of the machine's is touched.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from hypothesis import HealthCheck, settings
from psycopg import sql

from services.local.servers.postgres import EmbeddedPostgres
from services.local.servers.valkey import EmbeddedValkey
from tests.ports import free_port

TEMPLATE = "migrated"
MAX_PROCESSES = 4  # each holds torch and its servers: about 1 GB

# how long an example takes says nothing on a shared machine
settings.register_profile("preceptor", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("preceptor")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are processors: tests also wait."""
    return min(MAX_PROCESSES, (os.cpu_count() or 1) + 1)


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """A folder the database's user can walk to, even as root (pytest's own temporary folders are closed)."""
    folder = Path(tempfile.mkdtemp(prefix="preceptor-tests-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_server(server_folder: Path) -> Iterator[EmbeddedPostgres]:
    """One Postgres for the session."""
    with EmbeddedPostgres(server_folder / "postgres", durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server(server_folder: Path) -> Iterator[EmbeddedValkey]:
    """One Valkey for the session."""
    with EmbeddedValkey(server_folder / "valkey", free_port(), durable=False) as server:  # some tests restart it
        yield server


@pytest.fixture(scope="session")
def fresh_database(postgres_server: EmbeddedPostgres) -> Callable[[], str]:
    """A function that makes a new database at the newest schema and returns its SQLAlchemy URL.

    Migrates once per session; each call copies the result (tens of milliseconds). The databases go with the server.
    """
    from services.store.core import migrate  # only sessions that use a database need the store to import

    execute(postgres_server, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
    migrate.upgrade(postgres_server.url_of(TEMPLATE))
    counter = itertools.count(1)

    def make() -> str:
        name = f"fresh_{os.getpid()}_{next(counter)}"
        copy = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
        execute(postgres_server, copy.format(sql.Identifier(name), sql.Identifier(TEMPLATE)))
        return postgres_server.url_of(name)

    return make


@pytest.fixture
def database_url(fresh_database: Callable[[], str], postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """A migrated, empty database of the test's own, dropped after it with whatever is still connected."""
    url = fresh_database()
    yield url
    name = url.rpartition("/")[2]
    execute(postgres_server, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


NEXT_SCHEMA = "29991231_next"
NEXT_MIGRATION = f'''"""a note on every lineage

Revision: {NEXT_SCHEMA}
Follows: {{newest}}
"""

from alembic import op

revision = "{NEXT_SCHEMA}"
down_revision = "{{newest}}"


def upgrade() -> None:
    op.execute("ALTER TABLE lineage ADD COLUMN note text DEFAULT 'none yet' NOT NULL")
    op.execute("ALTER TABLE lineage ADD CONSTRAINT ck_lineage_name CHECK (name <> 'refused')")
'''


@pytest.fixture
def next_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make this code its next version, which knows one more migration, and return that one's name."""
    from services.store.core import migrate

    newest = migrate.find_head()
    copied = tmp_path / "migrations"
    shutil.copytree(migrate.MIGRATIONS, copied, ignore=shutil.ignore_patterns("__pycache__"))
    (copied / "versions" / f"{NEXT_SCHEMA}.py").write_text(NEXT_MIGRATION.format(newest=newest))
    monkeypatch.setattr(migrate, "MIGRATIONS", copied)
    return NEXT_SCHEMA


@pytest.fixture
def redis_url(valkey_server: EmbeddedValkey) -> str:
    """The session's Valkey, emptied."""
    with redis.Redis.from_url(valkey_server.url) as client:
        client.flushall()
    return valkey_server.url


def execute(server: EmbeddedPostgres, statement: sql.Composed) -> None:
    """Run one statement outside any transaction, on the server's own database."""
    url = server.url.replace("postgresql+psycopg://", "postgresql://")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)
