"""Group commit and batches: every rollout its own outcome, stored once, answered after the commit."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from uuid import uuid4

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import func, select, text

from services.api import ingest
from services.contracts.base import Json, JsonObject
from services.contracts.persons import Role
from services.runtime.settings import Settings
from services.store.core.transaction import Store
from services.store.tables.housekeeping import IdempotencyRow
from services.store.tables.loop import ConsultationRow, GroupRow, RolloutRow
from services.store.tables.people import AuditRow
from tests.api.conftest import Api, count_rows, items, made, refused
from tests.api.policy_stand_in import TOKENIZER, VOCAB
from tests.serving import serve
from tests.store.conftest import World

pytestmark = pytest.mark.integration

MISSING = "01890000-0000-7000-8000-000000000000"


def batch(*rows: JsonObject) -> JsonObject:
    return {"rollouts": list(rows)}


def outcomes(answer: JsonObject) -> list[JsonObject]:
    rows = answer["rollouts"]
    assert isinstance(rows, list)
    return [row for row in rows if isinstance(row, dict)]


def words(answer: JsonObject) -> list[Json]:
    return [row["outcome"] for row in outcomes(answer)]


# --- batches ------------------------------------------------------------------------------------------------------


def test_a_batch_stores_its_good_rows_and_says_what_is_wrong_with_each_bad_one(api: Api) -> None:
    task, heldout = api.task(), api.task("h", split="heldout")
    rows: list[JsonObject] = [
        {"task_id": task["id"], "text": "a"},
        {"task_id": MISSING, "text": "b"},
        {"task_id": heldout["id"], "text": "c"},
        {"task_id": task["id"], "token_ids": [VOCAB], "tokenizer_hash": TOKENIZER},
        {"task_id": task["id"], "token_ids": [1], "tokenizer_hash": "c" * 64},
        {"task_id": task["id"], "text": "x" * 1000},
        {"task_id": task["id"], "text": "g", "group_id": MISSING},
        {"task_id": task["id"], "text": "h", "policy_version": "never-made"},
        {"task_id": task["id"], "token_ids": [72, 105], "tokenizer_hash": TOKENIZER},
    ]
    answer = made(api.post("/v1/rollouts/batch", batch(*rows)))
    assert (answer["num_created"], answer["num_existing"], answer["num_refused"]) == (2, 0, 7)
    problems = [row["problem"] for row in outcomes(answer) if row["outcome"] == "refused"]
    kinds = [str(problem["type"]).rpartition(":")[2] for problem in problems if isinstance(problem, dict)]
    assert kinds == [
        "task-not-found",
        "not-trainable",
        "outside-vocabulary",
        "tokenizer-differs",
        "rollout-too-long",
        "not-its-group",
        "no-such-version",
    ]
    assert [row["row"] for row in outcomes(answer)] == list(range(1, 10))
    assert [stored["text"] for stored in items(api.get("/v1/rollouts"))] == ["Hi", "a"]


def test_a_batch_that_breaks_the_contract_is_refused_whole(refusing: Api) -> None:
    [task] = items(refusing.get("/v1/tasks"))
    good: JsonObject = {"task_id": task["id"], "text": "a"}
    broken: list[JsonObject] = [
        good | {"text": 1},
        good | {"unknown": 1},
        good | {"key": "a b"},
        good | {"group": "g", "group_id": MISSING},
    ]
    for row in broken:
        problem = refused(refusing.post("/v1/rollouts/batch", batch(good, row)), 422)
        assert "rollouts.1" in str(problem["errors"])
    refused(refusing.post("/v1/rollouts/batch", batch()), 422)
    refused(refusing.post("/v1/rollouts/batch", batch(*[good] * 1_001)), 422)


def test_a_batch_sent_again_stores_nothing_twice_and_what_was_mended(api: Api) -> None:
    task = api.task()
    good: JsonObject = {"task_id": task["id"], "text": "a", "key": "k1"}
    bad: JsonObject = {"task_id": MISSING, "text": "b", "key": "k2"}
    first = made(api.post("/v1/rollouts/batch", batch(good, bad)))
    assert words(first) == ["created", "refused"]
    second = made(api.post("/v1/rollouts/batch", batch(good, bad | {"task_id": task["id"]})))
    assert words(second) == ["existing", "created"]
    assert outcomes(second)[0]["id"] == outcomes(first)[0]["id"]
    other = made(api.post("/v1/rollouts/batch", batch(good | {"text": "other"})))
    [row] = outcomes(other)
    assert row["outcome"] == "refused"
    assert isinstance(row["problem"], dict)
    assert row["problem"]["status"] == 409
    assert len(items(api.get("/v1/rollouts"))) == 2


def test_the_key_of_the_header_stands_for_a_key_on_every_row(api: Api) -> None:
    task = api.task()
    rows = [{"task_id": task["id"], "text": text} for text in "ab"]
    assert words(made(api.post("/v1/rollouts/batch", batch(*rows), once="K"))) == ["created", "created"]
    assert words(made(api.post("/v1/rollouts/batch", batch(*rows), once="K"))) == ["existing", "existing"]
    again = api.post("/v1/rollouts", rows[1], once="K/2")
    assert again.headers["idempotent-replay"] == "true"
    assert again.status_code == 201


def test_a_key_on_two_rows_of_one_batch_is_the_first_ones(api: Api) -> None:
    row: JsonObject = {"task_id": api.task()["id"], "text": "a", "key": "k"}
    answer = made(api.post("/v1/rollouts/batch", batch(row, row)))
    assert words(answer) == ["created", "refused"]
    assert len(items(api.get("/v1/rollouts"))) == 1


def test_rows_with_one_group_are_siblings_also_when_a_part_was_stored_before(api: Api) -> None:
    task, other = api.task("a"), api.task("b")
    rows: list[JsonObject] = [
        {"task_id": task["id"], "text": str(number), "group": "g", "key": f"k{number}"} for number in range(4)
    ]
    first = made(api.post("/v1/rollouts/batch", batch(*rows[:2])))
    second = made(api.post("/v1/rollouts/batch", batch(*rows)))
    assert words(second) == ["existing", "existing", "created", "created"]
    assert len({row["group_id"] for row in outcomes(first) + outcomes(second)}) == 1
    assert [row["index_in_group"] for row in outcomes(second)] == [0, 1, 2, 3]
    apart = made(api.post("/v1/rollouts/batch", batch(rows[0] | {"key": "x"})))
    assert outcomes(apart)[0]["group_id"] != outcomes(first)[0]["group_id"]
    mixed: list[JsonObject] = [
        {"task_id": task["id"], "text": "a", "group": "m"},
        {"task_id": other["id"], "text": "b", "group": "m"},
    ]
    assert words(made(api.post("/v1/rollouts/batch", batch(*mixed)))) == ["created", "refused"]


def test_a_batch_consults_as_many_experts_as_rollouts_one_by_one(api: Api, store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session, "every")
        world.expert(session, "first", rollouts_per_group=1)
        world.expert(session, "after", needs_answers=True)
        world.expert(session, "paused", status="paused")
        world.expert(session, "shown", metadata_keys=("answer",), granted=("answer",))
        world.expert(session, "unshown", metadata_keys=("answer",))
    task = api.task(metadata={"answer": "4"})
    rows: list[JsonObject] = [{"task_id": task["id"], "text": text, "group": "g"} for text in "abc"]
    answer = made(api.post("/v1/rollouts/batch", batch(*rows)))
    asked = [
        sorted(str(one["expert_name"]) for one in items(api.get(f"/v1/rollouts/{row['id']}/consultations")))
        for row in outcomes(answer)
    ]
    assert asked == [["every", "first", "shown"], ["every", "shown"], ["every", "shown"]]
    assert {row["status"] for row in outcomes(answer)} == {"open"}
    with store.transaction() as session:
        assert session.scalars(select(GroupRow.size)).all() == [3]


def test_what_a_batch_stores_is_what_the_single_route_stores(api: Api, store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session)
    row: JsonObject = {
        "task_id": api.task()["id"],
        "token_ids": [72, 0, 33],
        "tokenizer_hash": TOKENIZER,
        "sampler_logprobs": [-0.1, -1e-300, -1e4],
        "action_mask": [True, False, True],
        "sampling": {"temperature": 0.7, "stop": ['"a": 1']},
        "policy_version": "base",
        "purpose": "train",
    }
    one = made(api.post("/v1/rollouts", row))
    [other] = outcomes(made(api.post("/v1/rollouts/batch", batch(row))))
    own = ("id", "group_id", "created_at")
    first, second = made(api.get(f"/v1/rollouts/{one['id']}")), made(api.get(f"/v1/rollouts/{other['id']}"))
    assert {k: v for k, v in first.items() if k not in own} == {k: v for k, v in second.items() if k not in own}
    assert first["text"] == "H\ufffd!"
    assert first["sampler_logprobs"] == [-0.1, 0.0, -1e4]


def test_who_may_not_send_stores_nothing(api: Api, store: Store, someone: Callable[[str, Role], Api]) -> None:
    task = api.task()
    rows = batch({"task_id": task["id"], "text": "a"})
    annotator = someone("ann", Role.ANNOTATOR)
    before = count_rows(store)
    refused(annotator.post("/v1/rollouts/batch", rows), 403)
    refused(Api(api.http, "").post("/v1/rollouts/batch", rows), 401)
    refused(Api(api.http, "pk_unknown").post("/v1/rollouts", {"task_id": task["id"], "text": "a"}), 401)
    assert count_rows(store) == before


def test_the_audit_trail_has_every_request_that_stored_something(api: Api, store: Store) -> None:
    task = api.task()
    one = made(api.post("/v1/rollouts", {"task_id": task["id"], "text": "a"}, once="k"))
    made(api.post("/v1/rollouts", {"task_id": task["id"], "text": "a"}, once="k"))
    many = outcomes(made(api.post("/v1/rollouts/batch", batch(*[{"task_id": task["id"], "text": c} for c in "abc"]))))
    with store.transaction() as session:
        rows = session.scalars(select(AuditRow).where(AuditRow.noun == "rollout").order_by(AuditRow.id)).all()
    assert [(row.action, row.noun_id) for row in rows] == [("rollouts.add", str(one["id"])), ("rollouts.add", None)]
    assert rows[1].detail == {"num_rollouts": 3, "first_id": many[0]["id"], "last_id": many[2]["id"]}


# --- group commit -------------------------------------------------------------------------------------------------


def send_at_once(url: str, key: str, bodies: list[JsonObject], keys: list[str] | None = None) -> list[httpx2.Response]:
    """Every rollout by a request of its own, all at the same time."""
    barrier = threading.Barrier(len(bodies))
    own = keys or [uuid4().hex for _ in bodies]

    def send(body: JsonObject, once: str) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": once}
        barrier.wait()
        return httpx2.post(f"{url}/v1/rollouts", json=body, headers=headers, timeout=60)

    with ThreadPoolExecutor(len(bodies)) as threads:
        return list(threads.map(send, bodies, own))


def test_a_bad_one_among_good_ones_fails_alone(app: FastAPI, api: Api, store: Store) -> None:
    task = api.task()
    good: JsonObject = {"task_id": task["id"], "text": "good"}
    bodies = [good, good | {"task_id": MISSING}, good, good | {"text": "x" * 2_000}, good, good | {"group_id": MISSING}]
    with serve(app) as url:
        answers = send_at_once(url, api.key, bodies * 4)
    assert [answer.status_code for answer in answers] == [201, 404, 201, 422, 201, 422] * 4
    with store.transaction() as session:
        assert session.scalar(select(func.count()).select_from(RolloutRow)) == 12
        assert session.scalar(select(func.count()).select_from(IdempotencyRow)) == 13  # the task's too


def test_what_only_the_database_refuses_fails_alone(app: FastAPI, api: Api, store: Store) -> None:
    task, gone = api.task("a"), api.task("b")
    made(api.post("/v1/rollouts", {"task_id": gone["id"], "text": "remembered"}))
    with store.transaction() as session:  # deleted behind the back of an api that remembers the task
        session.execute(text("DELETE FROM rollout"))
        session.execute(text("DELETE FROM rollout_group"))
        session.execute(text("DELETE FROM task WHERE id = :id"), {"id": gone["id"]})
        session.execute(text("ALTER TABLE rollout ADD CONSTRAINT unlucky CHECK (text <> 'thirteen')"))
    good: JsonObject = {"task_id": task["id"], "text": "good"}
    bodies = [good, good | {"task_id": gone["id"]}, good, good | {"text": "thirteen"}, good]
    with serve(app) as url:
        answers = send_at_once(url, api.key, bodies)
    assert [answer.status_code for answer in answers] == [201, 404, 201, 500, 201]
    assert "thirteen" not in answers[3].text
    assert [row["text"] for row in items(api.get("/v1/rollouts"))] == ["good"] * 3


def test_requests_that_arrive_at_once_share_a_transaction(
    app: FastAPI, api: Api, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies: list[JsonObject] = [{"task_id": api.task()["id"], "text": "a"} for _ in range(24)]
    with serve(app) as url:
        answers = send_at_once(url, api.key, bodies)
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 24
    with store.transaction() as session:
        assert (session.scalar(select(func.count(func.distinct(RolloutRow.created_at)))) or 0) < 24


def test_one_key_sent_many_times_at_once_stores_one_rollout(app: FastAPI, api: Api, store: Store) -> None:
    body: JsonObject = {"task_id": api.task()["id"], "text": "a"}
    with serve(app) as url:
        answers = send_at_once(url, api.key, [body] * 12, ["same"] * 12)
    assert [answer.status_code for answer in answers] == [201] * 12
    assert len({answer.text for answer in answers}) == 1
    assert sum("idempotent-replay" in answer.headers for answer in answers) == 11
    with store.transaction() as session:
        assert session.scalar(select(func.count()).select_from(RolloutRow)) == 1


def test_siblings_sent_at_once_get_places_of_their_own(app: FastAPI, api: Api) -> None:
    task = api.task()
    first = made(api.post("/v1/rollouts", {"task_id": task["id"], "text": "a"}))
    body: JsonObject = {"task_id": task["id"], "text": "b", "group_id": first["group_id"]}
    with serve(app) as url:
        answers = send_at_once(url, api.key, [body] * 12)
    assert sorted(answer.json()["index_in_group"] for answer in answers) == list(range(1, 13))


def test_a_replay_is_the_first_answer_also_after_the_rollout_went_on(api: Api, store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session)
    body: JsonObject = {"task_id": api.task()["id"], "text": "a"}
    first = api.post("/v1/rollouts", body, once="k")
    with store.transaction() as session:
        session.execute(text("UPDATE rollout SET status = 'ready', score = 1, settled_at = now() + interval '1 s'"))
    assert api.post("/v1/rollouts", body, once="k").text == first.text


def test_the_same_key_for_another_rollout_or_route_is_refused(api: Api) -> None:
    body: JsonObject = {"task_id": api.task()["id"], "text": "a"}
    made(api.post("/v1/rollouts", body, once="k"))
    refused(api.post("/v1/rollouts", body | {"text": "b"}, once="k"), 409)
    refused(api.post("/v1/loop", {"sampling": True}, once="k"), 409)


def test_more_than_the_process_holds_is_turned_away_with_a_time_to_come_back(
    app: FastAPI, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "MAX_HELD_ROWS", 3)
    body: JsonObject = {"task_id": api.task()["id"], "text": "a"}
    policy, release = app.state.shared.policy, threading.Event()
    monkeypatch.setattr(policy, "tokenize_batch", _hold(policy.tokenize_batch, release))
    headers = {"Authorization": f"Bearer {api.key}"}
    with serve(app) as url, ThreadPoolExecutor(8) as threads:
        sent = [
            threads.submit(httpx2.post, f"{url}/v1/rollouts", json=body, headers=headers, timeout=60) for _ in range(8)
        ]
        busy = [answer.result() for answer in islice(as_completed(sent), 5)]
        assert [answer.status_code for answer in busy] == [503] * 5
        assert {answer.headers["retry-after"] for answer in busy} == {"1"}
        release.set()
    assert len(items(api.get("/v1/rollouts"))) == 3


def test_a_batch_of_more_than_the_process_holds_is_taken_while_it_holds_nothing_else(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "MAX_HELD_ROWS", 3)
    rows: list[JsonObject] = [{"task_id": api.task()["id"], "text": text} for text in "abcde"]
    assert words(made(api.post("/v1/rollouts/batch", batch(*rows)))) == ["created"] * 5


def _hold(call: Callable[..., list[list[int]]], release: threading.Event) -> Callable[..., list[list[int]]]:
    def held(*given: object) -> list[list[int]]:
        release.wait(60)
        return call(*given)

    return held


def test_a_policy_that_is_away_is_a_503_and_what_needs_none_is_answered(
    database_url: str, broker: str, world: World, api: Api
) -> None:
    body: JsonObject = {"task_id": api.task()["id"], "text": "a"}
    first = api.post("/v1/rollouts", body, once="k")
    from starlette.testclient import TestClient

    from services.api.app import create_app

    away = {"database_url": database_url, "policy_url": "http://127.0.0.1:9", "redis_url": broker}
    with TestClient(create_app(Settings.model_validate(away)), raise_server_exceptions=False) as http:
        other = Api(http, api.key)
        problem = refused(other.post("/v1/rollouts", body), 503)
        assert problem["title"] == "Policy unavailable"
        refused(other.post("/v1/rollouts/batch", batch(body)), 503)
        assert other.post("/v1/rollouts", body, once="k").text == first.text
        refused(other.post("/v1/rollouts", body | {"task_id": MISSING}), 404)


def test_an_expert_is_not_asked_twice_when_rows_go_one_by_one(
    app: FastAPI, api: Api, store: Store, world: World
) -> None:
    with store.transaction() as session:
        world.expert(session)
        session.execute(text("ALTER TABLE rollout ADD CONSTRAINT unlucky CHECK (text <> 'thirteen')"))
    good: JsonObject = {"task_id": api.task()["id"], "text": "good"}
    with serve(app) as url:
        send_at_once(url, api.key, [good, good | {"text": "thirteen"}, good])
    with store.transaction() as session:
        assert session.scalar(select(func.count()).select_from(ConsultationRow)) == 2
        assert session.scalar(select(func.count()).select_from(RolloutRow)) == 2
