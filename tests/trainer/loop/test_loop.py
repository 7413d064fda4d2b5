"""The trainer as a process: it claims, trains, commits; killed anywhere it goes on with the same bits."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
from safetensors.torch import load_file
from sqlalchemy import delete, func, select, text, update

from services.contracts.answers import AnswerContent, AnswerKind
from services.local.servers.pg_programs import plain_url
from services.store.core.locks import LineageLock
from services.store.core.transaction import Store
from services.store.ledger import updates
from services.store.loop import switches
from services.store.tables.housekeeping import ProcessRow
from services.store.tables.ledger import LessonRow, PolicyVersionRow, UpdateLessonRow, UpdateRow
from tests.ports import free_port
from tests.trainer.training import NOWHERE, settings_of, training
from tests.trainer.world import World
from tests.waiting import wait_until
from trainer.config import TrainerConfig

pytestmark = pytest.mark.integration

CONFIG = TrainerConfig(lora_r=4, patience_seconds=1)


@contextmanager
def running_trainer(home: Path, database_url: str, redis_url: str, **extra: str) -> Iterator[subprocess.Popen[bytes]]:
    """A trainer process; killed at the end of the block if it is still there."""
    environment = os.environ | {
        "PRECEPTOR_HOME": str(home),
        "PRECEPTOR_DATABASE_URL": database_url,
        "PRECEPTOR_REDIS_URL": redis_url,
        "PRECEPTOR_POLICY_URL": NOWHERE,  # the trainer must not need the policy server to train
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


def number_of(store: Store, world: World) -> int:
    with store.transaction() as session:
        return updates.last_number(session, world.lineage_id)


def is_started(store: Store, number: int) -> bool:
    with store.transaction() as session:
        query = select(func.count()).where(UpdateRow.number == number, UpdateRow.status == "started")
        return session.scalars(query).one() > 0


def statuses_of(store: Store) -> list[str]:
    with store.transaction() as session:
        return list(session.scalars(select(UpdateRow.status).order_by(UpdateRow.id)))


def activity_of(store: Store) -> str:
    with store.transaction() as session:
        row = session.get(ProcessRow, "trainer")
        return "" if row is None else row.activity


def start_over(store: Store) -> None:
    """Forget every update, as if nothing had been trained."""
    with store.transaction() as session:
        session.execute(delete(UpdateLessonRow))
        session.execute(delete(UpdateRow))
        session.execute(update(LessonRow).values(status="ready", owner=None, lease_until=None))


def checkpoints_of(store: Store) -> Sequence[str | None]:
    with store.transaction() as session:
        query = select(UpdateRow.checkpoint_sha256).where(UpdateRow.status == "applied").order_by(UpdateRow.number)
        return session.scalars(query).all()


APPLIED_LATER = """
create function wait_for_test() returns trigger language plpgsql as $$ begin
    perform pg_advisory_xact_lock_shared(3);
    return new;
end $$;
create trigger applied_later before update on update
    for each row when (new.number = 3 and new.status = 'applied') execute function wait_for_test()
