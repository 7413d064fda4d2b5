"""A worker process as the stack starts it: no kind of work keeps another from running, and it outlives its broker."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from services.contracts.answers import AnswerKind
from services.contracts.corrections import CorrectionSubmit
from services.contracts.experts import ConsultRequest, ConsultResult, Descriptor
from services.experts.protocol.app import create_expert_app
from services.jobs.app import app
from services.jobs.shares import Shares
from services.local.servers.valkey import EmbeddedValkey
from services.local.supervise import stack
from services.store.core.transaction import Store
from services.store.corrections import claims, corrections, effects
from services.store.loop import lineages, processes, switches
from services.store.tables.corrections import EffectRow
from services.store.tables.loop import ConsultationRow, ExpertRow
from tests.jobs.test_effects import publish, train
from tests.ports import free_port
from tests.serving import serve, serve_raw
from tests.store.conftest import TOKENIZER, VOCAB, World
from tests.waiting import wait_until
from tests.web.correcting import Queue, Said

NUM_CORRECTIONS = 24


class Judge:
    """An expert of the name it is given that is always content."""

    def __init__(self) -> None:
        self.descriptor = Descriptor(
            name="judge", version="1", kinds=[AnswerKind.SCORE], domains=["*"], deterministic=True, verifier=True
        )

    def consult(self, request: ConsultRequest) -> ConsultResult:
        """Everything is right."""
        return ConsultResult(score=1.0)


@dataclass
class Place:
    """A worker process, its database, its broker, and a policy server that takes questions and never answers."""

    store: Store
    world: World
    valkey: EmbeddedValkey
    judge_url: str
    worker: "subprocess.Popen[bytes]"

    def send(self, task: str, *args: object) -> None:
        """Give the worker a message, as beat and the dispatcher do."""
        with app.connection_for_write(self.valkey.url_of(0)) as connection:
            app.send_task(task, args=args, connection=connection)


@pytest.fixture
def place(database_url: str, server_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    never = threading.Event()

    def stay_silent(connection: socket.socket, request: bytes) -> None:
        never.wait()

    store = Store(database_url, pool_size=4)
    with (
        EmbeddedValkey(server_folder / f"valkey-{free_port()}", port=free_port(), durable=False) as valkey,
        serve_raw(stay_silent) as policy,
        serve(create_expert_app(Judge())) as judge,
    ):
        for name, value in {"DATABASE_URL": database_url, "REDIS_URL": valkey.url_of(0), "POLICY_URL": policy}.items():
            monkeypatch.setenv(f"PRECEPTOR_{name}", value)
        with store.transaction() as session:
            world = World(lineages.ensure(session, "main", "tiny", "b" * 64, TOKENIZER, VOCAB).id)
        [spec, _] = stack.workers()
        with (tmp_path / "worker.log").open("wb") as log:
            worker = subprocess.Popen([sys.executable, *spec.argv[1:]], cwd=spec.cwd, stdout=log, stderr=log)
            try:
                yield Place(store, world, valkey, judge, worker)
            finally:
                never.set()
                worker.kill()
                worker.wait()
                store.close()


def sweep_again(place: Place) -> None:
    """Return when the worker has swept once more, from the broker to the database."""
    with place.store.transaction() as session:
        began = session.scalars(select(func.clock_timestamp())).one()

    def swept() -> bool:
        place.send("maintain")
        time.sleep(0.5)
        with place.store.transaction() as session:
            return any(row.name == "sweep" and row.beat_at > began for row in processes.latest(session))

    wait_until(swept, lambda: place.worker.poll() is None)


def measure_many(place: Place) -> list[str]:
    """Corrections that an update used, with effects to be measured: one message for each."""
    queue = Queue(place.store, place.world)
    queue.experts("judge")
    person, _ = queue.person("ana")
    for number in range(NUM_CORRECTIONS):
        item = queue.ask(queue.draw(f"t{number}", "What is t?", "abc", {"judge": Said(score=0.0)}))
        with place.store.transaction() as session:
            claims.claim_one(session, item, person)
            corrections.submit(session, item, person, CorrectionSubmit(verdict="corrected", text="abd"))
    for _ in range(NUM_CORRECTIONS // 8):
        train(queue)
    publish(queue, update_number=NUM_CORRECTIONS // 8)
    with place.store.transaction() as session:
        effects.plan(session, place.world.lineage_id)
        return [str(one) for one in session.scalars(select(EffectRow.id))]


@pytest.mark.integration
def test_measurements_that_hang_keep_neither_the_sweep_nor_verdicts_waiting(place: Place) -> None:
    for effect_id in measure_many(place):
        place.send("measure", [effect_id])
    sweep_again(place)
    with place.store.transaction() as session:
        session.execute(update(ExpertRow).where(ExpertRow.name == "judge").values(endpoint=place.judge_url))
        [rollout] = place.world.drawn(session, place.world.task(session, "judged"), size=1)
        asked = (
            select(ConsultationRow)
            .join(ExpertRow, ExpertRow.id == ConsultationRow.expert_id)
            .where(ExpertRow.name == "judge", ConsultationRow.rollout_id == rollout.id)
        )
        question = session.scalars(asked).one().id
    place.send("consult", [str(question)])

    def is_answered() -> bool:
        with place.store.transaction() as session:
            return session.get_one(ConsultationRow, question).status == "answered"

    wait_until(is_answered, lambda: place.worker.poll() is None)


@pytest.mark.integration
def test_a_worker_outlives_its_broker_though_a_task_was_running(place: Place) -> None:
    with place.store.transaction() as session:
        place.world.task(session)
        switches.switch(session, place.world.lineage_id, sampling=True)
    sweep_again(place)  # and so it draws, which the policy server never answers
    for _ in range(2):
        place.valkey.kill()
        time.sleep(1)
        place.valkey.start()
        sweep_again(place)
    assert place.worker.poll() is None


def test_a_message_that_finds_no_thread_of_its_share_is_let_go() -> None:
    inside, leave = threading.Barrier(2), threading.Event()
    num_runs = []

    @Shares(num_draws=1).bound("sample")
    def work() -> None:
        num_runs.append(1)
        inside.wait()
        leave.wait()

    running = threading.Thread(target=work)
    running.start()
    inside.wait()
    work()  # returns at once: the only thread of the share is in use
    leave.set()
    running.join()
    assert len(num_runs) == 1
