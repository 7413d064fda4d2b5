"""The Celery tasks, called as a worker calls them, against a real store, broker and expert over HTTP."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from services.contracts.answers import AnswerKind
from services.contracts.experts import ConsultRequest, ConsultResult, Descriptor
from services.experts.protocol.app import create_expert_app
from services.jobs.app import app
from services.jobs.consult import consult
from services.jobs.maintain import maintain
from services.jobs.readmit import readmit
from services.jobs.runtime import runtime
from services.jobs.sample import sample
from services.store.core.transaction import Store
from services.store.loop import processes, rollouts, switches
from services.store.tables.base import LineageRow
from services.store.tables.loop import AttemptRow, ConsultationRow, ExpertRow, GroupRow, RolloutRow
from services.store.views import status as stats
from tests.ports import free_port
from tests.serving import serve
from tests.store.conftest import World

pytestmark = pytest.mark.integration


class Judge:
    """An expert that counts how often it is asked."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.descriptor = Descriptor(
            name="judge", version="1", kinds=[AnswerKind.SCORE], domains=["*"], deterministic=True, verifier=True
        )

    def consult(self, request: ConsultRequest) -> ConsultResult:
        """Everything is right."""
        self.num_calls += 1
        return ConsultResult(score=1.0)


@pytest.fixture
def judge() -> Judge:
    """The expert."""
    return Judge()


@pytest.fixture
def worker(database_url: str, redis_url: str, judge: Judge, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """This process as a worker, with the judge served over HTTP; yields the judge's endpoint."""
    monkeypatch.setenv("PRECEPTOR_DATABASE_URL", database_url)
    monkeypatch.setenv("PRECEPTOR_REDIS_URL", redis_url)
    monkeypatch.setenv("PRECEPTOR_POLICY_URL", f"http://127.0.0.1:{free_port()}")  # nobody answers there
    monkeypatch.setattr(app.conf, "broker_url", redis_url)
    runtime.cache_clear()
    with serve(create_expert_app(judge)) as endpoint:
        yield endpoint
        runtime().close()
    runtime.cache_clear()


def prepare(store: Store, world: World, endpoint: str) -> RolloutRow:
    """One open rollout with one question to the expert at the endpoint."""
    with store.transaction() as session:
        world.expert(session).endpoint = endpoint
        session.flush()
        return world.drawn(session, world.task(session), size=1)[0]


def question_ids(store: Store) -> list[str]:
    """The ids of every question."""
    with store.transaction() as session:
        return [str(i) for i in session.scalars(select(ConsultationRow.id))]


def test_a_consultation_delivered_twice_asks_the_expert_once(
    worker: str,
    store: Store,
    world: World,
    judge: Judge,
) -> None:
    rollout = prepare(store, world, worker)
    consult(question_ids(store))
    consult(question_ids(store))
    assert judge.num_calls == 1
    with store.transaction() as session:
        assert rollouts.get(session, rollout.id).score == 1.0


def test_an_expert_that_is_down_leaves_the_question_pending_with_the_reason(
    worker: str,
    store: Store,
    world: World,
) -> None:
    rollout = prepare(store, world, f"http://127.0.0.1:{free_port()}")
    consult(question_ids(store))
    with store.transaction() as session:
        [row] = session.scalars(select(ConsultationRow)).all()
        assert (row.status, row.failures) == ("pending", 1)
        assert row.reason
        [attempt] = session.scalars(select(AttemptRow)).all()
        assert attempt.outcome == "failed"
        assert rollouts.get(session, rollout.id).status == "open"


def quarantine_expert(store: Store, endpoint: str, **changes: object) -> None:
    """The expert, moved to this endpoint, is in quarantine and due to be looked after."""
    with store.transaction() as session:
        row = session.scalars(select(ExpertRow)).one()
        report = {"endpoint": endpoint, "descriptor": row.descriptor, "checks": []}
        values = {"endpoint": endpoint, "report": report, "consecutive_failures": 20, "num_pauses": 1, **changes}
        session.execute(update(ExpertRow).values(status="quarantined", retry_at=func.now(), **values))


def read_expert(store: Store) -> ExpertRow:
    with store.transaction() as session:
        return session.scalars(select(ExpertRow)).one()


@pytest.mark.parametrize(("was_active", "status"), [(True, "active"), (False, "probation")])
def test_an_expert_that_is_back_is_asked_again_by_itself(
    was_active: bool, status: str, worker: str, store: Store, world: World, judge: Judge
) -> None:
    rollout = prepare(store, world, worker)
    quarantine_expert(store, worker, was_active=was_active)
    consult(question_ids(store))
    assert judge.num_calls == 0
    readmit()
    found = read_expert(store)
    assert (found.status, found.reason, found.retry_at) == (status, None, None)
    consult(question_ids(store))
    assert judge.num_calls == 1
    assert (read_expert(store).consecutive_failures, read_expert(store).num_pauses) == (0, 0)
    with store.transaction() as session:
        assert rollouts.get(session, rollout.id).status != "open"


@pytest.mark.parametrize(("was_active", "status"), [(True, "pending"), (False, "dead")])
def test_rollouts_wait_for_a_quarantined_expert_only_where_its_answers_have_weight(
    was_active: bool, status: str, worker: str, store: Store, world: World
) -> None:
    prepare(store, world, worker)
    quarantine_expert(store, worker, was_active=was_active)
    with store.transaction() as session:
        lineage = session.get_one(LineageRow, world.lineage_id)
        told = stats.status(session, lineage, max_backlog=48, max_groups_per_task=8, group_size=8).waits_for
    assert any("the expert judge, which is in quarantine" in line for line in told) == was_active
    maintain()
    with store.transaction() as session:
        assert session.scalars(select(ConsultationRow.status)).all() == [status]
        assert [row.name for row in processes.latest(session)] == ["sweep"]


def test_an_expert_that_is_still_away_is_looked_after_less_and_less_often(
    worker: str, store: Store, world: World
) -> None:
    prepare(store, world, worker)
    for num_pauses, seconds in ((1, 20), (2, 40), (30, 1800)):
        quarantine_expert(store, f"http://127.0.0.1:{free_port()}", num_pauses=num_pauses)
        began = datetime.now(UTC)
        readmit()
        ended = datetime.now(UTC)
        found = read_expert(store)
        assert found.status == "quarantined"
        assert found.retry_at is not None
        assert began <= found.retry_at - timedelta(seconds=seconds) <= ended
        readmit()  # not due: nobody looks
        assert read_expert(store).num_pauses == num_pauses + 1


def test_an_expert_that_is_back_in_another_version_stays_out(
    worker: str, store: Store, world: World, judge: Judge
) -> None:
    prepare(store, world, worker)
    quarantine_expert(store, worker, version="2")
    readmit()
    found = read_expert(store)
    assert found.status == "quarantined"
    assert "register it again" in (found.reason or "")


def test_an_active_expert_that_has_become_another_is_noticed_without_being_registered_again(
    worker: str, store: Store, world: World
) -> None:
    prepare(store, world, worker)
    readmit()
    assert read_expert(store).status == "active"
    with store.transaction() as session:
        [row] = session.scalars(select(ExpertRow)).all()
        row.descriptor, row.looked_at = row.descriptor | {"domains": ["math"]}, None  # as if it had been like this
    readmit()
    found = read_expert(store)
    assert (found.status, "register it again" in (found.reason or "")) == ("probation", True)


def test_an_active_expert_in_whose_place_something_else_answers_goes_back_to_probation(
    worker: str, store: Store, world: World, tmp_path: Path
) -> None:
    prepare(store, world, worker)
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "expert").write_text("<html>under construction</html>")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        with store.transaction() as session:
            session.execute(update(ExpertRow).values(endpoint=f"http://127.0.0.1:{server.server_port}"))
        readmit()
        server.shutdown()
    found = read_expert(store)
    assert (found.status, "no longer describes itself" in (found.reason or "")) == ("probation", True)