"""


@contextmanager
def third_update_held(database_url: str) -> Iterator[None]:
    """Update 3 can be made, but not be applied until the block ends."""
    with psycopg.connect(plain_url(database_url), autocommit=True) as connection:
        connection.execute(APPLIED_LATER)
        connection.execute("select pg_advisory_lock(3)")
        yield


def test_killed_in_the_middle_of_an_update_the_trainer_ends_with_the_very_same_weights(
    tmp_path: Path, store: Store, world: World, database_url: str, redis_url: str
) -> None:
    ema = {"PRECEPTOR_TRAINER_TEACHER_EMA": "0.1"}
    world.lessons(num_groups=8)
    world.stop_after(4)
    with (
        third_update_held(database_url),
        running_trainer(tmp_path / "killed", database_url, redis_url, **ema) as process,
    ):
        wait_until(lambda: is_started(store, 3), lambda: process.poll() is None)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert number_of(store, world) == 2
    with running_trainer(tmp_path / "killed", database_url, redis_url, **ema) as process:
        wait_until(lambda: number_of(store, world) == 4, lambda: process.poll() is None)
    killed = checkpoints_of(store)
    with store.transaction() as session:
        assert session.scalars(select(UpdateRow.status).where(UpdateRow.status == "abandoned")).all() == ["abandoned"]
    start_over(store)
    with running_trainer(tmp_path / "whole", database_url, redis_url, **ema) as process:
        wait_until(lambda: number_of(store, world) == 4, lambda: process.poll() is None)
    assert len(killed) == 4
    assert checkpoints_of(store) == killed


def test_two_processes_make_the_update_that_one_would_have_made(
    tmp_path: Path, store: Store, world: World, database_url: str, redis_url: str
) -> None:
    world.lessons(num_groups=4)
    world.stop_after(2)
    with ExitStack() as both:
        meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        meeting |= {"GLOO_SOCKET_IFNAME": "lo"}
        processes = [
            both.enter_context(running_trainer(tmp_path / "two", database_url, redis_url, **meeting, RANK=str(rank)))
            for rank in range(2)
        ]
        wait_until(lambda: number_of(store, world) == 2, lambda: processes[0].poll() is None)
        for process in processes:
            process.terminate()
        assert [process.wait() for process in processes] == [0, 0]
    together = checkpoints_of(store)[-1]
    start_over(store)
    with running_trainer(tmp_path / "one", database_url, redis_url) as process:
        wait_until(lambda: number_of(store, world) == 2, lambda: process.poll() is None)
    alone = checkpoints_of(store)[-1]
    pair = [
        load_file(tmp_path / name / "checkpoints" / "main" / str(address) / "adapter" / "adapter_model.safetensors")
        for name, address in (("two", together), ("one", alone))
    ]
    assert pair[0].keys() == pair[1].keys()
    assert max(float((pair[0][name] - pair[1][name]).abs().max()) for name in pair[0]) < 1e-6


def test_told_to_stop_it_gives_the_update_up_and_its_lessons_back(
    tmp_path: Path, store: Store, world: World, database_url: str, redis_url: str
) -> None:
    world.lessons(num_groups=8)
    with running_trainer(tmp_path, database_url, redis_url) as process:
        wait_until(lambda: number_of(store, world) >= 1, lambda: process.poll() is None)
        process.terminate()
        assert process.wait() == 0
    with store.transaction() as session:
        assert not session.scalars(select(UpdateRow).where(UpdateRow.status == "started")).all()
        assert not session.scalars(select(LessonRow).where(LessonRow.status == "claimed")).all()
        process_row = session.get_one(ProcessRow, "trainer")
        assert process_row.activity == "stopped"
        assert process_row.counters["num_updates"] == number_of(store, world)


def test_a_second_trainer_of_the_lineage_waits_until_the_first_is_gone(
    tmp_path: Path, store: Store, world: World, database_url: str, redis_url: str
) -> None:
    world.lessons(num_groups=4)
    lock = LineageLock(database_url, world.lineage_id)
    assert lock.hold()
    with training(settings_of(tmp_path, database_url, redis_url), CONFIG) as thread:
        wait_until(lambda: "another trainer" in activity_of(store), thread.is_alive)
        assert number_of(store, world) == 0
        lock.release()
        wait_until(lambda: number_of(store, world) == 2, thread.is_alive)


def test_what_is_left_over_trains_after_a_while_though_it_is_no_full_batch(
    tmp_path: Path, store: Store, world: World, database_url: str, redis_url: str
) -> None:
    world.lessons(num_groups=1)
    with training(settings_of(tmp_path, database_url, redis_url), CONFIG) as thread:
        wait_until(lambda: number_of(store, world) == 1, thread.is_alive)
    with store.transaction() as session:
        assert set(session.scalars(select(LessonRow.status))) == {"used"}


def test_lessons_without_usable_feedback_are_set_aside_once_and_the_next_update_has_the_same_number(
    tmp_path: Path, store: Store, world: World, database_url: str, redis_url: str
) -> None:
    with store.transaction() as session:
        judge = world.expert(session, "judge", [AnswerKind.SCORE])
        for row in (rows := world.group(session, world.task(session, "nothing"))):
            world.answer(session, row, judge, AnswerContent(score=0.0))  # a score alone is no term
            world.lesson(session, row)
        empty = rows[0].group_id
    config = CONFIG.model_copy(update={"groups_per_update": 1})
    world.stop_after(1)
    with training(settings_of(tmp_path, database_url, redis_url), config) as thread:
        wait_until(lambda: "abandoned" in statuses_of(store), thread.is_alive)
        assert number_of(store, world) == 0
        world.lessons(num_groups=1)
        wait_until(lambda: number_of(store, world) == 1, thread.is_alive)
    assert statuses_of(store) == ["abandoned", "applied"]
    with store.transaction() as session:
        assert set(session.scalars(select(UpdateRow.number))) == {1}
        assert session.scalars(select(func.count()).select_from(PolicyVersionRow)).one() <= 2  # the base; update 1's
        lessons = session.execute(select(LessonRow.group_id, LessonRow.status, LessonRow.reason).distinct()).all()
    reasons = {group_id: (status, reason) for group_id, status, reason in lessons}
    assert len(lessons) == 2
    assert reasons.pop(empty) == ("set_aside", "none of its rows has usable feedback")
    assert list(reasons.values()) == [("used", None)]


def test_a_paused_loop_trains_nothing(
    tmp_path: Path, store: Store, world: World, database_url: str, redis_url: str
) -> None:
    world.lessons(num_groups=2)
    with store.transaction() as session:
        switches.switch(session, world.lineage_id, training=False)
    with training(settings_of(tmp_path, database_url, redis_url), CONFIG) as thread:
        wait_until(lambda: activity_of(store) == "paused", thread.is_alive)
        time.sleep(2)
    assert number_of(store, world) == 0


def test_a_database_that_goes_away_only_makes_the_trainer_wait(
    tmp_path: Path, store: Store, world: World, database_url: str, redis_url: str
) -> None:
    world.lessons(num_groups=6)
    world.stop_after(3)
    with training(settings_of(tmp_path, database_url, redis_url), CONFIG) as thread:
        wait_until(lambda: is_started(store, 1), thread.is_alive)
        for _ in range(10):  # not for ever: between two of them a slow machine makes no update
            with store.transaction() as session:  # what a restart of Postgres does to its clients
                session.execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
                )
            time.sleep(0.3)
        wait_until(lambda: number_of(store, world) == 3, thread.is_alive)
    with store.transaction() as session:
        used = session.scalars(select(UpdateLessonRow.lesson_id).where(UpdateLessonRow.status == "applied")).all()
        assert len(used) == len(set(used)) == 48
