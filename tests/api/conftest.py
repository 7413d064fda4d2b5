"""An api over a database of the test's own, with an owner's key, a lineage and a policy that tokenises."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import httpx2
import pytest
import structlog
from fastapi import FastAPI
from sqlalchemy import func, select
from starlette.testclient import TestClient

from services.api.app import create_app
from services.contracts.base import Json, JsonObject
from services.contracts.persons import Role
from services.jobs.app import app as celery
from services.local.servers.valkey import EmbeddedValkey
from services.runtime.settings import Settings
from services.store.core.transaction import Store
from services.store.loop import lineages
from services.store.people import persons
from services.store.tables.schema import METADATA
from tests.api import policy_stand_in
from tests.api.policy_stand_in import TOKENIZER, VOCAB
from tests.serving import serve
from tests.store.conftest import World


@pytest.fixture(autouse=True)
def _plain_logs() -> Iterator[None]:
    """No logger keeps the standard output of a test in which a process's `main` set logging up."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def broker(valkey_server: EmbeddedValkey) -> str:
    """The session's Valkey, as the broker that messages are sent to."""
    celery.conf.update(broker_url=valkey_server.url)
    return valkey_server.url


@pytest.fixture(scope="session")
def policy_url() -> Iterator[str]:
    """A policy that tokenises."""
    with serve(policy_stand_in.create_app()) as url:
        yield url


@pytest.fixture
def settings(database_url: str, policy_url: str, broker: str) -> Settings:
    """Settings for this test's database."""
    return Settings.model_validate({"database_url": database_url, "policy_url": policy_url, "redis_url": broker})


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """The store the api works on, for tests that look behind it."""
    made = Store(database_url, pool_size=4)
    yield made
    made.close()


@pytest.fixture
def world(store: Store) -> World:
    """A lineage with its base serving."""
    with store.transaction() as session:
        row = lineages.ensure(session, "main", "tiny", "b" * 64, TOKENIZER, VOCAB)
    return World(row.id)


@pytest.fixture
def app(settings: Settings, world: World) -> FastAPI:
    """The api."""
    return create_app(settings)


@dataclass(frozen=True)
class Api:
    """A caller of the api: every POST carries an idempotency key of its own unless one is given."""

    http: httpx2.Client
    key: str
    headers: dict[str, str] = field(default_factory=dict)

    def get(self, path: str, **params: str | int) -> httpx2.Response:
        return self.http.get(path, params=params or None, headers=self._headers())

    def post(self, path: str, body: Json = None, *, once: str | None = None) -> httpx2.Response:
        headers = self._headers() | {"Idempotency-Key": once or uuid4().hex}
        if body is None:
            return self.http.post(path, headers=headers)
        return self.http.post(path, json=body, headers=headers)

    def put(self, path: str, body: Json) -> httpx2.Response:
        return self.http.put(path, json=body, headers=self._headers())

    def post_bytes(self, path: str, body: bytes, content_type: str = "application/json") -> httpx2.Response:
        return self.http.post(path, content=body, headers=self._headers() | {"Content-Type": content_type})

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def task(self, key: str = "t", **changes: Json) -> JsonObject:
        """A stored task."""
        return made(self.post("/v1/tasks", task_body(key, **changes)))


def task_body(key: str = "t", **changes: Json) -> JsonObject:
    """A task as its owner sends it."""
    body: JsonObject = {"key": key, "domain": "math", "messages": [{"role": "user", "content": f"What is {key}?"}]}
    return body | changes


def made(response: httpx2.Response) -> JsonObject:
    """The body of a response that must be a success."""
    assert response.is_success, response.text
    body: JsonObject = response.json()
    return body


def items(response: httpx2.Response) -> list[JsonObject]:
    """The items of a page that must be a success."""
    found = made(response)["items"]
    assert isinstance(found, list)
    return [item for item in found if isinstance(item, dict)]


def refused(response: httpx2.Response, status: int) -> JsonObject:
    """The problem document of a response that must be a refusal with this status."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: JsonObject = response.json()
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    return problem


@pytest.fixture
def client(app: FastAPI) -> Iterator[httpx2.Client]:
    """HTTP to the api, in this process."""
    with TestClient(app, raise_server_exceptions=False) as http:
        yield http


@pytest.fixture
def api(client: httpx2.Client, store: Store, world: World) -> Api:
    """The first owner's view of the api."""
    with store.transaction() as session:
        key = persons.ensure_owner(session)
    assert key is not None
    return Api(client, key)


@pytest.fixture(scope="module")
def quiet(fresh_database: Callable[[], str], policy_url: str, broker: str) -> Iterator[tuple[Api, Store]]:
    """An owner's view of an api with one task, shared by tests whose every request is refused, and its store."""
    url = fresh_database()
    store = Store(url, pool_size=4)
    with store.transaction() as session:
        lineages.ensure(session, "main", "tiny", "b" * 64, TOKENIZER, VOCAB)
        key = persons.ensure_owner(session)
    assert key is not None
    given = Settings.model_validate({"database_url": url, "policy_url": policy_url, "redis_url": broker})
    with TestClient(create_app(given), raise_server_exceptions=False) as http:
        api = Api(http, key)
        api.task()
        yield api, store
    store.close()


def count_rows(store: Store) -> dict[str, int]:
    """How many rows every table has."""
    with store.transaction() as session:
        return {
            name: session.scalar(select(func.count()).select_from(table)) or 0
            for name, table in METADATA.tables.items()
        }


@pytest.fixture
def refusing(quiet: tuple[Api, Store]) -> Iterator[Api]:
    """An api for requests that are refused; in the end no row of any table may have been added."""
    api, store = quiet
    before = count_rows(store)
    yield api
    assert count_rows(store) == before


@pytest.fixture
def someone(api: Api) -> Callable[[str, Role], Api]:
    """A function that makes a person and gives their view of the api."""

    def make(name: str, role: Role) -> Api:
        created = made(api.post("/v1/persons", {"name": name, "role": role.value}))
        return Api(api.http, str(created["api_key"]))

    return make


@pytest.fixture
def person_id(api: Api) -> UUID:
    """The first owner's id."""
    return UUID(str(made(api.get("/v1/persons/me"))["id"]))
