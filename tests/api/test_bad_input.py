"""Bad input: each a clear refusal with the reason, and nothing half-written."""

import json
import socket

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import func, select, text
from starlette.testclient import TestClient

from services.api.app import create_app
from services.api.limits import MAX_BODY_BYTES
from services.contracts.base import Json, JsonObject
from services.runtime.settings import Settings
from services.store.core.transaction import Store
from services.store.tables.loop import TaskRow
from tests.api.conftest import Api, count_rows, items, made, refused, task_body
from tests.api.policy_stand_in import TOKENIZER, VOCAB
from tests.serving import serve

pytestmark = pytest.mark.integration

MISSING = "01890000-0000-7000-8000-000000000000"


def where(problem: JsonObject) -> list[str]:
    errors = problem["errors"]
    assert isinstance(errors, list)
    return [str(e["where"]) for e in errors if isinstance(e, dict)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "   "}]}, "that is the prompt"),
        ({"messages": [{"role": "assistant", "content": "hello"}]}, "that is the prompt"),
        ({"messages": [{"role": "user", "content": "x" * 100_001}]}, "100000"),
        ({"domain": ""}, "domain"),
        ({"split": "test"}, "split"),
        ({"unknown": 1}, "unknown"),
        ({"metadata": {"tests": "assert f(1) == 2"}}, "metadata.tests"),
        ({"metadata": {"tests": {"entry_point": "f", "cases": []}}}, "metadata.tests.cases"),
        ({"metadata": {"tests": {"entry_point": "f", "cases": [{"args": [1]}]}}}, "metadata.tests.cases.0.expected"),
        ({"metadata": {"tests": {"entry_point": "not a name", "cases": [{"args": [], "expected": 1}]}}}, "identifier"),
        ({"metadata": {"tools": {"source": "def f(:", "names": ["f"]}}}, "does not parse"),
        ({"metadata": {"tools": {"source": "-" * 49_000 + "1", "names": ["f"]}}}, "does not parse"),
        ({"metadata": {"tools": {"source": "def f(): pass", "names": ["g"]}}}, "does not define g"),
        ({"metadata": {"notes": "x" * 200_001}}, "metadata is longer"),
        ({"metadata": {"reference": "r"}, "split": "heldout"}, "only a task of the split `train` may carry reference"),
        (
            {"metadata": {"precedents": [{"messages": [{"role": "user", "content": "q"}], "answer": "a"}]}}
            | {"split": "validation"},
            "only a task of the split `train` may carry precedents",
        ),
        ({"metadata": {"precedents": []}}, "metadata.precedents"),
        ({"metadata": {"max_new_tokens": 0}}, "metadata.max_new_tokens"),
        ({"metadata": {"max_new_tokens": True}}, "metadata.max_new_tokens"),
        ({"metadata": {"precedents": [{"messages": [], "answer": "a"}]}}, "metadata.precedents.0.messages"),
        ({"metadata": {"precedents": [{"messages": [{"role": "user", "content": "q"}]}]}}, "precedents.0.answer"),
        (
            {"metadata": {"precedents": [{"messages": [{"role": "assistant", "content": "q"}], "answer": "a"}]}},
            "must end with the user or tool message",
        ),
    ],
)
def test_a_task_that_makes_no_sense_is_refused_with_the_reason(refusing: Api, change: JsonObject, reason: str) -> None:
    problem = refused(refusing.post("/v1/tasks", task_body() | change), 422)
    assert reason in json.dumps(problem)
    assert len(json.dumps(problem)) < 4_000


def test_a_task_without_a_prompt_is_refused(refusing: Api) -> None:
    body = task_body()
    del body["messages"]
    assert where(refused(refusing.post("/v1/tasks", body), 422)) == ["body.messages"]


def test_a_task_key_that_names_other_content_is_refused(api: Api) -> None:
    api.task("a")
    assert "'a'" in str(refused(api.post("/v1/tasks", task_body("a", domain="other")), 409)["detail"])


