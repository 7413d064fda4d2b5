"""Questions under way: no expert's answer waits for another expert."""

import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import func, select

from services.contracts.answers import AnswerKind
from services.contracts.experts import ConsultRequest, ConsultResult, Descriptor
from services.experts.protocol import client
from services.experts.protocol.app import create_expert_app
from services.jobs.app import app
from services.jobs.consult import consult
from services.jobs.maintain import maintain
from services.jobs.runtime import Runtime, runtime
from services.local.care import clocks
from services.local.care.findings import Severity
from services.store.core.transaction import Store
from services.store.loop import processes
from services.store.tables.loop import ConsultationRow, ExpertRow
from tests.serving import reply_with, serve, serve_raw
from tests.store.conftest import World
from tests.waiting import wait_until

pytestmark = pytest.mark.integration
PATIENCE = 120.0


class Judge:
    """An expert that is always content."""

    descriptor = Descriptor(
        name="judge", version="1", kinds=[AnswerKind.SCORE], domains=["*"], deterministic=True, verifier=True
    )

    def consult(self, request: ConsultRequest) -> ConsultResult:
        """Everything is right."""
        return ConsultResult(score=1.0)


@pytest.fixture
def worker(database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    """This process as a worker."""
    monkeypatch.setenv("PRECEPTOR_DATABASE_URL", database_url)
    monkeypatch.setenv("PRECEPTOR_REDIS_URL", redis_url)
    monkeypatch.setattr(app.conf, "broker_url", redis_url)
    runtime.cache_clear()
    yield runtime()
    runtime().close()
    runtime.cache_clear()


@pytest.fixture
def judge_url() -> Iterator[str]:
    with serve(create_expert_app(Judge())) as url:
        yield url


def ask_about(store: Store, world: World, num_rollouts: int = 1, **endpoints: str) -> dict[str, list[UUID]]:
    """Rollouts, with a question about each to every one of these experts; the questions' ids by expert."""
    with store.transaction() as session:
        experts = {name: world.expert(session, name) for name in endpoints}
        for name, row in experts.items():
            row.endpoint = endpoints[name]
        world.drawn(session, world.task(session), size=num_rollouts)
        asked: dict[str, list[UUID]] = {}
        for question in session.scalars(select(ConsultationRow).order_by(ConsultationRow.id)):
            asked.setdefault(session.get_one(ExpertRow, question.expert_id).name, []).append(question.id)
        return asked


def read(store: Store, question: UUID) -> ConsultationRow:
    with store.transaction() as session:
        return session.get_one(ConsultationRow, question)


def drip(connection: socket.socket, request: bytes) -> None:
    """Headers that never end, a byte at a time."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    for _ in range(600):
        connection.sendall(b"X")
        time.sleep(0.1)


def test_an_expert_that_drips_holds_back_no_other_answer_of_its_message(
    store: Store, world: World, worker: Runtime, judge_url: str
) -> None:
    with serve_raw(drip) as slow_url:
        asked = ask_about(store, world, 3, judge=judge_url, slow=slow_url)
        worker.asker.submit([*asked["slow"], *asked["judge"]])
        wait_until(lambda: all(read(store, one).status == "answered" for one in asked["judge"]))
        wait_until(lambda: all(read(store, one).status == "asked" for one in asked["slow"]))


def test_an_expert_holds_no_more_questions_than_it_takes_and_the_rest_keep_their_time(
    store: Store, world: World, worker: Runtime
) -> None:
    held, leave = threading.Semaphore(0), threading.Event()

    def hold(connection: socket.socket, _: bytes) -> None:
        held.release()
        leave.wait(PATIENCE)

    with serve_raw(hold) as url:
        asked = ask_about(store, world, 12, slow=url)["slow"]
        worker.asker.submit(asked)
        for _ in range(8):  # what its descriptor says it takes at once
            assert held.acquire(timeout=PATIENCE)
        rows = [read(store, one) for one in asked]
        assert sum(row.status == "asked" for row in rows) == 8
        assert {row.attempts for row in rows if row.status == "pending"} == {0}
        leave.set()


def test_an_expert_that_wants_an_hours_rest_is_asked_once_more_before_the_deadline(
    store: Store, world: World, worker: Runtime
) -> None:
    busy = reply_with(b"{}", "429 Too Many Requests", extra="Retry-After: 3600\r\n")
    with serve_raw(busy) as url:
        [question] = ask_about(store, world, busy=url)["busy"]
        consult([str(question)])
    row = read(store, question)
    assert (row.status, row.failures, row.lease_until) == ("pending", 0, None)
    with store.transaction() as session:
        now = session.scalars(select(func.now())).one()
    assert now + timedelta(minutes=20) < row.not_before < row.deadline


def test_a_worker_whose_clock_is_wrong_charges_no_expert_with_it_and_doctor_names_the_machine(
    store: Store, world: World, worker: Runtime, judge_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ahead(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.fromtimestamp(time.monotonic() + shift, UTC)

    shift = time.time() + 45 * 60 - time.monotonic()
    [question] = ask_about(store, world, judge=judge_url)["judge"]
    with monkeypatch.context() as wrong:
        wrong.setattr(client, "datetime", Ahead)
        wrong.setattr(time, "time", lambda: time.monotonic() + shift)
        consult([str(question)])
        maintain()
    assert read(store, question).status == "answered"
    with store.transaction() as session:
        [clock] = [row for row in processes.latest(session) if row.name.startswith(processes.CLOCK_OF)]
    assert "45 minutes ahead" in clock.activity
    assert clocks.judge_beat(clock.name, clock.activity, 1).verdict is Severity.FAIL
    maintain()
    with store.transaction() as session:
        assert not [row for row in processes.latest(session) if row.name.startswith(processes.CLOCK_OF)]
