"""A restored backup trains on where the first installation stood."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import sql

from services.local.care import backup, restore
from services.local.installation import find
from services.local.layout import Layout
from services.local.servers.postgres import EmbeddedPostgres
from services.store.core.transaction import Store
from services.store.ledger import updates
from services.store.loop import switches
from tests.conftest import execute
from tests.trainer.training import settings_of, training
from tests.trainer.world import World
from tests.waiting import wait_until
from trainer.config import TrainerConfig

pytestmark = pytest.mark.integration

CONFIG = TrainerConfig(lora_r=4, patience_seconds=1)


@pytest.fixture
def empty_database(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """A database without a schema."""
    execute(postgres_server, sql.SQL("CREATE DATABASE {}").format(sql.Identifier("restored")))
    yield postgres_server.url_of("restored")
    execute(postgres_server, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier("restored")))


def train_until(number: int, world: World, home: Path, url: str, redis_url: str) -> str | None:
    """Train up to the update of that number; its checkpoint."""
    store = Store(url, pool_size=2)

    def last() -> int:
        with store.transaction() as session:
            return updates.last_number(session, world.lineage_id)

    with store.transaction() as session:
        switches.stop_after(session, world.lineage_id, number)
    with training(settings_of(home, url, redis_url), CONFIG) as thread:
        wait_until(lambda: last() == number, thread.is_alive)
    with store.transaction() as session:
        applied = updates.last_applied(session, world.lineage_id)
    store.close()
    return None if applied is None else applied.checkpoint_sha256


def test_a_restored_lineage_makes_the_next_update_with_the_very_same_weights(
    tmp_path: Path, world: World, database_url: str, empty_database: str, redis_url: str
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    world.lessons(num_groups=6)
    train_until(1, world, first, database_url, redis_url)
    found = find(Layout(first), {"DATABASE_URL": database_url})
    backup.make(found, tmp_path / "backup", with_secrets=False, say=lambda line: None)
    restore.restore(tmp_path / "backup", Layout(second), empty_database, lambda line: None)
    went_on = train_until(2, world, first, database_url, redis_url)
    restored = train_until(2, world, second, empty_database, redis_url)
    assert went_on is not None
    assert restored == went_on


def test_a_backup_taken_while_the_trainer_works_is_consistent(
    tmp_path: Path, world: World, database_url: str, empty_database: str, redis_url: str
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    world.lessons(num_groups=12)
    world.stop_after(5)  # of six, so that there is one more to be made from whichever is in the backup
    found = find(Layout(first), {"DATABASE_URL": database_url})
    with training(settings_of(first, database_url, redis_url), CONFIG) as thread:
        wait_until(lambda: any(first.glob("checkpoints/main/*")), thread.is_alive)
        manifest = backup.make(found, tmp_path / "backup", with_secrets=False, say=lambda line: None)
    restore.restore(tmp_path / "backup", Layout(second), empty_database, lambda line: None)
    done = manifest.lineages[0].num_updates
    assert train_until(done + 1, world, second, empty_database, redis_url) is not None
