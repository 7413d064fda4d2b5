"""The api takes nothing in while a disk is nearly full."""

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from services.api.app import create_app
from services.contracts.base import JsonObject
from services.runtime.settings import Settings
from services.store.core.transaction import Store
from services.store.loop import switches
from services.store.people import persons
from tests.api.conftest import Api, refused, task_body
from tests.store.conftest import World

pytestmark = pytest.mark.integration


def test_tasks_and_rollouts_are_refused_with_507_while_a_disk_is_full(
    settings: Settings, store: Store, world: World, tmp_path: Path
) -> None:
    full = settings.model_copy(update={"home": tmp_path, "min_free_gb": 1e6})
    with store.transaction() as session:
        key = persons.ensure_owner(session)
        task = world.task(session)
    with TestClient(create_app(full)) as http:
        api = Api(http, str(key))
        requests: dict[str, JsonObject] = {
            "/v1/tasks": task_body(),
            "/v1/tasks/import": {"tasks": [task_body()]},
            "/v1/rollouts": {"task_id": str(task.id), "text": "4"},
        }
        for path, body in requests.items():
            response = api.post(path, body)
            problem = refused(response, 507)
            assert "PRECEPTOR_MIN_FREE_GB" in str(problem["detail"])
            assert response.headers["retry-after"] == "30"
        assert api.get("/v1/tasks").is_success


def test_what_the_sweep_found_on_another_machine_counts_too(api: Api, store: Store, world: World) -> None:
    with store.transaction() as session:
        switches.block(session, world.lineage_id, "the disk of the data folder has 0.1 GB left")
    problem = refused(api.post("/v1/tasks", task_body()), 507)
    assert "0.1 GB" in str(problem["detail"])
