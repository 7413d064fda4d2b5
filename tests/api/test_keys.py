"""Keys: several a person, with names, rights and ends; who may give which; the audit trail of it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.contracts.base import Json
from services.contracts.persons import Role
from services.store.core import audit
from services.store.core.transaction import Store
from tests.api.conftest import Api, items, made, refused, task_body

pytestmark = pytest.mark.integration


def with_key(api: Api, **body: Json) -> Api:
    """A view of the api by a further key of the same person."""
    return Api(api.http, str(made(api.post("/v1/keys", {"name": "second", **body}))["api_key"]))


def in_days(days: int) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).isoformat()


def key_of(api: Api) -> str:
    """The id of the key that is used: the one used last."""
    made(api.get("/v1/persons/me"))
    used = [key for key in items(api.get("/v1/keys")) if api.key.startswith(str(key["prefix"]))]
    return str(used[0]["id"])


def test_a_person_holds_several_keys_and_one_ends_without_the_others(api: Api) -> None:
    second = with_key(api)
    assert made(second.get("/v1/persons/me"))["id"] == made(api.get("/v1/persons/me"))["id"]
    listed = items(api.get("/v1/keys"))
    assert [key["name"] for key in listed] == ["second", "first key"]
    assert all("api_key" not in key and "key_sha256" not in key for key in listed)
    assert second.key.startswith(str(listed[0]["prefix"]))
    assert listed[0]["last_used_at"] is not None
    made(api.post(f"/v1/keys/{listed[0]['id']}/revoke"))
    refused(second.get("/v1/persons/me"), 401)
    assert api.get("/v1/persons/me").status_code == 200


def test_a_key_may_only_what_its_scopes_say(api: Api) -> None:
    reader = with_key(api, scopes=["read"])
    assert reader.get("/v1/tasks").status_code == 200
    assert "does not include the right to send" in str(refused(reader.post("/v1/tasks", task_body()), 403)["detail"])
    refused(reader.post("/v1/loop", {"sampling": True}), 403)


def test_scopes_are_part_of_the_role(api: Api, someone: Callable[[str, Role], Api]) -> None:
    someone("ann", Role.ANNOTATOR)
    (ann,) = (p for p in items(api.get("/v1/persons")) if p["name"] == "ann")
    body: Json = {"name": "wide", "person_id": ann["id"], "scopes": ["read", "operate"]}
    assert "operate" in str(refused(api.post("/v1/keys", body), 422)["detail"])
    refused(api.post("/v1/keys", {"name": "none", "scopes": []}), 422)
    refused(api.post("/v1/keys", {"name": "over", "expires_at": in_days(-1)}), 422)


def test_a_key_ends_when_its_time_comes(api: Api, store: Store) -> None:
    brief = with_key(api, expires_at=in_days(1))
    assert brief.get("/v1/persons/me").status_code == 200
    with store.transaction() as session:
        session.execute(text("UPDATE api_key SET expires_at = now() WHERE name = 'second'"))
    refused(brief.get("/v1/persons/me"), 401)


def test_a_rotated_key_goes_on_for_its_grace_and_no_longer(api: Api, store: Store) -> None:
    old = with_key(api, scopes=["read"])
    rotated = made(api.post(f"/v1/keys/{key_of(old)}/rotate", {"grace_seconds": 60}))
    new = Api(api.http, str(rotated["api_key"]))
    assert rotated["scopes"] == ["read"]
    assert rotated["name"] == "second"
    assert old.get("/v1/persons/me").status_code == new.get("/v1/persons/me").status_code == 200
    with store.transaction() as session:
        left = session.scalars(text("SELECT expires_at - now() FROM api_key WHERE expires_at IS NOT NULL")).one()
        assert timedelta(0) < left <= timedelta(seconds=60)
        session.execute(text("UPDATE api_key SET expires_at = now() WHERE expires_at IS NOT NULL"))
    refused(old.get("/v1/persons/me"), 401)
    at_once = made(api.post(f"/v1/keys/{key_of(new)}/rotate"))
    refused(new.get("/v1/persons/me"), 401)
    refused(api.post(f"/v1/keys/{rotated['id']}/rotate"), 409)
    assert Api(api.http, str(at_once["api_key"])).get("/v1/persons/me").status_code == 200


def test_a_repeated_request_never_shows_a_key_again(api: Api) -> None:
    first = made(api.post("/v1/keys", {"name": "ci"}, once="k"))
    again = made(api.post("/v1/keys", {"name": "ci"}, once="k"))
    assert str(first["api_key"]).startswith("pk_")
    assert (again["api_key"], again["id"]) == ("", first["id"])


def test_who_does_not_administer_gives_no_key_wider_or_longer_than_the_one_they_use(
    api: Api, someone: Callable[[str, Role], Api]
) -> None:
    op, ann = someone("op", Role.OPERATOR), someone("ann", Role.ANNOTATOR)
    refused(ann.get("/v1/keys", person_id=str(made(op.get("/v1/persons/me"))["id"])), 403)
    refused(ann.post("/v1/keys", {"name": "x", "person_id": made(op.get("/v1/persons/me"))["id"]}), 403)
    refused(ann.post(f"/v1/keys/{key_of(op)}/revoke"), 403)
    narrow = with_key(op, scopes=["read", "send"], expires_at=in_days(10))
    refused(narrow.post("/v1/keys", {"name": "x", "scopes": ["operate"]}), 403)
    refused(narrow.post("/v1/keys", {"name": "x", "scopes": ["read"], "expires_at": in_days(11)}), 403)
    refused(narrow.post(f"/v1/keys/{key_of(op)}/rotate"), 403)
    refused(narrow.post(f"/v1/persons/{made(op.get('/v1/persons/me'))['id']}/rotate-key"), 403)
    inherited = made(narrow.post("/v1/keys", {"name": "x"}))
    assert inherited["scopes"] == ["read", "send"]
    assert inherited["expires_at"] is not None
    assert made(narrow.post("/v1/keys", {"name": "y", "scopes": ["read"], "expires_at": in_days(9)}))


def test_the_last_key_that_administers_for_good_stays(api: Api) -> None:
    with_key(api, scopes=["read"])
    with_key(api, expires_at=in_days(1))
    refused(api.post(f"/v1/keys/{key_of(api)}/revoke"), 409)
    with_key(api)
    made(api.post(f"/v1/keys/{key_of(api)}/revoke"))


def test_everything_that_changes_state_is_in_the_audit_trail_once(api: Api) -> None:
    task = made(api.post("/v1/tasks", task_body(), once="t"))
    made(api.post("/v1/tasks", task_body(), once="t"))
    refused(api.post("/v1/tasks", {"key": "bad"}), 422)
    me = made(api.get("/v1/persons/me"))
    (entry,) = items(api.get("/v1/audit", action="tasks.add"))
    assert (entry["person_id"], entry["person_name"], entry["via"]) == (me["id"], "owner", "key")
    assert (entry["noun"], entry["noun_id"], entry["address"]) == ("task", task["id"], "testclient")
    assert entry["credential_id"] == key_of(api)
    made(api.post("/v1/loop", {"sampling": True}))
    assert [e["action"] for e in items(api.get("/v1/audit"))] == ["loop.switch", "tasks.add", "keys.add"]
    assert items(api.get("/v1/audit"))[-1]["via"] == "system"
    assert [e["action"] for e in items(api.get("/v1/audit", noun_id=str(task["id"])))] == ["tasks.add"]
    assert items(api.get("/v1/audit", person_id="00000000-0000-0000-0000-000000000000")) == []
    assert items(api.get("/v1/audit", before="2020-01-01T00:00:00Z")) == []
    assert len(items(api.get("/v1/audit", before=in_days(1)))) == 3


def test_the_audit_trail_is_for_operators_and_owners(api: Api, someone: Callable[[str, Role], Api]) -> None:
    refused(someone("ann", Role.ANNOTATOR).get("/v1/audit"), 403)
    assert someone("op", Role.OPERATOR).get("/v1/audit").status_code == 200


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE audit SET action = 'x'",
        "UPDATE audit SET address = 'elsewhere'",
        "UPDATE audit SET address = NULL, action = 'x'",
        "DELETE FROM audit",
        "TRUNCATE audit",
    ],
)
def test_the_database_keeps_the_audit_trail_as_it_was_written(store: Store, change: str) -> None:
    with store.transaction() as session:
        audit.record(session, audit.SYSTEM, "tests.write", "test")
    with pytest.raises(DBAPIError, match="append-only"), store.transaction() as session:
        session.execute(text(change))


def test_every_action_is_listed_once(store: Store) -> None:
    with store.transaction() as session:
        assert audit.list_actions(session) == []
        for action in ("b.do", "a.do", "b.do", "c.do"):
            audit.record(session, audit.SYSTEM, action, "test")
        assert audit.list_actions(session) == ["a.do", "b.do", "c.do"]


def test_a_password_link_is_for_people_and_given_by_owners(api: Api, someone: Callable[[str, Role], Api]) -> None:
    ann, pipe = someone("ann", Role.ANNOTATOR), someone("pipe", Role.SERVICE)
    me = made(ann.get("/v1/persons/me"))
    refused(ann.post(f"/v1/persons/{me['id']}/password-link"), 403)
    link = made(api.post(f"/v1/persons/{me['id']}/password-link", once="l"))
    assert str(link["path"]).startswith("/link/")
    assert made(api.post(f"/v1/persons/{me['id']}/password-link", once="l"))["path"] == ""
    refused(api.post(f"/v1/persons/{made(pipe.get('/v1/persons/me'))['id']}/password-link"), 422)