def test_an_expert_that_was_let_in_and_fails_goes_back_at_once_and_loses_no_question(
    worker: str, store: Store, world: World
) -> None:
    prepare(store, world, worker)
    quarantine_expert(store, worker)
    readmit()
    with store.transaction() as session:
        session.execute(update(ExpertRow).values(endpoint=f"http://127.0.0.1:{free_port()}"))
    consult(question_ids(store))
    found = read_expert(store)
    assert (found.status, found.num_pauses) == ("quarantined", 2)
    with store.transaction() as session:
        assert session.scalars(select(ConsultationRow.status)).all() == ["pending"]


def test_a_draw_while_the_policy_is_away_stays_pending_and_costs_no_attempt(
    worker: str,
    store: Store,
    world: World,
) -> None:
    with store.transaction() as session:
        world.task(session)
        switches.switch(session, world.lineage_id, sampling=True)
    maintain()
    with store.transaction() as session:
        groups = session.scalars(select(GroupRow)).all()
    assert groups
    sample([str(group.id) for group in groups])
    with store.transaction() as session:
        assert {(g.status, g.failures) for g in session.scalars(select(GroupRow))} == {("pending", 0)}
        assert session.scalar(select(func.count()).select_from(RolloutRow)) == 0


def test_the_sweep_plans_only_while_sampling_is_on(worker: str, store: Store, world: World) -> None:
    with store.transaction() as session:
        world.task(session)
    maintain()
    with store.transaction() as session:
        assert session.scalar(select(func.count()).select_from(GroupRow)) == 0
        switches.switch(session, world.lineage_id, sampling=True)
    maintain()
    with store.transaction() as session:
        assert session.scalar(select(func.count()).select_from(GroupRow)) == 1


def test_a_broker_that_is_away_fails_nobody(worker: str) -> None:
    code = (
        "from uuid import uuid4; from services.jobs import dispatch;"
        "dispatch.consultations([uuid4()]); dispatch.lessons()"
    )
    url = f"redis://127.0.0.1:{free_port()}/0"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PRECEPTOR_REDIS_URL": url}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "message not sent" in done.stdout
    assert "trainer not woken" in done.stdout


def test_questions_are_counted_by_expert_and_outcome(store: Store, world: World, worker: str, judge: Judge) -> None:
    with store.transaction() as session:
        expert = world.expert(session)
        expert.endpoint = worker
        world.drawn(session, world.task(session), size=1)
        away = world.expert(session, "away")
        away.endpoint = f"http://127.0.0.1:{free_port()}"
        world.drawn(session, world.task(session, "u"), size=1)
        ids = [str(i) for i in session.scalars(select(ConsultationRow.id))]
    consult(ids)
    registry = runtime().registry
    total = "preceptor_consultations_total"
    assert registry.get_sample_value(total, {"expert": "judge", "outcome": "answered"}) == 2
    assert registry.get_sample_value(total, {"expert": "away", "outcome": "unavailable"}) == 1
