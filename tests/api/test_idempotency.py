"""Idempotency keys: the same request has its effect once and gets the same answer."""

import threading
from collections.abc import Callable

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import func, select, text

from services.contracts.persons import Role
from services.store.core import idempotency
from services.store.core.transaction import Store
from services.store.tables.housekeeping import IdempotencyRow
from services.store.tables.loop import TaskRow
from services.store.tables.people import PersonRow
from tests.api.conftest import Api, made, refused, task_body
from tests.serving import serve

pytestmark = pytest.mark.integration


def test_the_same_request_twice_gets_the_same_answer_and_has_one_effect(api: Api, store: Store) -> None:
    body = task_body("a")
    body.pop("key")
    first, second = api.post("/v1/tasks", body, once="k1"), api.post("/v1/tasks", body, once="k1")
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() == second.json()
    assert "idempotent-replay" not in first.headers
    assert second.headers["idempotent-replay"] == "true"
    with store.transaction() as session:
        assert session.scalar(select(func.count()).select_from(TaskRow)) == 1


def test_the_answer_of_the_first_time_is_given_even_when_the_world_has_moved_on(api: Api) -> None:
    first = api.post("/v1/loop", {"sampling": True}, once="k1")
    made(api.post("/v1/loop", {"sampling": False}))
    assert made(api.post("/v1/loop", {"sampling": True}, once="k1")) == first.json()
    assert made(api.get("/v1/status"))["loop"] == first.json() | {"sampling": False}


def test_the_same_key_with_another_body_is_refused(api: Api, store: Store) -> None:
    made(api.post("/v1/tasks", task_body("a"), once="k1"))
    problem = refused(api.post("/v1/tasks", task_body("b"), once="k1"), 409)
    assert "Idempotency key" in str(problem["title"])
    assert "another body" in str(problem["detail"])
    with store.transaction() as session:
        assert session.scalar(select(func.count()).select_from(TaskRow)) == 1


def test_the_same_key_on_another_route_is_refused(api: Api) -> None:
    made(api.post("/v1/tasks", task_body("a"), once="k1"))
    assert "POST /v1/tasks" in str(refused(api.post("/v1/loop", {"sampling": True}, once="k1"), 409)["detail"])


def test_a_key_belongs_to_its_caller(api: Api, someone: Callable[[str, Role], Api]) -> None:
    other = someone("pipe", Role.SERVICE)
    made(api.post("/v1/tasks", task_body("a"), once="k1"))
    assert made(other.post("/v1/tasks", task_body("b"), once="k1"))["key"] == "b"


def test_a_request_that_failed_may_be_sent_again_with_its_key(api: Api) -> None:
    made(api.post("/v1/persons", {"name": "ann"}))
    refused(api.post("/v1/persons", {"name": "ann"}, once="k1"), 409)
    made(api.post("/v1/persons", {"name": "ben"}, once="k1"))


def test_requests_with_one_key_at_the_same_time_take_turns(app: FastAPI, api: Api, store: Store) -> None:
    answers: list[httpx2.Response] = []
    body = {"name": "ann", "role": "annotator"}
    headers = {"Authorization": f"Bearer {api.key}", "Idempotency-Key": "k1"}
    with serve(app) as url:
        barrier = threading.Barrier(8)

        def send() -> None:
            barrier.wait()
            answers.append(httpx2.post(f"{url}/v1/persons", json=body, headers=headers, timeout=120))

        threads = [threading.Thread(target=send) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [answer.status_code for answer in answers] == [201] * 8
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotent-replay" in answer.headers for answer in answers) == 7
    with store.transaction() as session:
        assert session.scalar(select(func.count()).select_from(PersonRow).where(PersonRow.name == "ann")) == 1


def test_a_key_shown_once_is_not_kept_with_the_answer(api: Api, store: Store) -> None:
    shown = made(api.post("/v1/persons", {"name": "ann"}, once="k1"))
    again = made(api.post("/v1/persons", {"name": "ann"}, once="k1"))
    assert again == shown | {"api_key": ""}
    with store.transaction() as session:
        kept = session.scalars(select(IdempotencyRow.body)).all()
    assert not any(str(shown["api_key"]) in body for body in kept)


@pytest.mark.parametrize("key", ["a b", "x" * 256, "tab\t", "é"])
def test_a_key_is_visible_ascii_of_at_most_255_characters(api: Api, key: str) -> None:
    headers = {b"Authorization": f"Bearer {api.key}".encode(), b"Idempotency-Key": key.encode()}
    problem = refused(api.http.post("/v1/tasks", json=task_body(), headers=headers), 422)
    assert "Idempotency-Key" in str(problem["detail"])


def test_old_answers_are_forgotten(api: Api, store: Store) -> None:
    made(api.post("/v1/tasks", task_body("a"), once="old"))
    made(api.post("/v1/tasks", task_body("b"), once="new"))
    with store.transaction() as session:
        session.execute(text("UPDATE idempotency SET created_at = now() - interval '8 days' WHERE key = 'old'"))
    with store.transaction() as session:
        assert idempotency.forget_old(session, days=7, limit=100) == 1
        assert session.scalars(select(IdempotencyRow.key)).all() == ["new"]
