"""The Celery tasks, called as a worker calls them, against a real store, broker and expert over HTTP."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from sqlalchemy import func, select

from services.contracts.answers import AnswerKind
from services.contracts.experts import ConsultRequest, ConsultResult, Descriptor
from services.experts.app import create_expert_app
from services.jobs.app import app
from services.jobs.consult import consult
from services.jobs.maintain import maintain
from services.jobs.runtime import runtime
from services.jobs.sample import sample
from services.local.layout import free_port
from services.store import loop, rollouts
from services.store.models import AttemptRow, ConsultationRow, GroupRow, RolloutRow
from services.store.store import Store
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


def test_a_draw_while_the_policy_is_away_stays_pending_and_costs_no_attempt(
    worker: str,
    store: Store,
    world: World,
) -> None:
    with store.transaction() as session:
        world.task(session)
        loop.switch(session, world.lineage_id, sampling=True)
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
        loop.switch(session, world.lineage_id, sampling=True)
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
