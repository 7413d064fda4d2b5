"""A disk that fills up stops the sampler, not the trainer; room makes it go on by itself."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from services import space
from services.jobs.app import app
from services.jobs.maintain import maintain
from services.jobs.runtime import runtime
from services.local.layout import free_port
from services.settings import Settings
from services.store import groups, lineages, loop, stats
from services.store.models import GroupRow
from services.store.store import Store
from tests.store.conftest import World

MB = 1_000_000


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of 20 MB of its own."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a disk needs root")
    folder = Path(tempfile.mkdtemp(prefix="preceptor-disk-"))
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20M", "tmpfs", folder], check=False).returncode:
        folder.rmdir()
        pytest.skip("this machine lets nobody mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()


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
        loop.switch(session, world.lineage_id, sampling=True)
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
        loop.block(session, world.lineage_id, "the disk is full")
    with store.transaction() as session:
        from services.contracts.rollouts import Purpose, Sampling
        from services.store.models import TaskRow

        task = session.scalars(select(TaskRow)).one()
        planned = groups.add(session, task, purpose=Purpose.TRAIN, size=2, sampling=Sampling())
    with store.transaction() as session:
        assert groups.take_due(session, max_in_flight=4, resend_seconds=30) == []
        loop.block(session, world.lineage_id, None)
        assert groups.take_due(session, max_in_flight=4, resend_seconds=30) == [planned.id]


def waits(store: Store) -> list[str]:
    with store.transaction() as session:
        lineage = lineages.get(session, "main")
        found = stats.status(session, lineage, max_backlog=48, max_groups_per_task=8, group_size=8)
    return found.waits_for


def num_groups(store: Store) -> int:
    with store.transaction() as session:
        return session.scalar(select(func.count()).select_from(GroupRow)) or 0
