"""Rollouts sampled elsewhere, and the late answers about them."""

import json
from collections.abc import Callable
from typing import cast
from uuid import UUID

import pytest

from services.contracts.base import Json, JsonObject
from services.contracts.experts import ConsultLater, ConsultResult
from services.contracts.persons import Role
from services.experts.protocol import signatures
from services.store.core.transaction import Store
from services.store.loop import consultations, settling
from services.store.tables.ledger import LessonRow
from services.store.tables.loop import ConsultationRow, ExpertRow
from tests.api.conftest import Api, items, made, refused, task_body
from tests.api.policy_stand_in import END, MAX_CONTEXT, TOKENIZER
from tests.experts.samples import OTHER_SECRET, SECRET
from tests.store.conftest import World
from tests.store.loop.test_flow import ask_all, settle

pytestmark = pytest.mark.integration


def test_token_ids_are_kept_exactly_as_they_were_sampled(api: Api) -> None:
    task = api.task()
    sent: JsonObject = {
        "task_id": task["id"],
        "token_ids": [72, 105, 33],
        "tokenizer_hash": TOKENIZER,
        "sampler_logprobs": [-0.5, -0.25, 0.0],
        "action_mask": [True, False, True],
        "policy_version": "base",
        "sampling": {"temperature": 0.7},
    }
    answer = made(api.post("/v1/rollouts", sent))
    rollout = made(api.get(f"/v1/rollouts/{answer['id']}"))
    assert rollout == rollout | answer
    for name in ("token_ids", "sampler_logprobs", "action_mask", "policy_version"):
        assert rollout[name] == sent[name]
    assert rollout["text"] == "Hi!"
    assert rollout["prompt_token_ids"] == [ord(c) for c in "What is t?"]
    assert rollout["tokenized_at_ingest"] is False


def test_experts_get_the_last_turn_without_its_end_and_earlier_turns_as_messages(
    api: Api, store: Store, world: World
) -> None:
    with store.transaction() as session:
        world.expert(session)
    ids: list[Json] = [ord(c) for c in "call\x04Tit is 4\x04so 4\x04"]
    mask: list[Json] = [*[True] * 5, *[False] * 9, *[True] * 5]
    sent: JsonObject = {"task_id": api.task()["id"], "tokenizer_hash": TOKENIZER, "token_ids": ids, "action_mask": mask}
    answer = made(api.post("/v1/rollouts", sent))
    [question] = ask_all(store)
    asked = question.request.rollout
    turns = [("assistant", "call"), ("tool", "it is 4")]
    assert (asked.text, asked.token_ids) == ("so 4", ids)
    assert [(turn.role, turn.content) for turn in asked.turns or []] == turns
    rollout = made(api.get(f"/v1/rollouts/{answer['id']}"))
    assert (rollout["text"], rollout["answer_start"], rollout["num_tokens"]) == ("so 4", 14, 19)
    assert rollout["turns"] == [{"role": role, "content": content} for role, content in turns]


def test_an_answer_of_one_turn_has_none_before_it(api: Api, store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session)
    sent: JsonObject = {"task_id": api.task()["id"], "tokenizer_hash": TOKENIZER, "token_ids": [52, END]}
    assert made(api.post("/v1/rollouts", sent))["text"] == "4"
    [question] = ask_all(store)
    assert question.request.rollout.turns is None
    assert '"turns"' not in question.request.model_dump_json(exclude_none=True)  # older experts know no such field


def test_text_is_tokenised_once_at_ingest_and_has_no_sampler(api: Api) -> None:
    answer = made(api.post("/v1/rollouts", {"task_id": api.task()["id"], "text": "Hi"}))
    rollout = made(api.get(f"/v1/rollouts/{answer['id']}"))
    assert (rollout["token_ids"], rollout["num_tokens"]) == ([72, 105], 2)
    assert rollout["tokenized_at_ingest"] is True
    assert rollout["sampler_logprobs"] is None


def test_text_that_is_more_tokens_than_a_rollout_may_have_is_refused(api: Api) -> None:
    problem = refused(api.post("/v1/rollouts", {"task_id": api.task()["id"], "text": "x" * 200_000}), 422)
    assert "200,000 tokens" in str(problem["detail"])
    assert items(api.get("/v1/rollouts")) == []


