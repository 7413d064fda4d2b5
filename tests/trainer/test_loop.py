"""The trainer as a process: it claims, trains, commits; killed anywhere it goes on with the same bits."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import delete, func, select, update

from services.store import updates
from services.store.models import LessonRow, UpdateLessonRow, UpdateRow
from services.store.store import Store
from tests.trainer.world import World

pytestmark = pytest.mark.integration

NOWHERE = "http://127.0.0.1:9"  # nobody listens: the trainer must not need the policy server to train


@contextmanager
def running_trainer(home: Path, database_url: str, redis_url: str, **extra: str) -> Iterator[subprocess.Popen[bytes]]:
    """A trainer process; killed at the end of the block if it is still there."""
    environment = os.environ | {
        "PRECEPTOR_HOME": str(home),
        "PRECEPTOR_DATABASE_URL": database_url,
        "PRECEPTOR_REDIS_URL": redis_url,
        "PRECEPTOR_POLICY_URL": NOWHERE,
        "PRECEPTOR_TRAINER_PATIENCE_SECONDS": "1",
        "PRECEPTOR_TRAINER_LORA_R": "4",
        "OMP_NUM_THREADS": "1",
        **extra,
    }
    process = subprocess.Popen([sys.executable, "-m", "trainer"], env=environment)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def wait_for(what: str, holds: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 90) -> None:
    """Return as soon as `holds()` is true. Fails when the process ends or the time is up."""
    until = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None, f"the trainer ended with {process.returncode}"
        assert time.monotonic() < until, f"waited {seconds} s for {what}"
        time.sleep(0.02)


def number_of(store: Store, world: World) -> int:
    with store.transaction() as session:
        return updates.last_number(session, world.lineage_id)


def is_started(store: Store, number: int) -> bool:
    with store.transaction() as session:
        query = select(func.count()).where(UpdateRow.number == number, UpdateRow.status == "started")
        return session.scalars(query).one() > 0


def checkpoints_of(store: Store) -> Sequence[str | None]:
    with store.transaction() as session:
        query = select(UpdateRow.checkpoint_sha256).where(UpdateRow.status == "applied").order_by(UpdateRow.number)
        return session.scalars(query).all()


def test_killed_in_the_middle_of_an_update_the_trainer_ends_with_the_very_same_weights(
    tmp_path: Path, store: Store, world: World, database_url: str, redis_url: str
) -> None:
    ema = {"PRECEPTOR_TRAINER_TEACHER_EMA": "0.1"}
    world.lessons(num_groups=8)
    world.stop_after(4)
    with running_trainer(tmp_path / "killed", database_url, redis_url, **ema) as process:
        wait_for("the third update to start", lambda: is_started(store, 3), process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert number_of(store, world) == 2
    with running_trainer(tmp_path / "killed", database_url, redis_url, **ema) as process:
        wait_for("the fourth update", lambda: number_of(store, world) == 4, process)
    killed = checkpoints_of(store)
    with store.transaction() as session:
        assert session.scalars(select(UpdateRow.status).where(UpdateRow.status == "abandoned")).all() == ["abandoned"]
        session.execute(delete(UpdateLessonRow))
        session.execute(delete(UpdateRow))
        session.execute(update(LessonRow).values(status="ready", owner=None, lease_until=None))
    with running_trainer(tmp_path / "whole", database_url, redis_url, **ema) as process:
        wait_for("the fourth update", lambda: number_of(store, world) == 4, process)
    assert len(killed) == 4
    assert checkpoints_of(store) == killed
