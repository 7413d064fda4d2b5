"""A disk that fills up stops the sampler, not the trainer; room makes it go on by itself."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import redis
import torch
from safetensors.torch import save_file
from sqlalchemy import func, select

from services.jobs.app import app
from services.jobs.maintain import maintain
from services.jobs.runtime import runtime
from services.local.servers.valkey import EmbeddedValkey
from services.policy.artifacts import ArtifactStore
from services.runtime import space
from services.runtime.settings import Settings
from services.store.core.transaction import Store
from services.store.loop import groups, lineages, switches
from services.store.tables.loop import GroupRow
from services.store.views import status
from tests.disks import MB, small_disk
from tests.ports import free_port
from tests.store.conftest import World
from tests.waiting import wait_until

__all__ = ["small_disk"]


def sampling_settings(home: Path, **bounds: float) -> Settings:
    return Settings.model_validate({"home": home, "min_free_gb": 0, **bounds})


def test_enough_room_is_no_shortage(tmp_path: Path) -> None:
    assert space.find_shortage(sampling_settings(tmp_path)) is None


def test_a_data_folder_that_does_not_exist_yet_is_on_the_disk_it_will_be_on(tmp_path: Path) -> None:
    assert space.free_bytes(tmp_path / "a" / "b") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)


def test_a_full_disk_is_a_shortage_that_names_the_setting(small_disk: Path) -> None:
    settings = sampling_settings(small_disk, min_free_gb=0.01)
    assert space.find_shortage(settings) is None
    (small_disk / "ballast").write_bytes(bytes(12 * MB))
    assert "PRECEPTOR_MIN_FREE_GB=0.01" in str(space.find_shortage(settings))
    (small_disk / "ballast").unlink()
    assert space.find_shortage(settings) is None


def test_a_data_folder_over_its_size_is_a_shortage(tmp_path: Path) -> None:
    (tmp_path / "ballast").write_bytes(os.urandom(3 * MB))
    assert "PRECEPTOR_MAX_HOME_GB" in str(space.find_shortage(sampling_settings(tmp_path, max_home_gb=0.002)))
    assert space.find_shortage(sampling_settings(tmp_path, max_home_gb=1)) is None


def test_a_database_over_its_size_is_a_shortage(tmp_path: Path) -> None:
    settings = sampling_settings(tmp_path, max_database_gb=1)
    assert space.find_shortage(settings, database_bytes=500 * MB) is None
    assert "PRECEPTOR_MAX_DATABASE_GB=1" in str(space.find_shortage(settings, database_bytes=1500 * MB))


def test_a_full_disk_is_one_whatever_the_settings_allow(small_disk: Path) -> None:
    settings = sampling_settings(small_disk)
    assert (space.find_full(small_disk), space.find_shortage(settings)) == (None, None)
    (small_disk / "ballast").write_bytes(bytes(12 * MB))
    assert "is full" in str(space.find_full(small_disk))
    assert "is full" in str(space.find_shortage(settings))


def test_what_does_not_fit_is_said_by_one_error_whoever_writes_it(small_disk: Path) -> None:
    tensors = {"x": torch.zeros(6 * MB)}
    (small_disk / "source").mkdir()
    (small_disk / "source" / "file").write_bytes(bytes(12 * MB))
    for write in (
        lambda: (small_disk / "file").write_bytes(bytes(24 * MB)),
        lambda: save_file(tensors, small_disk / "file"),
        lambda: shutil.copytree(small_disk / "source", small_disk / "file"),
        lambda: ArtifactStore(small_disk / "artifacts").store(small_disk / "source"),
    ):
        with pytest.raises(space.DiskFull, match="no room on the disk for it"), space.writing("it"):
            write()
        if (small_disk / "file").is_dir():
            shutil.rmtree(small_disk / "file")
        (small_disk / "file").unlink(missing_ok=True)
    assert list((small_disk / "artifacts").iterdir()) == []
    with pytest.raises(ZeroDivisionError), space.writing("it"):
        raise ZeroDivisionError


@pytest.mark.integration
def test_a_broker_that_cannot_write_its_file_is_away_until_there_is_room(small_disk: Path) -> None:
    with EmbeddedValkey(small_disk / "valkey") as valkey, redis.Redis.from_url(valkey.url) as client:
        (small_disk / "ballast").write_bytes(bytes(space.free_bytes(small_disk) - 65_536))

        def write_until_it_is_full() -> None:
            while True:
                client.set("a", os.urandom(65_536))

        with pytest.raises(redis.ConnectionError, match="No space left"):  # kombu tries again; others end the worker
            write_until_it_is_full()
        (small_disk / "ballast").unlink()

        def takes_it_in() -> bool:
            with suppress(redis.ConnectionError):
                return bool(client.set("a", "b"))
            return False

        wait_until(takes_it_in)


@pytest.mark.integration
def test_sampling_stops_when_the_disk_is_nearly_full_and_goes_on_by_itself(
    small_disk: Path,
    store: Store,
    world: World,
    database_url: str,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {
        "HOME": str(small_disk),
        "MIN_FREE_GB": "0.01",
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "POLICY_URL": f"http://127.0.0.1:{free_port()}",
    }
    for name, value in given.items():
        monkeypatch.setenv(f"PRECEPTOR_{name}", value)
    monkeypatch.setattr(app.conf, "broker_url", redis_url)
    runtime.cache_clear()
    with store.transaction() as session:
        world.task(session)
        switches.switch(session, world.lineage_id, sampling=True)
    (small_disk / "ballast").write_bytes(bytes(12 * MB))
    maintain()
    assert any("PRECEPTOR_MIN_FREE_GB" in line for line in waits(store))
    assert num_groups(store) == 0
    (small_disk / "ballast").unlink()
    maintain()
    assert not any("PRECEPTOR_MIN_FREE_GB" in line for line in waits(store))
    assert num_groups(store) > 0
    runtime().close()


@pytest.mark.integration
def test_draws_that_were_planned_wait_while_the_loop_is_blocked(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.task(session)
        switches.block(session, world.lineage_id, "the disk is full")
    with store.transaction() as session:
        from services.contracts.rollouts import Purpose, Sampling
        from services.store.tables.loop import TaskRow

        task = session.scalars(select(TaskRow)).one()
        planned = groups.add(session, task, purpose=Purpose.TRAIN, size=2, sampling=Sampling())
    with store.transaction() as session:
        assert groups.take_due(session, max_in_flight=4, resend_seconds=30) == []
        switches.block(session, world.lineage_id, None)
        assert groups.take_due(session, max_in_flight=4, resend_seconds=30) == [planned.id]


def waits(store: Store) -> list[str]:
    with store.transaction() as session:
        lineage = lineages.get(session, "main")
        found = status.status(session, lineage, max_backlog=48, max_groups_per_task=8, group_size=8)
    return found.waits_for


def num_groups(store: Store) -> int:
    with store.transaction() as session:
        return session.scalar(select(func.count()).select_from(GroupRow)) or 0