def test_a_rollout_that_overflows_the_policys_context_with_its_prompt_is_refused(api: Api) -> None:
    task = api.task()  # a prompt of 10 characters
    ids: list[Json] = [72] * (MAX_CONTEXT - 9)
    too_long: list[JsonObject] = [{"text": "x" * len(ids)}, {"token_ids": ids, "tokenizer_hash": TOKENIZER}]
    for said in too_long:
        problem = refused(api.post("/v1/rollouts", {"task_id": task["id"], **said}), 422)
        assert "context of 1,000" in str(problem["detail"])
    made(api.post("/v1/rollouts", {"task_id": task["id"], "text": "x" * (MAX_CONTEXT - 10)}))


def test_a_log_probability_too_small_for_single_precision_is_rounded(api: Api) -> None:
    sent: JsonObject = {"task_id": api.task()["id"], "token_ids": [72, 72], "tokenizer_hash": TOKENIZER}
    answer = made(api.post("/v1/rollouts", sent | {"sampler_logprobs": [-1e-300, -1e4]}))
    rollout = made(api.get(f"/v1/rollouts/{answer['id']}"))
    assert rollout["sampler_logprobs"] == [0.0, -1e4]


def test_what_is_not_exactly_of_its_type_or_known_here_is_refused(api: Api) -> None:
    good: JsonObject = {"task_id": api.task()["id"], "token_ids": [72], "tokenizer_hash": TOKENIZER}
    wrong: list[JsonObject] = [
        {"sampler_logprobs": [-1e39]},
        {"sampler_logprobs": ["-1"]},
        {"sampler_logprobs": [True]},
        {"token_ids": [True]},
        {"token_ids": [1.0]},
        {"token_ids": ["1"]},
        {"action_mask": ["yes"]},
        {"action_mask": [2]},
        {"sampler_logprobs": [0.1]},
        {"sampler_logprobs": [None]},
        {"sampling": {"seed": 2**63}},
        {"policy_version": "never-made"},
        {"policy_version": "x" * 201},
        {"token_ids": None, "text": "a"},
    ]
    for change in wrong:
        refused(api.post("/v1/rollouts", good | change), 422)


def test_what_other_samplers_write_is_taken_as_it_is_meant(api: Api) -> None:
    sent: JsonObject = {
        "task_id": api.task()["id"],
        "token_ids": [72, 105, 33],
        "tokenizer_hash": TOKENIZER,
        "sampler_logprobs": [1e-7, None, -0.5],
        "action_mask": [1, 0, 1],
        "sampling": {"temperature": 0, "max_tokens": 40, "top_k": -1, "stop": "\n"},
    }
    answer = made(api.post("/v1/rollouts", sent))
    rollout = made(api.get(f"/v1/rollouts/{answer['id']}"))
    assert (rollout["sampler_logprobs"], rollout["action_mask"]) == ([0.0, 0.0, -0.5], [True, False, True])
    wanted: JsonObject = {
        "temperature": 0.0,
        "max_new_tokens": 40,
        "top_k": 0,
        "stop": ["\n"],
        "top_p": 1.0,
        "seed": None,
    }
    assert rollout["sampling"] == wanted


@pytest.mark.parametrize(
    "off",
    [
        {"n": 1, "presence_penalty": 0, "repetition_penalty": 1.0, "min_p": 0.0, "logit_bias": {}},
        {"max_tokens": None, "top_p": None, "temperature": None, "stop": None, "logit_bias": None},
    ],
)
def test_settings_of_another_sampler_that_are_off_are_taken(api: Api, off: JsonObject) -> None:
    sent: JsonObject = {"task_id": api.task()["id"], "token_ids": [72], "tokenizer_hash": TOKENIZER, "sampling": off}
    made(api.post("/v1/rollouts", sent))


