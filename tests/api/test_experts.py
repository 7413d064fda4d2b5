"""Registering experts by URL, and what becomes of them and their questions."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

import pytest
from sqlalchemy import select

from services.contracts.answers import AnswerKind
from services.contracts.base import Json, JsonObject
from services.contracts.consultations import InvalidAnswer
from services.contracts.experts import ConsultResult, Descriptor
from services.contracts.ids import new_id
from services.contracts.persons import Role
from services.experts.protocol.app import create_expert_app
from services.store.core.transaction import Store
from services.store.loop import consultations, quarantine, rollouts, settling
from services.store.tables.loop import ConsultationRow, ExpertRow
from tests.api.conftest import Api, items, made, refused
from tests.experts.samples import SECRET, SampleExpert, make_descriptor
from tests.serving import reply_with, serve, serve_raw
from tests.store.conftest import World

pytestmark = pytest.mark.integration

HTML = b"<!doctype html><title>Sign in</title>"


@contextmanager
def expert(descriptor: Descriptor | None = None, secret: str | None = None, port: int = 0) -> Iterator[str]:
    """A real expert's URL."""
    sample = SampleExpert(descriptor=descriptor or make_descriptor(kinds=(AnswerKind.SCORE,)))
    with serve(create_expert_app(sample, secret), port=port) as url:
        yield url


def register(api: Api, endpoint: str, **changes: Json) -> JsonObject:
    """The expert as it is read afterwards too."""
    told = register_and_be_told(api, endpoint, **changes)
    return {name: value for name, value in told.items() if name not in ("changed", "warnings")}


def register_and_be_told(api: Api, endpoint: str, **changes: Json) -> JsonObject:
    return made(api.post("/v1/experts", {"endpoint": endpoint, **changes}))


def test_a_registered_expert_starts_on_probation_with_its_report(api: Api) -> None:
    with expert() as url:
        registered = register(api, url, granted=["answer"])
    assert (registered["name"], registered["version"], registered["status"]) == ("sample", "1", "probation")
    report = registered["report"]
    assert isinstance(report, dict)
    assert report["checks"]
    assert registered["endpoint"] == url
    assert made(api.get(f"/v1/experts/{registered['id']}")) == registered | {"share": 0.0}
    assert items(api.get("/v1/experts")) == [registered | {"share": 0.0}]


def test_who_registers_is_told_of_metadata_that_is_not_granted_and_of_what_changed(api: Api) -> None:
    with expert(make_descriptor(kinds=(AnswerKind.SCORE,), metadata_keys=("answer", "tests"))) as url:
        first = register_and_be_told(api, url, granted=["answer"], weight=0.5)
        again = register_and_be_told(api, url, granted=["answer", "tests"])
        sampled = register_and_be_told(api, url, granted=["answer", "tests"], num_places=3, num_samples=1)
    assert isinstance(first["warnings"], list)
    [warning] = first["warnings"]
    assert "needs the metadata tests" in str(warning)
    assert f"`preceptor experts add {url} --grant answer --grant tests`" in str(warning)
    assert (first["changed"], again["warnings"]) == ([], [])
    assert again["changed"] == ["granted: answer → answer, tests", "weight: 0.5 → 1.0"]
    assert sampled["changed"] == ["num_places: 8 → 3", "num_samples: 2 → 1"]


def test_a_trusted_expert_that_passes_is_active_at_once(api: Api) -> None:
    with expert() as url:
        assert register(api, url, trusted=True)["status"] == "active"


def test_an_expert_that_fails_its_checks_is_not_activated(api: Api) -> None:
    described = make_descriptor(kinds=(AnswerKind.SCORE,)).model_dump_json().encode()
    with serve_raw(reply_with(described)) as url:  # answers every question with its descriptor
        registered = register(api, url, trusted=True)
        assert registered["status"] == "probation"
        problem = refused(api.post(f"/v1/experts/{registered['id']}/activate"), 409)
    assert "conformance" in str(problem["detail"])


