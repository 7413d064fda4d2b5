"""A disk without room stops the trainer; with room it goes on by itself, and nothing is left half-written."""

import time
from pathlib import Path

import pytest
from sqlalchemy import text

from services.runtime import space
from services.store.core.transaction import Store
from tests.disks import fill, small_disk
from tests.trainer.loop.test_loop import activity_of, number_of, statuses_of
from tests.trainer.training import settings_of, training
from tests.trainer.world import World
from tests.waiting import wait_until
from trainer.config import TrainerConfig
from trainer.loop import train

__all__ = ["small_disk"]

pytestmark = pytest.mark.integration

CONFIG = TrainerConfig(lora_r=4, groups_per_update=1, patience_seconds=1)


@pytest.mark.parametrize("notices", ["before it starts", "while it writes"])
def test_a_full_disk_makes_the_trainer_wait_and_room_makes_it_go_on(
    small_disk: Path,
    store: Store,
    world: World,
    database_url: str,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    notices: str,
) -> None:
    monkeypatch.setattr(train, "FULL_SECONDS", 0.2)
    if notices == "while it writes":
        monkeypatch.setattr(space, "FULL_BYTES", 0)  # the disk fills up between the look and the checkpoint
    world.stop_after(1)
    world.lessons(num_groups=2)
    with training(settings_of(small_disk, database_url, redis_url), CONFIG) as thread:
        wait_until(lambda: number_of(store, world) == 1, thread.is_alive)
        ballast = fill(small_disk)
        world.stop_after(None)
        wait_until(lambda: activity_of(store).startswith("paused: "), thread.is_alive)
        if notices == "while it writes":
            wait_until(lambda: "abandoned" in statuses_of(store), thread.is_alive)
        else:
            time.sleep(1)
            assert statuses_of(store).count("abandoned") <= 1  # one may have begun as the disk filled up
        assert number_of(store, world) == 1
        checkpoints = [path.name for path in (small_disk / "checkpoints" / "main").iterdir()]
        ballast.unlink()
        wait_until(lambda: number_of(store, world) == 2, thread.is_alive)
    assert not [name for name in checkpoints if name.startswith(".saving")] or notices == "while it writes"
    assert not list((small_disk / "checkpoints" / "main").glob(".*"))


NO_ROOM_TO_GIVE_UP = """
create sequence tries;  -- not taken back with the transaction
create function no_room() returns trigger language plpgsql as $$ begin
    perform nextval('tries');
    raise exception using errcode = 'disk_full', message = 'could not extend file';
end $$;
create trigger no_room before update on update for each row when (new.status = 'abandoned') execute function no_room()
"""


def has_tried(store: Store) -> bool:
    """Whether an update was to be given up since there is no room for that."""
    with store.transaction() as session:
        return bool(session.scalar(text("select is_called from tries")))


def test_an_update_that_a_full_database_could_not_give_up_is_given_up_with_room(
    small_disk: Path,
    store: Store,
    world: World,
    database_url: str,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train, "FULL_SECONDS", 0.2)
    monkeypatch.setattr(space, "FULL_BYTES", 0)  # the disk fills up between the look and the checkpoint
    world.stop_after(1)
    world.lessons(num_groups=2)
    with training(settings_of(small_disk, database_url, redis_url), CONFIG) as thread:
        wait_until(lambda: number_of(store, world) == 1, thread.is_alive)
        with store.transaction() as session:
            session.execute(text(NO_ROOM_TO_GIVE_UP))
        ballast = fill(small_disk)
        world.stop_after(None)
        wait_until(lambda: has_tried(store), thread.is_alive)
        assert statuses_of(store).count("started") == 1
        with store.transaction() as session:
            session.execute(text("drop trigger no_room on update"))
        ballast.unlink()
        wait_until(lambda: number_of(store, world) == 2, thread.is_alive)
    assert sorted(statuses_of(store)) == ["abandoned", "applied", "applied"]