def test_the_same_task_again_is_the_task_that_is_there(api: Api) -> None:
    assert api.task("a") == api.task("a")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"key": NaN}', "NaN"),
        (b'{"metadata": {"x": Infinity}}', "Infinity"),
        (b'{"metadata": {"x": 1e999}}', "finite"),
        (b'{"key": "a\\u0000b"}', "NUL"),
        (b'{"metadata": {"a\\u0000b": 1}}', "NUL"),
        (b'{"key": "\\ud800"}', "surrogate"),
        (b'{"key": "a", "key": "b"}', "twice"),
        (b'{"key": "\xff"}', "not JSON"),
        (b'{"key": ', "not JSON"),
        (b'{"x": ' + b"9" * 5_000 + b"}", "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"metadata": {"x": ' + b"[" * 600 + b"]" * 600 + b"}}", ""),
        (b"[]", ""),
        (b"1", ""),
        (b"null", ""),
        (b"", ""),
    ],
)
def test_a_body_that_is_not_strict_json_is_refused(refusing: Api, body: bytes, reason: str) -> None:
    assert reason in str(refused(refusing.post_bytes("/v1/tasks", body), 422)["detail"])


@pytest.mark.parametrize("unit", [b"[],", b"{},", b"1,", b'{"a":[]},'])
def test_a_body_of_very_many_values_is_refused_before_it_is_parsed(refusing: Api, unit: bytes) -> None:
    body = b'{"messages": [' + unit * ((MAX_BODY_BYTES - 100) // len(unit)) + b"0]}"
    problem = refused(refusing.post_bytes("/v1/tasks", body), 413)
    assert "the body has more than" in str(problem["detail"])


def test_an_object_of_very_many_keys_is_refused_in_one_sentence(refusing: Api) -> None:
    keys = b",".join(b'"k%d":0' % number for number in range(500_000))
    for body in (b"{" + keys + b"}", b"{" + keys + b',"k1":0}'):
        assert "500,00" in str(refused(refusing.post_bytes("/v1/tasks", body), 422)["detail"])


def test_text_outside_the_basic_plane_is_kept(api: Api) -> None:
    content = "\U0001f40d and \u00e9"
    body = json.dumps(task_body(messages=[{"role": "user", "content": content}])).encode()
    assert b"\\ud83d" in body
    task = made(api.post_bytes("/v1/tasks", body))
    assert made(api.get(f"/v1/tasks/{task['id']}"))["messages"] == [{"role": "user", "content": content}]


def test_a_body_that_is_not_declared_as_json_is_refused(refusing: Api) -> None:
    problem = refused(refusing.post_bytes("/v1/tasks", b"{}", "application/x-www-form-urlencoded"), 415)
    assert "Content-Type: application/json" in str(problem["hint"])


@pytest.mark.parametrize("path", ["/v1/tasks?domain=%00", "/v1/tasks?domain=a%00b", "/v1/policies/%00"])
def test_a_nul_in_an_address_is_refused(refusing: Api, path: str) -> None:
    refused(refusing.get(path), 422)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"/v1/tasks/{MISSING}", 404),
        (f"/v1/rollouts/{MISSING}", 404),
        (f"/v1/rollouts/{MISSING}/answers", 404),
        (f"/v1/rollouts/{MISSING}/consultations", 404),
        (f"/v1/experts/{MISSING}", 404),
        (f"/v1/consultations/{MISSING}", 404),
        (f"/v1/corrections/{MISSING}", 404),
        (f"/v1/evaluations/{MISSING}", 404),
        ("/v1/policies/none", 404),
        ("/v1/updates/7", 404),
        ("/v1/updates/0", 422),
        ("/v1/updates/99999999999999", 422),
        ("/v1/tasks/not-an-id", 422),
        ("/v1/nothing", 404),
        ("/nothing", 404),
    ],
)
def test_what_does_not_exist_is_a_problem_that_says_so(refusing: Api, path: str, status: int) -> None:
    refused(refusing.get(path), status)


def test_a_method_that_a_route_has_not_is_a_problem(refusing: Api) -> None:
    refused(refusing.http.delete("/v1/tasks", headers={"Authorization": f"Bearer {refusing.key}"}), 405)


# --- imports ------------------------------------------------------------------------------------------------------