def test_a_quarantined_expert_that_fails_its_checks_comes_back_without_weight(api: Api, store: Store) -> None:
    described = make_descriptor(kinds=(AnswerKind.SCORE,))
    with expert(described) as url:
        first = register(api, url, trusted=True)
    path = f"/v1/experts/{first['id']}/move"
    with store.transaction() as session:
        for _ in range(2):
            quarantine.note_failure(session, UUID(str(first["id"])), "away", quarantine_after=2)
        assert session.scalars(select(ExpertRow.was_active)).one()
    with serve_raw(reply_with(described.model_dump_json().encode())) as url:
        again = made(api.post(path, {"endpoint": url, "trusted": True}))
    assert (again["id"], again["status"]) == (first["id"], "quarantined")
    with store.transaction() as session:
        assert quarantine.readmit(session, UUID(str(first["id"])), quarantine_after=2)
        assert session.scalars(select(ExpertRow.status)).one() == "probation"


def test_a_signing_secret_is_used_and_never_shown(api: Api, store: Store) -> None:
    with expert(secret=SECRET) as url:
        registered = register(api, url, trusted=True, signing_secret=SECRET)
    assert registered["status"] == "active"
    assert SECRET not in str(registered)
    with store.transaction() as session:
        assert session.get_one(ExpertRow, UUID(str(registered["id"]))).signing_secret == SECRET


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (reply_with(HTML, content_type="text/html"), "HTML"),
        (reply_with(b"", status="302 Found", extra="Location: http://127.0.0.1:1/\r\n"), "redirects"),
        (reply_with(b"", status="307 Temporary Redirect", extra="Location: /v2\r\n"), "redirects"),
        (reply_with(b"not json"), "JSON"),
        (reply_with(b'{"name": "x"}'), "Descriptor"),
        (reply_with(b"{}", status="404 Not Found"), "404"),
        (reply_with(b"{}", status="500 Internal Server Error"), "500"),
    ],
)
def test_an_endpoint_that_is_no_expert_is_refused_with_what_it_answered(
    refusing: Api, reply: object, reason: str
) -> None:
    assert callable(reply)
    with serve_raw(reply) as url:
        problem = refused(refusing.post("/v1/experts", {"endpoint": url}), 422)
    assert reason in str(problem["detail"])


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("http://127.0.0.1:9", "127.0.0.1"),
        ("http://10.0.0.1", "neither public nor in an allowed network"),
        ("http://169.254.169.254/latest", "neither public nor in an allowed network"),
        ("http://[fd00::1]/", "neither public nor in an allowed network"),
        ("ftp://127.0.0.1", "URL scheme"),
        ("not a url", "URL"),
        ("http://user:secret@127.0.0.1", "no credentials"),
        ("http://127.0.0.1/?a=1", "query"),
    ],
)
def test_an_address_that_may_not_be_asked_is_refused(refusing: Api, endpoint: str, reason: str) -> None:
    problem = refused(refusing.post("/v1/experts", {"endpoint": endpoint}), 422)
    assert reason in str(problem)


def test_a_secret_that_cannot_sign_is_refused(refusing: Api) -> None:
    with expert() as url:
        refused(refusing.post("/v1/experts", {"endpoint": url, "signing_secret": "whsec_" + "!" * 30}), 422)


def test_the_same_service_again_is_the_same_expert_with_its_new_settings(api: Api) -> None:
    with expert() as url:
        first = register(api, url, trusted=True)
        second = register(api, url, trusted=True, weight=2)
    assert (second["id"], second["weight"], second["status"]) == (first["id"], 2, "active")


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_service_that_calls_itself_like_another_expert_is_refused_and_the_other_stays(api: Api, version: str) -> None:
    with expert() as url:
        first = register(api, url, trusted=True, signing_secret=None)
    stranger = make_descriptor(kinds=(AnswerKind.SCORE,)).model_copy(update={"version": version})
    with expert(stranger) as elsewhere:
        for trusted in (False, True):
            problem = refused(api.post("/v1/experts", {"endpoint": elsewhere, "trusted": trusted}), 409)
    assert str(first["id"]) in str(problem["detail"])
    assert items(api.get("/v1/experts")) == [first | {"share": 0.0}]


def test_an_expert_moves_where_somebody_says_so_and_goes_through_probation_there(api: Api) -> None:
    with expert() as url:
        first = register(api, url, trusted=True)
    with expert() as elsewhere:
        path = f"/v1/experts/{first['id']}/move"
        moved = made(api.post(path, {"endpoint": elsewhere, "weight": 2}))
        assert (moved["id"], moved["endpoint"], moved["weight"]) == (first["id"], elsewhere, 2)
        assert (moved["status"], moved["reason"]) == ("probation", "it moved to another endpoint")
        assert made(api.post(path, {"endpoint": elsewhere, "trusted": True}))["status"] == "active"
        made(api.post(f"/v1/experts/{first['id']}/retire"))
        refused(api.post(path, {"endpoint": elsewhere}), 409)
        assert register(api, elsewhere)["id"] != first["id"]


