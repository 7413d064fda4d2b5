"""Who may call: keys, roles, and what is open."""

from collections.abc import Callable

import pytest
from fastapi import FastAPI
from sqlalchemy import text
from starlette.testclient import TestClient

from services.api.app import create_app
from services.contracts.persons import RIGHTS, Right, Role
from services.runtime.settings import Settings
from services.store.core.transaction import Store
from services.store.people import keys, persons
from services.web.__main__ import main
from tests.api.conftest import Api, made, refused, task_body
from tests.store.conftest import World

OPEN_ROUTES = {"/healthz"}


def test_every_role_has_rights_and_only_an_owner_administers() -> None:
    assert set(RIGHTS) == set(Role)
    assert [role for role, rights in RIGHTS.items() if Right.ADMINISTER in rights] == [Role.OWNER]


def test_every_route_but_health_asks_for_a_key_and_every_post_takes_an_idempotency_key() -> None:
    paths = create_app(Settings()).openapi()["paths"]
    for path, operations in paths.items():
        for method, operation in operations.items():
            assert ("security" in operation) == (path not in OPEN_ROUTES), (method, path)
            headers = {p["name"].lower() for p in operation.get("parameters", ()) if p["in"] == "header"}
            assert ("idempotency-key" in headers) == (method == "post"), (method, path)
            assert operation["summary"]
            assert operation["description"], (method, path)


def test_an_open_api_is_not_started_where_others_can_reach_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRECEPTOR_API_OPEN", "true")
    assert main(["--host", "0.0.0.0"]) == 2  # noqa: S104
    assert "PRECEPTOR_API_OPEN" in capsys.readouterr().err


@pytest.mark.integration
def test_a_call_without_a_key_is_refused(api: Api) -> None:
    response = Api(api.http, "").get("/v1/tasks")
    assert "Authorization" in str(refused(response, 401)["hint"])
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.integration
@pytest.mark.parametrize("key", ["pk_wrong", "x", "pk_" + "A" * 43, "pk_" + "é"])
def test_an_unknown_key_is_refused_without_being_echoed(api: Api, key: str) -> None:
    response = api.http.get("/v1/tasks", headers={b"Authorization": b"Bearer " + key.encode()})
    assert key not in str(refused(response, 401))


@pytest.mark.integration
def test_the_key_is_stored_only_as_its_hash(api: Api, store: Store) -> None:
    with store.transaction() as session:
        rows = session.execute(text("SELECT key_sha256 FROM api_key")).scalars().all()
    assert rows == [keys.hash_key(api.key)]
    assert api.key not in rows


@pytest.mark.integration
def test_the_first_owner_is_made_once(api: Api, store: Store) -> None:
    with store.transaction() as session:
        assert persons.ensure_owner(session) is None
        again = persons.ensure_owner(session, is_lost=True)
    assert made(Api(api.http, str(again)).get("/v1/persons/me"))["role"] == "owner"
    assert made(api.get("/v1/persons/me"))["role"] == "owner"


@pytest.mark.integration
def test_a_role_may_do_what_its_rights_say_and_nothing_else(api: Api, someone: Callable[[str, Role], Api]) -> None:
    annotator, service = someone("ann", Role.ANNOTATOR), someone("pipe", Role.SERVICE)
    operator = someone("op", Role.OPERATOR)
    assert annotator.get("/v1/tasks").status_code == 200
    assert "'ann' is annotator" in str(refused(annotator.post("/v1/tasks", task_body()), 403)["detail"])
    assert service.post("/v1/tasks", task_body()).status_code == 201
    refused(service.post("/v1/loop", {"sampling": True}), 403)
    refused(service.post("/v1/corrections/claim"), 403)
    assert operator.post("/v1/loop", {"sampling": True}).status_code == 200
    refused(operator.post("/v1/persons", {"name": "other"}), 403)
    refused(operator.get("/v1/persons"), 403)


@pytest.mark.integration
def test_a_rotated_key_replaces_the_old_one(api: Api, someone: Callable[[str, Role], Api]) -> None:
    ann = someone("ann", Role.ANNOTATOR)
    me = made(ann.get("/v1/persons/me"))
    fresh = made(ann.post(f"/v1/persons/{me['id']}/rotate-key"))
    refused(ann.get("/v1/persons/me"), 401)
    assert made(Api(api.http, str(fresh["api_key"])).get("/v1/persons/me"))["id"] == me["id"]