def test_a_rollout_that_repeats_its_prompt_is_refused_by_name(api: Api) -> None:
    task = api.task()["id"]
    stored = made(api.post("/v1/rollouts", {"task_id": task, "text": "4"}))
    prompt = cast(list[Json], made(api.get(f"/v1/rollouts/{stored['id']}"))["prompt_token_ids"])
    sent: JsonObject = {"task_id": task, "token_ids": [*prompt, 52], "tokenizer_hash": TOKENIZER}
    assert "begins with the" in str(refused(api.post("/v1/rollouts", sent), 422)["detail"])


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("reward", 1.0, "reward is not a field of a rollout: a score is an expert's answer"),
        ("logprobs", None, "logprobs is not a field of a rollout; the sampler's log-probabilities"),
        ("response_token_ids", [72], "go into token_ids"),
        ("completion", "Hi", "completion is not a field of a rollout; the answer goes into text"),
        ("prompt", "What?", "prompt is not a field of a rollout: its prompt is that of its task"),
        ("max_tokens", 64, "max_tokens is not a field of a rollout; it belongs into sampling"),
        (
            "loss_mask",
            [1],
            "loss_mask is not a field of a rollout; which tokens the policy chose goes into action_mask",
        ),
        ("finish_reason", "eos", "finish_reason is not a field of a rollout"),
        ("sampler_logprob", [-0.1], "sampler_logprob is not a field of a rollout; did you mean sampler_logprobs?"),
        ("sampling", {"min_p": 0.1}, "min_p is not a field of sampling"),
        ("sampling", {"max_tokens": 0}, "sampling.max_tokens"),
        ("responses", [72], "responses is not a field of a rollout; the sampled ids go into token_ids"),
        ("prompt_logprobs", [], "prompt_logprobs is not a field of a rollout: its prompt is that of its task"),
        ("rollout_log_probs", [-0.1], "go into sampler_logprobs"),
        ("reward", 1.0, "'where': 'body.reward'"),
        ("sampling", {"temprature": 1}, "temprature is not a field of sampling; did you mean temperature?"),
    ],
)
def test_a_field_of_another_system_is_refused_in_a_sentence_that_names_it(
    api: Api, name: str, value: Json, sentence: str
) -> None:
    good: JsonObject = {"task_id": api.task()["id"], "token_ids": [72], "tokenizer_hash": TOKENIZER}
    errors = str(refused(api.post("/v1/rollouts", good | {name: value}), 422)["errors"])
    assert sentence in errors
    batch: JsonObject = {"rollouts": [good, good | {name: value}]}
    problem = str(refused(api.post("/v1/rollouts/batch", batch), 422)["errors"])
    assert sentence.replace("body.", "body.rollouts.1.") in problem
    assert "rollouts.1" in problem


def test_an_import_and_the_status_say_which_tasks_nobody_can_judge(api: Api, store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session, "runner", metadata_keys=("tests",), granted=("tests",), status="probation")
    row = task_body("HumanEval/0", domain="code/python", metadata={"entry_point": "f", "test": "check(f)"})
    hint = "Their rollouts get no score until a verifier does (docs/bring-an-expert.md)."
    uncovered = f"tasks of the domain code/python cannot be judged: no active verifier covers it. {hint}"
    assert made(api.post("/v1/tasks/import", {"tasks": [row]}))["notes"] == [uncovered]
    missing = f"no active verifier covers the domain code/python. {hint}"
    assert made(api.get("/v1/status"))["unjudged"] == [missing]
    with store.transaction() as session:
        session.query(ExpertRow).update({"status": "active"})
    unmet = f"tasks of the domain code/python cannot be judged: the verifier runner needs the metadata tests. {hint}"
    assert made(api.post("/v1/tasks/import", {"tasks": [row]}))["notes"] == [unmet]
    assert made(api.get("/v1/status"))["unjudged"] == []
    good = row | {"key": "good", "metadata": {"tests": {"entry_point": "f", "cases": [{"args": [], "expected": 1}]}}}
    assert made(api.post("/v1/tasks/import", {"tasks": [good]}))["notes"] == []


def test_an_answer_from_elsewhere_leaves_the_policys_pass_rate_alone(api: Api, store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session)
    task = api.task()
    for said in ({"text": "310"}, {"text": "4", "policy_version": "base"}):
        made(api.post("/v1/rollouts", {"task_id": task["id"], **said}))
    for question in ask_all(store):
        settle(store, question, ConsultResult(score=float(question.request.rollout.text == "310")))
    [rate] = items_of(made(api.get("/v1/status")), "pass_rates")
    assert (rate["num_judged"], rate["pass_rate"]) == (1, 0.0)


def items_of(view: JsonObject, name: str) -> list[JsonObject]:
    found = view[name]
    assert isinstance(found, list)
    return [one for one in found if isinstance(one, dict)]


def test_nobody_is_asked_about_a_chat(api: Api) -> None:
    rollout = made(api.post("/v1/rollouts", {"task_id": api.task()["id"], "text": "a", "purpose": "chat"}))
    assert (rollout["status"], rollout["reason"]) == ("set_aside", "rollouts of this purpose are not sent to experts")