@pytest.mark.parametrize("kind", ["human", "reference", "teacher", "execution"])
def test_a_stranger_with_the_name_of_one_of_ours_is_none_of_ours(api: Api, kind: str) -> None:
    descriptor = make_descriptor(kinds=(AnswerKind.SCORE,)).model_copy(update={"name": kind})
    with expert(descriptor) as url:
        stranger = register(api, url)
        assert (stranger["own"], stranger["status"]) == (None, "probation")
    with expert(descriptor) as ours:
        own = made(api.post(f"/v1/experts/own/{kind}", {"endpoint": ours, "trusted": True}))
        assert (own["own"], own["status"]) == (kind, "active")
        assert own["id"] != stranger["id"]
    with expert(descriptor) as later:
        again = made(api.post(f"/v1/experts/own/{kind}", {"endpoint": later, "trusted": True}))
        assert (again["id"], again["endpoint"], again["status"]) == (own["id"], later, "active")
    with expert(descriptor) as elsewhere:
        refused(api.post("/v1/experts", {"endpoint": elsewhere}), 409)


def test_only_who_administers_installs_our_own_experts(api: Api, someone: Callable[[str, Role], Api]) -> None:
    operator = someone("olga", Role.OPERATOR)
    with expert() as url:
        refused(operator.post("/v1/experts/own/human", {"endpoint": url}), 403)


def test_a_changed_version_goes_back_to_probation_and_the_old_one_retires(api: Api) -> None:
    descriptor = make_descriptor(kinds=(AnswerKind.SCORE,))
    with expert(descriptor) as url:
        first = register(api, url, trusted=True)
        port = int(url.rpartition(":")[2])
    with expert(descriptor.model_copy(update={"version": "2"}), port=port) as url:
        second = register(api, url)
    assert second["id"] != first["id"]
    assert (second["version"], second["status"]) == ("2", "probation")
    old = made(api.get(f"/v1/experts/{first['id']}"))
    assert (old["status"], old["reason"]) == ("retired", "replaced by version 2")


def test_a_registration_is_answered_again_without_asking_the_expert(api: Api) -> None:
    with expert() as url:
        first = api.post("/v1/experts", {"endpoint": url}, once="k1")
    assert made(api.post("/v1/experts", {"endpoint": url}, once="k1")) == made(first)


def test_an_experts_weight_changes_without_its_other_settings(api: Api) -> None:
    with expert() as url:
        registered = register(api, url, trusted=True, group_fraction=0.5)
    path = f"/v1/experts/{registered['id']}"
    weighed = made(api.put(f"{path}/weight", {"weight": 0.25}))
    assert weighed == registered | {"weight": 0.25} | {"report": weighed["report"]}
    for weight in (-0.1, 100.5, "1"):
        refused(api.put(f"{path}/weight", {"weight": weight}), 422)
    made(api.post(f"{path}/retire"))
    assert "retired" in str(refused(api.put(f"{path}/weight", {"weight": 1.0}), 409)["detail"])
    refused(api.put(f"/v1/experts/{new_id()}/weight", {"weight": 1.0}), 404)


def test_our_own_expert_keeps_the_weight_it_was_given_when_it_is_installed_again(api: Api) -> None:
    with expert() as url:
        own = made(api.post("/v1/experts/own/self-evaluation", {"endpoint": url, "trusted": True}))
        made(api.put(f"/v1/experts/{own['id']}/weight", {"weight": 0.5}))
        again = made(api.post("/v1/experts/own/self-evaluation", {"endpoint": url, "trusted": True, "weight": 1.0}))
    assert (again["id"], again["weight"]) == (own["id"], 0.5)


def test_an_expert_is_paused_activated_and_retired_for_good(api: Api) -> None:
    with expert() as url:
        registered = register(api, url)
    path = f"/v1/experts/{registered['id']}"
    assert made(api.post(f"{path}/activate"))["status"] == "active"
    paused = made(api.post(f"{path}/pause", {"reason": "maintenance"}))
    assert (paused["status"], paused["reason"]) == ("paused", "maintenance")
    assert made(api.post(f"{path}/activate"))["reason"] is None
    assert made(api.post(f"{path}/retire"))["status"] == "retired"
    for change in ("activate", "pause", "retire", "requeue"):
        assert "retired" in str(refused(api.post(f"{path}/{change}"), 409)["detail"])