@pytest.mark.integration
def test_nobody_but_an_owner_rotates_another_ones_key(api: Api, someone: Callable[[str, Role], Api]) -> None:
    ann = someone("ann", Role.ANNOTATOR)
    owner = made(api.get("/v1/persons/me"))
    refused(ann.post(f"/v1/persons/{owner['id']}/rotate-key"), 403)
    assert api.get("/v1/persons/me").status_code == 200


@pytest.mark.integration
def test_a_revoked_key_stops_working_but_the_last_owner_keeps_theirs(
    api: Api, someone: Callable[[str, Role], Api]
) -> None:
    ann = someone("ann", Role.ANNOTATOR)
    me, owner = made(ann.get("/v1/persons/me")), made(api.get("/v1/persons/me"))
    made(api.post(f"/v1/persons/{me['id']}/revoke-key"))
    refused(ann.get("/v1/persons/me"), 401)
    refused(api.post(f"/v1/persons/{owner['id']}/revoke-key"), 409)
    assert api.get("/v1/persons/me").status_code == 200


@pytest.mark.integration
def test_a_role_that_is_changed_holds_from_the_next_call_on(api: Api, someone: Callable[[str, Role], Api]) -> None:
    ann = someone("ann", Role.ANNOTATOR)
    role = f"/v1/persons/{made(ann.get('/v1/persons/me'))['id']}/role"
    refused(ann.post("/v1/loop", {"sampling": False}), 403)
    refused(ann.post(role, {"role": "owner"}), 403)
    assert made(api.post(role, {"role": "operator"}))["role"] == "operator"
    assert ann.post("/v1/loop", {"sampling": False}).status_code == 200
    made(api.post(role, {"role": "annotator"}))
    refused(ann.post("/v1/loop", {"sampling": False}), 403)
    refused(api.post(role, {"role": "king"}), 422)


@pytest.mark.integration
def test_the_last_owner_stays_one_and_a_service_stays_a_service(
    api: Api, someone: Callable[[str, Role], Api], store: Store
) -> None:
    me = made(api.get("/v1/persons/me"))
    assert "last owner" in str(refused(api.post(f"/v1/persons/{me['id']}/role", {"role": "operator"}), 409)["detail"])
    assert made(api.get("/v1/persons/me"))["role"] == "owner"
    for name, role, other in (("pipe", Role.SERVICE, "operator"), ("ann", Role.ANNOTATOR, "service")):
        person = made(someone(name, role).get("/v1/persons/me"))
        refused(api.post(f"/v1/persons/{person['id']}/role", {"role": other}), 409)

    bob = someone("bob", Role.OWNER)
    made(bob.post(f"/v1/persons/{me['id']}/role", {"role": "annotator"}))
    refused(api.get("/v1/persons"), 403)


@pytest.mark.integration
def test_a_name_is_given_once(api: Api) -> None:
    made(api.post("/v1/persons", {"name": "ann"}))
    assert "exists" in str(refused(api.post("/v1/persons", {"name": "ann"}), 409)["detail"])


@pytest.mark.integration
def test_an_open_api_takes_calls_without_a_key_as_the_owner(settings: Settings, world: World) -> None:
    app: FastAPI = create_app(settings.model_copy(update={"api_open": True}))
    with TestClient(app) as http:
        anybody = Api(http, "")
        assert made(anybody.get("/v1/persons/me"))["role"] == "owner"
        assert anybody.post("/v1/tasks", task_body()).status_code == 201
        refused(Api(http, "pk_wrong").get("/v1/tasks"), 401)


@pytest.mark.integration
def test_health_needs_no_key_and_says_when_the_database_is_not_migrated(api: Api, store: Store) -> None:
    assert made(api.http.get("/healthz"))["status"] == "ok"
    with store.transaction() as session:
        session.execute(text("UPDATE alembic_version SET version_num = 'of_another_time'"))
    problem = refused(api.http.get("/healthz"), 503)
    assert "of_another_time" in str(problem["detail"])
