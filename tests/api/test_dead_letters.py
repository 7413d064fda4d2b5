"""Dead consultations and draws: listed by status, and tried again one by one or all at once."""

from collections.abc import Callable
from uuid import UUID

import pytest
from sqlalchemy import select, update

from services.contracts.ids import new_id
from services.contracts.persons import Role
from services.contracts.rollouts import Purpose, Sampling
from services.store.core.transaction import Store
from services.store.loop import dead_letters, groups
from services.store.tables.loop import ConsultationRow, GroupRow
from tests.api.conftest import Api, items, made, refused
from tests.store.conftest import World

pytestmark = pytest.mark.integration


@pytest.fixture
def dead_draw(store: Store, world: World) -> UUID:
    """One dead draw, beside one that waits and one of rollouts sampled elsewhere."""
    with store.transaction() as session:
        task = world.task(session, "hard")
        row = groups.add(session, task, purpose=Purpose.TRAIN, size=4, sampling=Sampling())
        row.status, row.reason, row.failures = "dead", "the policy did not answer", 5
        groups.add(session, task, purpose=Purpose.TRAIN, size=4, sampling=Sampling())
        world.external(session, task)
        return row.id


def test_draws_are_listed_with_their_task_by_status_and_without_groups_sampled_elsewhere(
    api: Api, dead_draw: UUID
) -> None:
    assert [draw["status"] for draw in items(api.get("/v1/draws"))] == ["pending", "dead"]
    [dead] = items(api.get("/v1/draws", status="dead"))
    assert (dead["id"], dead["task_key"]) == (str(dead_draw), "hard")
    assert (dead["reason"], dead["failures"]) == ("the policy did not answer", 5)
    assert len(items(api.get("/v1/draws", limit=1))) == 1
    refused(api.get("/v1/draws", cursor="x"), 422)


def test_a_dead_draw_is_tried_again_once(api: Api, store: Store, dead_draw: UUID) -> None:
    drawn = made(api.post(f"/v1/draws/{dead_draw}/requeue", once="k"))
    assert (drawn["status"], drawn["failures"], drawn["reason"]) == ("pending", 0, None)
    assert made(api.post(f"/v1/draws/{dead_draw}/requeue", once="k")) == drawn
    refused(api.post(f"/v1/draws/{dead_draw}/requeue"), 409)
    refused(api.post(f"/v1/draws/{new_id()}/requeue"), 404)
    with store.reading() as session:
        assert session.get_one(GroupRow, dead_draw).sent_at is None, "the sweep sends it"


def test_all_dead_ones_are_tried_again_a_bounded_number_at_once(
    api: Api, store: Store, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "MAX_AT_ONCE", 2)
    with store.transaction() as session:
        world.expert(session, "judge")
        world.drawn(session, world.task(session), size=3)
        session.execute(update(ConsultationRow).values(status="dead", reason="away"))
    assert made(api.post("/v1/consultations/requeue")) == {"num_requeued": 2, "has_more": True}
    assert made(api.post("/v1/consultations/requeue")) == {"num_requeued": 1, "has_more": False}
    assert made(api.post("/v1/draws/requeue")) == {"num_requeued": 0, "has_more": False}


def test_a_retired_expert_is_not_asked_again(api: Api, store: Store, world: World) -> None:
    with store.transaction() as session:
        expert = world.expert(session, "judge")
        world.drawn(session, world.task(session), size=1)
        session.execute(update(ConsultationRow).values(status="dead", reason="away"))
        dead = session.scalars(select(ConsultationRow.id)).one()
        expert.status, expert.reason = "retired", "gone"
    assert "gone" in str(refused(api.post(f"/v1/consultations/{dead}/requeue"), 409)["detail"])
    assert made(api.post("/v1/consultations/requeue")) == {"num_requeued": 0, "has_more": False}
    assert made(api.get(f"/v1/consultations/{dead}"))["status"] == "dead"


@pytest.mark.parametrize("path", ["/v1/consultations/requeue", "/v1/draws/requeue"])
def test_only_operators_try_dead_ones_again(someone: Callable[[str, Role], Api], path: str) -> None:
    refused(someone("ann", Role.ANNOTATOR).post(path), 403)