def test_retiring_ends_its_questions_and_moves_their_rollouts_on(api: Api, store: Store, world: World) -> None:
    with store.transaction() as session:
        leaving = world.expert(session, "leaving")
        world.expert(session, "staying")
        task = world.task(session)
        [one] = world.drawn(session, task, size=1)
        ids = session.query(ConsultationRow.id, ConsultationRow.expert_id).all()
        [question] = consultations.claim(session, [i for i, e in ids if e != leaving.id], lease_seconds=60)
    with store.transaction() as session:
        settling.settle(session, question, ConsultResult(score=1.0))
    made(api.post(f"/v1/experts/{leaving.id}/retire", {"reason": "too slow"}))
    [ended] = items(api.get("/v1/consultations", expert_id=str(leaving.id)))
    assert (ended["status"], ended["reason"]) == ("dead", "the expert retired: too slow")
    with store.transaction() as session:
        assert rollouts.get(session, one.id).status == "ready"


def test_retiring_an_expert_of_the_second_stage_leaves_no_question_open(api: Api, store: Store, world: World) -> None:
    with store.transaction() as session:
        judge = world.expert(session, "judge")
        world.expert(session, "teacher", needs_answers=True, verifier=False)
        [rollout] = world.drawn(session, world.task(session), size=1)
        ids = session.query(ConsultationRow.id).all()
        [question] = consultations.claim(session, [i for (i,) in ids], lease_seconds=60)
    with store.transaction() as session:
        settling.settle(session, question, ConsultResult(score=0.0))
    [teacher] = items(api.get("/v1/consultations", status="pending"))
    made(api.post(f"/v1/experts/{teacher['expert_id']}/retire"))
    assert items(api.get("/v1/consultations", status="pending")) == []
    assert made(api.get(f"/v1/rollouts/{rollout.id}"))["status"] == "ready"
    assert made(api.get(f"/v1/experts/{judge.id}"))["status"] == "active"


def test_dead_questions_are_asked_again_and_a_quarantined_expert_returns_to_probation(
    api: Api, store: Store, world: World
) -> None:
    with store.transaction() as session:
        judge = world.expert(session, "judge")
        world.drawn(session, world.task(session), size=1)
        ids = session.query(ConsultationRow.id).all()
        [question] = consultations.claim(session, [i for (i,) in ids], lease_seconds=60)
    with store.transaction() as session:
        settling.release(session, question, "no answer", retry_after=None, max_attempts=1, quarantine_after=1)
    assert made(api.get(f"/v1/experts/{judge.id}"))["status"] == "quarantined"
    refused(api.post(f"/v1/experts/{judge.id}/activate"), 409)
    [dead] = items(api.get("/v1/consultations", status="dead"))
    assert dead["reason"] == "no answer"
    assert made(api.post(f"/v1/experts/{judge.id}/requeue"))["status"] == "probation"
    detail = made(api.get(f"/v1/consultations/{dead['id']}"))
    assert (detail["status"], detail["reason"]) == ("pending", None)
    assert [(t["outcome"], t["reason"]) for t in detail["tries"] if isinstance(t, dict)] == [("failed", "no answer")]  # type: ignore[union-attr]
    refused(api.post(f"/v1/consultations/{dead['id']}/requeue"), 409)


def test_a_dead_question_is_asked_once_more(api: Api, store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session, "judge")
        world.drawn(session, world.task(session), size=1)
        [row] = session.query(ConsultationRow).all()
        settling.kill(session, row, "by hand")
    assert made(api.post(f"/v1/consultations/{row.id}/requeue"))["status"] == "pending"


def test_an_invalid_answer_is_final(api: Api, store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session, "judge")
        world.drawn(session, world.task(session), size=1)
        ids = session.query(ConsultationRow.id).all()
        [question] = consultations.claim(session, [i for (i,) in ids], lease_seconds=60)
    with store.transaction() as session:
        settling.settle(session, question, InvalidAnswer(reason="rows do not sum to 1"))
    refused(api.post(f"/v1/consultations/{question.consultation_id}/requeue"), 409)
    refused(api.post(f"/v1/consultations/{question.consultation_id}/answer", {"outcome": "result", "score": 1}), 409)