def test_a_family_or_prompt_of_train_is_in_no_other_split(api: Api) -> None:
    api.task("a", family="sums")
    problem = refused(api.post("/v1/tasks", task_body("b", family="sums", split="heldout")), 422)
    assert "'sums' is in the split train" in str(problem["detail"])
    copied = task_body("c", split="validation", messages=task_body("a")["messages"])
    problem = refused(api.post("/v1/tasks/import", {"tasks": [copied]}), 422)
    assert "messages: the same messages" in str(problem["detail"])
    api.task("d", family="others", split="heldout")
    api.task("e", family="others", split="validation")
    refused(api.post("/v1/tasks", task_body("f", family="others")), 422)


def test_siblings_share_the_group_of_the_first(api: Api) -> None:
    task = api.task()
    first = made(api.post("/v1/rollouts", {"task_id": task["id"], "text": "a"}))
    second = made(api.post("/v1/rollouts", {"task_id": task["id"], "text": "b", "group_id": first["group_id"]}))
    assert second["group_id"] == first["group_id"]
    assert (first["index_in_group"], second["index_in_group"]) == (0, 1)


def test_every_matching_expert_is_consulted(api: Api, store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session, "judge")
        world.expert(session, "paused", status="paused")
    rollout = made(api.post("/v1/rollouts", {"task_id": api.task()["id"], "text": "a"}))
    asked = items(api.get(f"/v1/rollouts/{rollout['id']}/consultations"))
    assert [(a["expert_name"], a["status"]) for a in asked] == [("judge", "pending")]


def test_a_rollout_nobody_can_judge_is_set_aside_with_the_reason(api: Api) -> None:
    rollout = made(api.post("/v1/rollouts", {"task_id": api.task()["id"], "text": "a"}))
    assert (rollout["status"], rollout["reason"]) == ("set_aside", "no expert answered")


def wait_for_late_answer(api: Api, store: Store, world: World, secret: str | None = None) -> UUID:
    """A consultation whose expert said that its answer comes later."""
    with store.transaction() as session:
        world.expert(session, "slow").signing_secret = secret
    made(api.post("/v1/rollouts", {"task_id": api.task()["id"], "text": "ab"}))
    with store.transaction() as session:
        ids = session.query(ConsultationRow.id).all()
        [question] = consultations.claim(session, [i for (i,) in ids], lease_seconds=60)
    with store.transaction() as session:
        settling.settle(session, question, ConsultLater())
    return question.consultation_id


def test_a_late_answer_opens_a_lesson_of_its_own(api: Api, store: Store, world: World) -> None:
    waiting = wait_for_late_answer(api, store, world)
    before = made(api.get(f"/v1/consultations/{waiting}"))
    assert before["status"] == "waiting"
    assert made(api.get(f"/v1/rollouts/{before['rollout_id']}"))["status"] == "ready"
    settled = made(api.post(f"/v1/consultations/{waiting}/answer", {"outcome": "result", "score": 0.5}))
    assert settled["status"] == "answered"
    [answer] = items(api.get(f"/v1/rollouts/{settled['rollout_id']}/answers"))
    assert answer["score"] == 0.5
    with store.transaction() as session:
        [lesson] = session.query(LessonRow).all()
    assert (lesson.late, lesson.status) == (True, "ready")
    refused(api.post(f"/v1/consultations/{waiting}/answer", {"outcome": "result", "score": 0.5}), 409)


def test_an_expert_may_abstain_late(api: Api, store: Store, world: World) -> None:
    waiting = wait_for_late_answer(api, store, world)
    settled = made(api.post(f"/v1/consultations/{waiting}/answer", {"outcome": "abstain", "reason": "unclear"}))
    assert (settled["status"], settled["reason"]) == ("abstained", "unclear")


def test_a_late_answer_that_breaks_the_contract_is_refused_and_the_question_waits_on(
    api: Api, store: Store, world: World
) -> None:
    waiting = wait_for_late_answer(api, store, world)
    broken: list[JsonObject] = [
        {"outcome": "result"},
        {"outcome": "result", "score": 1.5},
        {"outcome": "later"},
        {"score": 1},
        {"outcome": "result", "score": 1, "extra": 1},
        {"outcome": "result", "feedback": {"text": ""}},
        {"outcome": "result", "distribution": {"kind": "topk"}},
    ]
    for body in broken:
        refused(api.post(f"/v1/consultations/{waiting}/answer", body), 422)
    assert made(api.get(f"/v1/consultations/{waiting}"))["status"] == "waiting"