def test_an_import_stores_every_row_and_repeats_without_effect(api: Api) -> None:
    rows: list[Json] = [task_body("a"), task_body("b")]
    first = made(api.post("/v1/tasks/import", {"tasks": rows}))
    assert (first["num_created"], first["num_existing"]) == (2, 0)
    second = made(api.post("/v1/tasks/import", {"tasks": [*rows, task_body("c")]}))
    assert (second["num_created"], second["num_existing"]) == (1, 2)
    verdicts = second["tasks"]
    assert isinstance(verdicts, list)
    assert [(v["row"], v["key"], v["created"]) for v in verdicts if isinstance(v, dict)] == [
        (1, "a", False),
        (2, "b", False),
        (3, "c", True),
    ]


def test_an_import_with_bad_rows_stores_nothing_and_names_each_with_its_reason(api: Api, store: Store) -> None:
    rows: list[Json] = [task_body("a"), task_body("b", messages=[]), {"domain": 5}, task_body("d")]
    problem = refused(api.post("/v1/tasks/import", {"tasks": rows}), 422)
    errors = problem["errors"]
    assert isinstance(errors, list)
    assert [(e["row"], e["where"]) for e in errors if isinstance(e, dict)] == [
        (2, "messages"),
        (3, "domain"),
        (3, "messages"),
    ]
    assert "2 rows are invalid (2, 3)" in str(problem["detail"])
    with store.transaction() as session:
        assert session.scalar(select(func.count()).select_from(TaskRow)) == 0


def test_an_import_that_changes_a_stored_task_stores_nothing(api: Api, store: Store) -> None:
    api.task("a")
    rows: list[Json] = [
        task_body("new"),
        task_body("a", domain="other"),
        task_body("twice"),
        task_body("twice", domain="x"),
    ]
    problem = refused(api.post("/v1/tasks/import", {"tasks": rows}), 422)
    errors = problem["errors"]
    assert isinstance(errors, list)
    assert [e["row"] for e in errors if isinstance(e, dict)] == [2, 4]
    with store.transaction() as session:
        assert session.scalars(select(TaskRow.key)).all() == ["a"]


def test_an_import_has_at_most_a_thousand_rows(refusing: Api) -> None:
    refused(refusing.post("/v1/tasks/import", {"tasks": [task_body()] * 1_001}), 422)


# --- rollouts -----------------------------------------------------------------------------------------------------


def tokens(task: JsonObject, **changes: Json) -> JsonObject:
    body: JsonObject = {"task_id": task["id"], "token_ids": [72, 105], "tokenizer_hash": TOKENIZER}
    return body | changes


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"token_ids": [1, VOCAB]}, f"token id {VOCAB} is outside the vocabulary of {VOCAB}"),
        ({"token_ids": [-1]}, "greater than or equal to 0"),
        ({"token_ids": [2**31]}, "less than"),
        ({"token_ids": []}, "at least 1"),
        ({"token_ids": [1] * 32_769}, "at most 32768"),
        ({"tokenizer_hash": "c" * 64}, "the rollout's tokenizer is cccccccccccc…, the policy's is aaaaaaaaaaaa…"),
        ({"tokenizer_hash": None}, "tokenizer_hash"),
        ({"text": "Hi"}, "either text or token_ids"),
        ({"token_ids": None, "tokenizer_hash": None}, "either text or token_ids"),
        ({"action_mask": [True]}, "1 entries for 2"),
        ({"action_mask": [False, False]}, "no token as an action"),
        ({"sampler_logprobs": [-1.0]}, "1 entries for 2"),
        ({"sampler_logprobs": [0.5, 0.0]}, "less than or equal to 0"),
        ({"group_id": MISSING}, "not a group of external rollouts"),
    ],
)
def test_a_rollout_that_cannot_be_trained_on_is_refused_with_the_reason(
    refusing: Api, changes: JsonObject, reason: str
) -> None:
    [task] = items(refusing.get("/v1/tasks"))
    problem = refused(refusing.post("/v1/rollouts", tokens(task, **changes)), 422)
    assert reason in json.dumps(problem, ensure_ascii=False)


def test_a_rollout_of_a_task_that_does_not_exist_is_refused(refusing: Api) -> None:
    refused(refusing.post("/v1/rollouts", tokens({"id": MISSING})), 404)


def test_a_rollout_of_a_heldout_task_is_never_for_training(api: Api) -> None:
    task = api.task(split="heldout")
    problem = refused(api.post("/v1/rollouts", tokens(task)), 422)
    assert "'heldout'" in str(problem["detail"])
    assert made(api.post("/v1/rollouts", tokens(task, purpose="evaluation")))["purpose"] == "evaluation"


