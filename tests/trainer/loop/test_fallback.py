"""When the gate refuses version after version, training goes on from the one that serves, also after kill -9."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete, func, select

from services.contracts.policies import GateCheck, GateReport
from services.store.core.transaction import Store
from services.store.ledger import fallbacks, lesson_facts, lessons, policies
from services.store.loop import lineages
from services.store.tables.ledger import FallbackRow, LessonRow, PolicyVersionRow, UpdateRow
from services.store.tables.people import AuditRow
from services.store.views import status
from tests.trainer.loop.test_loop import checkpoints_of, number_of, running_trainer, start_over
from tests.trainer.loop.test_publish import policy_server
from tests.trainer.training import settings_of, training
from tests.trainer.world import World
from tests.waiting import wait_until
from trainer.config import TrainerConfig
from trainer.loop import train as loop
from trainer.step.state import FACTS

pytestmark = pytest.mark.integration

SANE = TrainerConfig(lora_r=4, groups_per_update=1, publish_every=1, gate_length_ratio=50, keep_checkpoints=1)
REFUSES_ALL = SANE.model_copy(update={"gate_max_kl_previous": 1e-12})


def refused(store: Store, world: World, number: int) -> None:
    """So many versions that the gate refused."""
    report = GateReport(checks=[GateCheck(name="kl_base", passed=False, value=9, bound=3)])
    for _ in range(number):
        with store.transaction() as session:
            row = policies.add_candidate(session, world.lineage_id, artifact_sha256="a" * 64, update_number=0)
            policies.reject(session, row.id, report, "the gate refused it: kl_base")


def status_lines(store: Store) -> list[str]:
    with store.transaction() as session:
        lineage = lineages.get(session, "main")
        return status.status(session, lineage, max_backlog=48, max_groups_per_task=8, group_size=8).waits_for


def ledger(store: Store) -> list[UpdateRow]:
    with store.transaction() as session:
        return list(session.scalars(select(UpdateRow).where(UpdateRow.status == "applied").order_by(UpdateRow.number)))


def test_versions_that_were_refused_make_no_rollout_older(store: Store, world: World) -> None:
    world.lessons(num_groups=1)
    refused(store, world, 20)
    with store.transaction() as session:
        assert lessons.set_aside_stale(session, world.lineage_id, max_staleness=1) == 0
        rows = session.scalars(select(LessonRow)).all()
        assert {fact.policy_number for fact in lesson_facts.load(session, rows)} == {0}
        assert policies.num_served(session, world.lineage_id) == 0
    for served in (1, 2):
        with store.transaction() as session:
            row = policies.add_candidate(session, world.lineage_id, artifact_sha256="a" * 64, update_number=served)
            policies.serve(session, row.id)
            set_aside = lessons.set_aside_stale(session, world.lineage_id, max_staleness=1)
            assert (set_aside > 0) == (served == 2)


def test_a_version_that_was_rolled_back_to_is_the_newest_again(store: Store, world: World) -> None:
    for number in range(1, 5):
        with store.transaction() as session:
            row = policies.add_candidate(session, world.lineage_id, artifact_sha256="a" * 64, update_number=number)
            policies.serve(session, row.id)
    with store.transaction() as session:
        policies.serve(session, policies.by_name(session, world.lineage_id, "base").id)
    world.lessons(num_groups=1)
    with store.transaction() as session:
        assert lessons.set_aside_stale(session, world.lineage_id, max_staleness=0) == 0
        facts = lesson_facts.load(session, session.scalars(select(LessonRow)).all())
        assert {fact.policy_number for fact in facts} == {policies.num_served(session, world.lineage_id)}


def test_refusals_in_a_row_are_said_and_a_version_that_serves_ends_them(store: Store, world: World) -> None:
    assert not any("gate" in line for line in status_lines(store))
    refused(store, world, 2)
    assert "the gate refused the newest 2 versions, and base still serves; main-v2" in status_lines(store)[0]
    with store.transaction() as session:
        row = policies.add_candidate(session, world.lineage_id, artifact_sha256="a" * 64, update_number=1)
        policies.serve(session, row.id)
    assert not any("gate" in line for line in status_lines(store))


def test_a_candidate_that_training_had_overtaken_is_no_refusal(store: Store, world: World) -> None:
    with store.transaction() as session:
        row = policies.add_candidate(session, world.lineage_id, artifact_sha256="a" * 64, update_number=1)
        policies.reject(session, row.id, None, "overtaken")
        assert not fallbacks.refusals(session, world.lineage_id).versions


@pytest.fixture
def server(model_folder: Path, tmp_path: Path) -> Iterator[str]:
    with policy_server(model_folder, tmp_path) as url:
        yield url


def test_after_three_refusals_training_goes_on_from_the_checkpoint_of_what_serves_and_says_so(
    tmp_path: Path, store: Store, world: World, database_url: str, redis_url: str, server: str
) -> None:
    world.lessons(num_groups=6)
    world.stop_after(1)
    settings = settings_of(tmp_path, database_url, redis_url, server)

    def serving() -> list[str] | None:
        return policies_by_status(store).get("serving")

    with training(settings, SANE) as thread:
        wait_until(lambda: serving() == ["main-v1"], thread.is_alive)
    world.stop_after(5)
    with training(settings, REFUSES_ALL) as thread:
        wait_until(lambda: number_of(store, world) == 5, thread.is_alive)
        wait_until(lambda: len(policies_by_status(store).get("rejected", [])) == 4, thread.is_alive)
    rows = ledger(store)
    assert [row.number for row in rows] == [1, 2, 3, 4, 5]
    assert [row.parent_sha256 for row in rows[1:4]] == [row.checkpoint_sha256 for row in rows[:3]]
    assert (rows[4].parent_sha256, rows[4].fell_back_to) == (rows[0].checkpoint_sha256, "main-v1")
    with store.transaction() as session:
        fallback = session.scalars(select(FallbackRow)).one()
        assert (fallback.version_update, fallback.after_update, fallback.num_refused) == (1, 4, 3)
        assert not fallback.fresh_optimizer  # kept, though only one checkpoint is kept otherwise
        audited = session.scalars(select(AuditRow).where(AuditRow.action == "training.fall_back")).one()
        assert audited.detail["version"] == "main-v1"
    assert "training fell back to main-v1 after update 4" in status_lines(store)[0]
    world.stop_after(6)
    with training(settings, SANE) as thread:  # with a gate that makes sense it goes on at once
        wait_until(lambda: serving() == ["main-v6"], thread.is_alive)
    assert not any("gate" in line or "fell back" in line for line in status_lines(store))


def policies_by_status(store: Store) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    with store.transaction() as session:
        for row in session.scalars(select(PolicyVersionRow).order_by(PolicyVersionRow.number)):
            found.setdefault(row.status, []).append(row.name)
    return found


@pytest.mark.parametrize("fate", ["deleted", "damaged"])
def test_without_its_checkpoint_training_starts_from_the_adapter_and_the_ledger_says_so(
    tmp_path: Path,
    store: Store,
    world: World,
    database_url: str,
    redis_url: str,
    server: str,
    fate: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world.lessons(num_groups=4)
    world.stop_after(1)
    settings = settings_of(tmp_path, database_url, redis_url, server)
    with training(settings, SANE) as thread:
        wait_until(lambda: policies_by_status(store).get("serving") == ["main-v1"], thread.is_alive)
    world.stop_after(2)
    with training(settings, REFUSES_ALL) as thread:
        wait_until(lambda: "rejected" in policies_by_status(store), thread.is_alive)
    checkpoint = tmp_path / "checkpoints" / "main" / str(checkpoints_of(store)[0])
    if fate == "deleted":
        shutil.rmtree(checkpoint)
    else:
        (checkpoint / FACTS).write_text("{}")
    world.stop_after(3)
    monkeypatch.setattr(loop, "MAX_REFUSALS", 1)
    with training(settings, SANE) as thread:
        wait_until(lambda: number_of(store, world) == 3, thread.is_alive)
    with store.transaction() as session:
        fallback = session.scalars(select(FallbackRow)).one()
    assert fallback.fresh_optimizer
    assert ledger(store)[2].parent_sha256 == fallback.checkpoint_sha256


def num_fallbacks(store: Store) -> int:
    with store.transaction() as session:
        return session.scalars(select(func.count()).select_from(FallbackRow)).one()


def test_killed_on_the_way_back_the_trainer_ends_with_the_very_same_weights_and_again_and_again_is_said(
    tmp_path: Path, store: Store, world: World, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.lessons(num_groups=7)
    world.stop_after(7)

    config = TrainerConfig(
        lora_r=4, groups_per_update=1, publish_every=1, gate_max_kl_previous=1e-12, teacher_ema=0.1, keep_checkpoints=1
    )

    def end(home: str, at: int) -> list[str | None]:
        settings = settings_of(tmp_path / home, database_url, redis_url)
        with training(settings, config) as thread:
            wait_until(lambda: number_of(store, world) == at, thread.is_alive)
        return list(checkpoints_of(store))

    whole = end("whole", 7)
    assert len(set(whole)) == 7
    assert "fallback number 2 since base began to serve" in status_lines(store)[0]
    rows = ledger(store)
    first = rows[0].parent_sha256
    assert [row.parent_sha256 for row in rows] == [first, *whole[:2], first, *whole[3:5], first]
    start_over(store)
    with store.transaction() as session:
        session.execute(delete(FallbackRow))
        session.execute(delete(PolicyVersionRow).where(PolicyVersionRow.number > 0))
    world.stop_after(3)
    with monkeypatch.context() as patience:
        patience.setattr(loop, "MAX_REFUSALS", 9)
        end("killed", 3)  # all refused, the fallback not yet written: killed before it
    assert num_fallbacks(store) == 0
    world.stop_after(7)
    refusing = {
        "PRECEPTOR_TRAINER_GATE_MAX_KL_PREVIOUS": "1e-12",
        "PRECEPTOR_TRAINER_PUBLISH_EVERY": "1",
        "PRECEPTOR_TRAINER_PATIENCE_SECONDS": "600",  # it falls back and takes up nothing
        "PRECEPTOR_TRAINER_GROUPS_PER_UPDATE": "9",
        "PRECEPTOR_TRAINER_TEACHER_EMA": "0.1",
    }
    with running_trainer(tmp_path / "killed", database_url, redis_url, **refusing) as process:
        wait_until(lambda: num_fallbacks(store) == 1, lambda: process.poll() is None)
        process.send_signal(signal.SIGKILL)  # it is written, and nothing was trained from it yet
        process.wait()
    assert end("killed", 7) == whole
