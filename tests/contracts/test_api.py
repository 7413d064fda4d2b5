"""The api answers what its schema says, whatever it is sent."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from schemathesis import Case

from services.api.app import create_app
from services.runtime.settings import Settings
from services.store.core.transaction import Store
from services.store.loop import lineages
from services.store.people import persons
from tests.api.conftest import Api, broker, made, policy_url, task_body
from tests.api.policy_stand_in import TOKENIZER, VOCAB
from tests.contracts.checks import bounded, call, read_schema
from tests.serving import serve
from tests.store.conftest import World

pytestmark = pytest.mark.integration

__all__ = ["broker", "policy_url"]

schema = read_schema(create_app(Settings()))


@dataclass(frozen=True)
class Served:
    """An api with something of every noun, and its first owner's key."""

    url: str
    key: str


@pytest.fixture(scope="module")
def served(fresh_database: Callable[[], str], policy_url: str, broker: str) -> Iterator[Served]:
    """The api; what one example stores the next one meets."""
    database = fresh_database()
    store = Store(database, pool_size=2)
    with store.transaction() as session:
        world = World(lineages.ensure(session, "main", "tiny", "b" * 64, TOKENIZER, VOCAB).id)
        key = persons.ensure_owner(session)
        world.expert(session)
    assert key is not None
    given = Settings.model_validate({"database_url": database, "policy_url": policy_url, "redis_url": broker})
    with serve(create_app(given)) as url, httpx2.Client(base_url=url, timeout=None) as http:
        api = Api(http, key)
        task = made(api.post("/v1/tasks", task_body()))
        made(api.post("/v1/rollouts", {"task_id": task["id"], "text": "a"}))
        yield Served(url, key)
    store.close()


@schema.parametrize()
@bounded
def test_the_api_answers_as_its_schema_says(case: "Case[Any]", served: Served) -> None:
    call(case, served.url, {"Authorization": f"Bearer {served.key}"})