def test_a_rollout_of_ten_megabytes_is_refused_before_it_is_read(app: FastAPI, api: Api) -> None:
    task = api.task()
    body = json.dumps({"task_id": task["id"], "text": "x" * 10_000_000}).encode()
    headers = {"Authorization": f"Bearer {api.key}", "Content-Type": "application/json"}
    with serve(app) as url:
        problem = refused(httpx2.post(f"{url}/v1/rollouts", content=body, headers=headers, timeout=None), 413)
        assert "8,388,608" in str(problem["detail"])
        chunks = (body[i : i + 65_536] for i in range(0, len(body), 65_536))
        problem = refused(httpx2.post(f"{url}/v1/rollouts", content=chunks, headers=headers, timeout=None), 413)
        assert "8,388,608" in str(problem["detail"])
    assert made(api.get("/v1/rollouts"))["items"] == []


def test_a_declared_length_over_the_limit_is_refused_without_waiting_for_the_body(app: FastAPI) -> None:
    with serve(app) as url, socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as raw:
        head = f"POST /v1/rollouts HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_BODY_BYTES + 1}\r\n\r\n"
        raw.sendall(head.encode())
        assert raw.recv(65_536).startswith(b"HTTP/1.1 413 ")


# --- corrections and late answers ---------------------------------------------------------------------------------


def test_a_correction_to_a_rollout_that_does_not_exist_is_refused(refusing: Api) -> None:
    assert MISSING in str(refused(refusing.post("/v1/corrections", {"rollout_id": MISSING}), 404)["detail"])
    refused(refusing.post(f"/v1/corrections/{MISSING}/submit", {"verdict": "fine"}), 404)
    refused(refusing.post(f"/v1/corrections/{MISSING}/skip", {"reason": "hard"}), 404)
    refused(refusing.post(f"/v1/consultations/{MISSING}/answer", {"outcome": "abstain"}), 404)


@pytest.mark.parametrize(
    "body",
    [
        {"verdict": "corrected"},
        {"verdict": "fine", "text": "no"},
        {"verdict": "wrong"},
        {"verdict": "corrected", "text": ""},
        {"verdict": "fine", "spans": [{"start": 3, "end": 3, "text": "x"}]},
    ],
)
def test_a_decision_that_makes_no_sense_is_refused(refusing: Api, body: JsonObject) -> None:
    refused(refusing.post(f"/v1/corrections/{MISSING}/submit", body), 422)


# --- away ---------------------------------------------------------------------------------------------------------


def test_a_policy_that_is_away_is_a_503_and_nothing_is_written(settings: Settings, api: Api, store: Store) -> None:
    task = api.task()
    before = count_rows(store)
    away = create_app(settings.model_copy(update={"policy_url": "http://127.0.0.1:9"}))
    with TestClient(away, raise_server_exceptions=False) as http:
        response = Api(http, api.key).post("/v1/rollouts", tokens(task))
    refused(response, 503)
    assert int(response.headers["retry-after"]) > 0
    assert count_rows(store) == before


def test_a_fault_of_ours_is_a_problem_with_an_id_and_no_secrets(
    api: Api, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    with store.transaction() as session:
        session.execute(text("DROP TABLE loop"))
    problem = refused(api.get("/v1/status"), 500)
    assert str(problem["instance"]).startswith("urn:uuid:")
    assert "loop" not in str(problem["detail"])
    logged = capsys.readouterr().out
    assert str(problem["instance"]) in logged
    assert "UndefinedTable" in logged
    assert api.key not in logged


def test_a_parameter_that_a_route_does_not_know_is_refused(refusing: Api) -> None:
    assert "'statsu'" in str(refused(refusing.get("/v1/rollouts?statsu=open"), 422)["detail"])
    [task] = items(refusing.get("/v1/tasks"))
    body: JsonObject = {"task_id": task["id"], "text": "a"}
    refused(refusing.post("/v1/rollouts?dry_run=true", body), 422)


def test_a_parameter_given_twice_is_refused(refusing: Api) -> None:
    refused(refusing.get("/v1/rollouts?status=open&status=ready"), 422)
