"""The api killed, the database gone, while rollouts arrive: what was acknowledged is there once, nothing twice."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import func, select

from services.api.app import create_app
from services.contracts.base import JsonObject
from services.local.servers.postgres import EmbeddedPostgres
from services.runtime.settings import Settings
from services.store.core import migrate
from services.store.core.transaction import Store
from services.store.loop import lineages
from services.store.people import persons
from services.store.tables.loop import ConsultationRow, RolloutRow
from tests.api.conftest import Api, made, task_body
from tests.api.policy_stand_in import TOKENIZER, VOCAB
from tests.ports import free_port
from tests.serving import serve
from tests.store.conftest import World
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

SENDERS = 8
START_SECONDS = 240


class Sending:
    """Rollouts sent by several threads, each with its key, until told to stop; notes what was acknowledged."""

    def __init__(self, url: str, key: str, task_id: str, prefix: str) -> None:
        self.acknowledged: dict[str, str] = {}
        self.unanswered: set[str] = set()
        self._url, self._key, self._task_id, self._prefix = url, key, task_id, prefix
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(SENDERS)]

    def __enter__(self) -> "Sending":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, count: int) -> None:
        """Return when so many were acknowledged."""
        wait_until(lambda: len(self.acknowledged) >= count)

    def _send(self, number: int) -> None:
        with httpx2.Client(base_url=self._url, timeout=120) as http:
            for turn in range(10_000):
                if self._stop.is_set():
                    return
                key = f"{self._prefix}-{number}-{turn}"
                self.unanswered.add(key)
                try:
                    response = send(http, self._key, self._task_id, key)
                except httpx2.TransportError:
                    return
                if response.status_code == 201:
                    self.acknowledged[key] = response.json()["id"]
                    self.unanswered.discard(key)
                else:
                    assert response.status_code == 503, response.text
                    return


def send(http: httpx2.Client, key: str, task_id: str, once: str) -> httpx2.Response:
    """The rollout of this idempotency key; its text is the key."""
    headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": once}
    return http.post("/v1/rollouts", json={"task_id": task_id, "text": once}, headers=headers)


@contextmanager
def run_api(settings: Settings) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """The api process's URL, and the process."""
    port = free_port()
    environment = os.environ | {
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "PRECEPTOR_POLICY_URL": settings.policy_url,
    }
    process = subprocess.Popen([sys.executable, "-m", "services.web", "--port", str(port)], env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: is_up(url), lambda: process.poll() is None, pause=0.05)
        yield url, process
    finally:
        process.kill()
        process.wait()


def is_up(url: str) -> bool:
    """Whether a server answers there."""
    try:
        return httpx2.get(f"{url}/healthz", timeout=60).is_success
    except httpx2.TransportError:
        return False


def send_again(url: str, key: str, task_id: str, keys: set[str]) -> dict[str, str]:
    """Every rollout of these keys once more; the ids they have."""
    with httpx2.Client(base_url=url, timeout=60) as http, ThreadPoolExecutor(SENDERS) as threads:
        answers = threads.map(lambda once: (once, made(send(http, key, task_id, once))), sorted(keys))
        return {once: str(rollout["id"]) for once, rollout in answers}


def stored(store: Store) -> dict[str, str]:
    """The ids of all rollouts by their texts; each text may be there once."""
    with store.transaction() as session:
        rows = session.execute(select(RolloutRow.text, RolloutRow.id)).all()
    found = {text: str(rollout_id) for text, rollout_id in rows}
    assert len(found) == len(rows), "a rollout is there twice"
    return found


def test_kill_9_of_the_api_loses_no_acknowledged_rollout_and_a_retry_doubles_none(
    settings: Settings, api: Api, store: Store, world: World
) -> None:
    with store.transaction() as session:
        world.expert(session)
    task_id = str(api.task()["id"])
    acknowledged: dict[str, str] = {}
    unanswered: set[str] = set()
    for round_number in range(2):
        with run_api(settings) as (url, process), Sending(url, api.key, task_id, f"r{round_number}") as sending:
            sending.wait_for(40)
            process.send_signal(signal.SIGKILL)
            process.wait()
        acknowledged |= sending.acknowledged
        unanswered |= sending.unanswered
    there = stored(store)
    assert acknowledged.items() <= there.items()
    assert there.keys() <= acknowledged.keys() | unanswered
    with run_api(settings) as (url, _):
        again = send_again(url, api.key, task_id, set(acknowledged) | unanswered)
    assert acknowledged.items() <= again.items()
    assert again == stored(store)
    with store.transaction() as session:
        assert session.scalar(select(func.count()).select_from(ConsultationRow)) == len(again)


def test_a_database_that_goes_away_during_a_flush_is_a_503_and_a_retry_stores_each_once(
    server_folder: Path, policy_url: str, broker: str
) -> None:
    postgres = EmbeddedPostgres(server_folder / "flushed", free_port())
    postgres.start()
    try:
        migrate.upgrade(postgres.url)
        store = Store(postgres.url, pool_size=2)
        with store.transaction() as session:
            lineages.ensure(session, "main", "tiny", "b" * 64, TOKENIZER, VOCAB)
            key = persons.ensure_owner(session)
        assert key is not None
        given = {"database_url": postgres.url, "policy_url": policy_url, "redis_url": broker}
        app: FastAPI = create_app(Settings.model_validate(given))
        with serve(app) as url:
            with httpx2.Client(base_url=url, timeout=60) as http:
                body: JsonObject = task_body()
                task_id = str(made(Api(http, key).post("/v1/tasks", body))["id"])
            with Sending(url, key, task_id, "r") as sending:
                sending.wait_for(40)
                postgres.stop()
                wait_until(lambda: not any(thread.is_alive() for thread in sending._threads))
            assert len(sending.unanswered) == SENDERS
            postgres.start()
            assert sending.acknowledged.items() <= stored(store).items()
            again = send_again(url, key, task_id, set(sending.acknowledged) | sending.unanswered)
        assert sending.acknowledged.items() <= again.items()
        assert again == stored(store)
        store.close()
    finally:
        postgres.stop()