def test_a_late_answer_that_does_not_fit_its_rollout_is_invalid(api: Api, store: Store, world: World) -> None:
    waiting = wait_for_late_answer(api, store, world)
    row: list[Json] = [1, 2]
    body: JsonObject = {
        "outcome": "result",
        "distribution": {
            "kind": "topk",
            "tokenizer_hash": TOKENIZER,
            "token_ids": [row],
            "logprobs": [[-0.6931, -0.6931]],
            "tail_mass": [0.0],
        },
    }
    settled = made(api.post(f"/v1/consultations/{waiting}/answer", body))
    assert (settled["status"], settled["reason"]) == ("invalid", "the distribution has 1 rows for 2 tokens")


def signed(api: Api, consultation: UUID, body: bytes, secret: str, message_id: str) -> dict[str, str]:
    return {"Content-Type": "application/json", "Idempotency-Key": "k"} | signatures.sign(secret, message_id, body)


def test_an_expert_signs_its_late_answer_with_its_own_secret(api: Api, store: Store, world: World) -> None:
    waiting = wait_for_late_answer(api, store, world, SECRET)
    path, body = f"/v1/consultations/{waiting}/answer", json.dumps({"outcome": "result", "score": 1}).encode()
    forged = signed(api, waiting, body, OTHER_SECRET, str(waiting))
    refused(api.http.post(path, content=body, headers=forged), 401)
    replayed = signed(api, waiting, body, SECRET, "01890000-0000-7000-8000-000000000000")
    assert "webhook-id" in str(refused(api.http.post(path, content=body, headers=replayed), 401)["detail"])
    good = signed(api, waiting, body, SECRET, str(waiting))
    changed = body.replace(b"1", b"0")
    refused(api.http.post(path, content=changed, headers=good), 401)
    refused(api.http.post(path, content=body, headers={"Content-Type": "application/json"}), 401)
    assert made(api.http.post(path, content=body, headers=good))["status"] == "answered"
    again = api.http.post(path, content=body, headers=good)
    assert again.headers["idempotent-replay"] == "true"


def test_an_expert_without_a_secret_cannot_sign(api: Api, store: Store, world: World) -> None:
    waiting = wait_for_late_answer(api, store, world)
    body = b'{"outcome": "result", "score": 1}'
    headers = signed(api, waiting, body, SECRET, str(waiting))
    refused(api.http.post(f"/v1/consultations/{waiting}/answer", content=body, headers=headers), 401)
    with store.transaction() as session:
        assert session.query(ExpertRow).one().signing_secret is None


def test_a_broken_signature_is_refused(api: Api, store: Store, world: World) -> None:
    waiting = wait_for_late_answer(api, store, world, SECRET)
    body = b'{"outcome": "result", "score": 1}'
    good = signed(api, waiting, body, SECRET, str(waiting))
    for name in ("webhook-timestamp", "webhook-signature"):
        for value in ("", "0", "nonsense", "v1,???", "99999999999999999999"):
            refused(
                api.http.post(f"/v1/consultations/{waiting}/answer", content=body, headers=good | {name: value}), 401
            )


def test_only_its_own_signature_speaks_for_an_expert_that_has_a_secret(api: Api, store: Store, world: World) -> None:
    waiting = wait_for_late_answer(api, store, world, SECRET)
    refused(api.post(f"/v1/consultations/{waiting}/answer", {"outcome": "result", "score": 1}), 401)
    assert made(api.get(f"/v1/consultations/{waiting}"))["status"] == "waiting"


def test_a_service_answers_for_no_expert(
    api: Api, store: Store, world: World, someone: Callable[[str, Role], Api]
) -> None:
    waiting = wait_for_late_answer(api, store, world)
    service = someone("gatherer", Role.SERVICE)
    refused(service.post(f"/v1/consultations/{waiting}/answer", {"outcome": "result", "score": 1}), 403)


def test_the_values_of_metadata_are_for_operators(api: Api, someone: Callable[[str, Role], Api]) -> None:
    task = api.task(metadata={"answer": "4"})
    for role, shown in ((Role.OPERATOR, "4"), (Role.SERVICE, None), (Role.ANNOTATOR, None)):
        person = someone(role.value, role)
        assert made(person.get(f"/v1/tasks/{task['id']}"))["metadata"] == {"answer": shown}
        assert items(person.get("/v1/tasks"))[0]["metadata"] == {"answer": shown}
