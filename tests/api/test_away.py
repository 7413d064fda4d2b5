"""The database or the broker away: 503 with Retry-After, or no difference at all, and work resumes by itself."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from services.api.app import create_app
from services.local.servers.postgres import EmbeddedPostgres
from services.local.servers.valkey import EmbeddedValkey
from services.runtime.settings import Settings
from services.store.core import migrate
from services.store.core.transaction import Store
from services.store.loop import lineages
from services.store.people import persons
from tests.api.conftest import Api, items, made, refused, task_body
from tests.api.policy_stand_in import TOKENIZER, VOCAB
from tests.freezing import frozen
from tests.ports import free_port
from tests.serving import serve
from tests.waiting import wait_until

pytestmark = pytest.mark.integration


@pytest.fixture
def postgres(server_folder: Path, request: pytest.FixtureRequest) -> Iterator[EmbeddedPostgres]:
    """A server of the test's own, to be stopped and started."""
    server = EmbeddedPostgres(server_folder / f"away-{abs(hash(request.node.name))}", free_port(), durable=False)
    server.start()
    yield server
    server.stop()


def _begin(postgres: EmbeddedPostgres) -> str:
    """A lineage in a new database; its owner's key."""
    migrate.upgrade(postgres.url)
    store = Store(postgres.url)
    with store.transaction() as session:
        lineages.ensure(session, "main", "tiny", "b" * 64, TOKENIZER, VOCAB)
        key = persons.ensure_owner(session)
    store.close()
    assert key is not None
    return key


def test_a_database_that_goes_away_is_a_503_and_the_api_recovers_with_it(
    postgres: EmbeddedPostgres, policy_url: str, broker: str
) -> None:
    key = _begin(postgres)
    settings = {"database_url": postgres.url, "policy_url": policy_url, "redis_url": broker}
    with serve(create_app(Settings.model_validate(settings))) as url, httpx2.Client(base_url=url, timeout=60) as http:
        api = Api(http, key)
        made(api.post("/v1/tasks", task_body("before")))
        postgres.stop()
        for response in (
            api.http.get("/healthz"),
            api.get("/v1/tasks"),
            api.post("/v1/tasks", task_body("during"), once="k1"),
        ):
            problem = refused(response, 503)
            assert int(response.headers["retry-after"]) > 0
            assert "same request again" in str(problem["hint"])
        postgres.start()
        made(api.http.get("/healthz"))
        made(api.post("/v1/tasks", task_body("during"), once="k1"))
        assert [task["key"] for task in items(api.get("/v1/tasks"))] == ["during", "before"]


def test_while_postgres_is_frozen_every_request_is_a_503_in_time_and_the_thaw_mends_it(
    postgres: EmbeddedPostgres, policy_url: str, broker: str
) -> None:
    key = _begin(postgres)
    settings = {"database_url": postgres.url, "policy_url": policy_url, "redis_url": broker}
    with serve(create_app(Settings.model_validate(settings))) as url:
        limits = httpx2.Limits(max_connections=None)
        with httpx2.Client(base_url=url, timeout=120, limits=limits) as http, ThreadPoolExecutor(90) as threads:
            api = Api(http, key)
            list(threads.map(lambda _: made(api.get("/v1/tasks")), range(40)))  # the pool is warm
            task = made(api.post("/v1/tasks", task_body("before")))
            with frozen(postgres):
                asked = [threads.submit(api.get, "/v1/tasks") for _ in range(70)]
                asked += [
                    threads.submit(api.post, "/v1/rollouts", {"task_id": task["id"], "text": "a"}) for _ in range(10)
                ]
                asked += [threads.submit(api.http.get, "/healthz") for _ in range(4)]
                for answer in asked:
                    refused(answer.result(), 503)
                refused(api.http.get("/healthz"), 503)
            wait_until(lambda: api.http.get("/healthz").is_success)
            made(api.post("/v1/rollouts", {"task_id": task["id"], "text": "a"}))


def test_a_broker_that_is_away_changes_no_answer(api: Api, valkey_server: EmbeddedValkey) -> None:
    valkey_server.kill()
    try:
        rollout = made(api.post("/v1/rollouts", {"task_id": api.task()["id"], "text": "a"}))
        assert made(api.get(f"/v1/rollouts/{rollout['id']}")).items() >= rollout.items()
        made(api.post("/v1/loop", {"sampling": True}))
    finally:
        valkey_server.start()
