"""Lists: newest first, page by page, filtered."""

from uuid import UUID

import pytest

from services.contracts.base import Json
from services.contracts.evaluations import Evaluation
from services.contracts.ids import new_id
from services.contracts.rollouts import Purpose
from services.contracts.tasks import Split
from services.store.core.pages import BadCursor, decode_cursor, encode_cursor
from services.store.core.transaction import Store
from tests.api.conftest import Api, items, made, refused
from tests.store.conftest import World


def keys(body: object, name: str = "key") -> list[str]:
    assert isinstance(body, dict)
    return [item[name] for item in body["items"]]


def test_a_cursor_names_the_row_after_which_a_page_begins() -> None:
    last = new_id()
    assert decode_cursor(encode_cursor(last)) == last


@pytest.mark.parametrize("cursor", ["", "x", "AAAA", "A" * 23, "é" * 22, "!" * 22, encode_cursor(UUID(int=0)) + "AAAA"])
def test_a_cursor_that_no_list_made_is_refused(cursor: str) -> None:
    with pytest.raises(BadCursor):
        decode_cursor(cursor)


@pytest.mark.integration
def test_a_list_gives_every_item_once_newest_first(api: Api) -> None:
    for n in range(5):
        api.task(f"t{n}")
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = made(api.get("/v1/tasks", limit=2, **cursor))
        seen += keys(page)
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": str(page["next_cursor"])}
    assert seen == ["t4", "t3", "t2", "t1", "t0"]


@pytest.mark.integration
def test_the_last_page_has_no_cursor_even_when_it_is_full(api: Api) -> None:
    for n in range(2):
        api.task(f"t{n}")
    assert made(api.get("/v1/tasks", limit=2))["next_cursor"] is None


@pytest.mark.integration
@pytest.mark.parametrize(
    "query", [{"cursor": "nonsense"}, {"limit": 0}, {"limit": 201}, {"limit": "many"}, {"cursor": "a" * 65}]
)
def test_a_bad_place_in_a_list_is_refused(api: Api, query: dict[str, str | int]) -> None:
    refused(api.get("/v1/tasks", **query), 422)


@pytest.mark.integration
def test_lists_are_filtered(api: Api, store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session)
        task = world.task(session, "a")
        world.task(session, "b", split=Split.HELDOUT, domain="tool-call")
        drawn = world.drawn(session, task, size=2)
        world.drawn(session, task, size=1, purpose=Purpose.PROBE)
    assert keys(made(api.get("/v1/tasks", split="heldout"))) == ["b"]
    assert keys(made(api.get("/v1/tasks", domain="math"))) == ["a"]
    assert keys(made(api.get("/v1/tasks", family="b"))) == ["b"]
    assert keys(made(api.get("/v1/rollouts", purpose="train")), "id") == [str(r.id) for r in reversed(drawn)]
    assert keys(made(api.get("/v1/rollouts", group_id=str(drawn[0].group_id), status="ready")), "id") == []
    assert len(keys(made(api.get("/v1/rollouts", domain="math")), "id")) == 3
    assert keys(made(api.get("/v1/rollouts", domain="tool-call")), "id") == []
    [expert] = keys(made(api.get("/v1/experts")), "id")
    asked = made(api.get("/v1/consultations", expert_id=expert, status="pending"))
    assert len(keys(asked, "id")) == 3
    assert set(keys(asked, "expert_name")) == {"judge"}
    [one] = keys(made(api.get(f"/v1/rollouts/{drawn[0].id}/consultations")), "id")
    assert made(api.get(f"/v1/consultations/{one}"))["tries"] == []
    assert keys(made(api.get("/v1/policies", status="serving")), "name") == ["base"]
    assert made(api.get("/v1/policies/serving"))["name"] == made(api.get("/v1/policies/base"))["name"]
    for path in ("updates", "evaluations", "corrections", "persons"):
        assert "next_cursor" in made(api.get(f"/v1/{path}"))


@pytest.mark.integration
def test_the_status_shows_the_loop(api: Api, store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session)
        world.drawn(session, world.task(session), size=2)
    made(api.post("/v1/loop", {"sampling": True, "max_updates": 3}))
    status = made(api.get("/v1/status"))
    assert status["loop"] == {"sampling": True, "training": True, "max_updates": 3}
    assert status["rollouts"] == {"open": 2}
    assert status["consultations"] == {"pending": 2}
    assert status["serving"] == "base"
    assert made(api.post("/v1/loop", {"training": False}))["max_updates"] == 3
    assert made(api.post("/v1/loop", {"no_end": True})) == {
        "sampling": True,
        "training": False,
        "max_updates": None,
    }


@pytest.mark.integration
def test_an_evaluation_is_planned_over_a_split(api: Api) -> None:
    refused(api.post("/v1/evaluations", {}), 422)
    for n in range(3):
        api.task(f"h{n}", split="heldout", family="h")
    planned = made(api.post("/v1/evaluations", {"num_samples": 4}))
    assert Evaluation.model_validate(planned).settings["temperatures"] == [0.0, 0.25, 0.5, 1.0]
    assert (planned["status"], planned["num_rollouts"], planned["num_settled"]) == ("running", 3 * (1 + 3 * 4), 0)
    refusals: list[list[Json]] = [[0.5, 0.5], [], [11.0], ["cold"]]
    for temperatures in refusals:
        refused(api.post("/v1/evaluations", {"temperatures": temperatures}), 422)
    assert made(api.get(f"/v1/evaluations/{planned['id']}"))["results"] == []
    refused(api.post("/v1/evaluations", {"split": "train"}), 422)


@pytest.mark.integration
def test_an_evaluation_of_what_is_not_there_is_refused_before_anything_is_planned(api: Api) -> None:
    api.task("h", split="heldout")
    api.task("v", split="validation", domain="code")
    for domain in ("code", "mathematics"):
        problem = refused(api.post("/v1/evaluations", {"domains": ["math", domain]}), 422)
        assert problem["detail"] == f"split 'heldout' has no tasks of {domain}"
        assert problem["hint"] == "It has tasks of math."
    assert refused(api.post("/v1/evaluations", {"policy_version": "main-v9"}), 404)["detail"] == (
        "no policy version 'main-v9'"
    )
    assert items(api.get("/v1/evaluations")) == []
