"""Login sessions and passwords through the api: who may end and set which."""

from collections.abc import Callable

import httpx2
import pytest

from services.acts import sessions
from services.acts.sessions import Browser, Opened
from services.contracts.persons import Role
from services.store.core.transaction import Store
from services.store.people import logins
from tests.api.conftest import Api, items, made, refused

pytestmark = pytest.mark.integration

PASSWORD, OTHER = "seven grey herons at the weir", "eight white herons at the weir"
ELSEWHERE = Browser(address="10.0.0.7", agent="a browser", session_id=None)


def log_in(store: Store, api: Api) -> Opened:
    opened = sessions.open_by_key(store, ELSEWHERE, api.key)
    assert opened is not None
    return opened


def is_live(store: Store, opened: Opened) -> bool:
    with store.transaction() as session:
        return logins.find(session, opened.token, is_use=False) is not None


def put_password(api: Api, current: str, new: str) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {api.key}"}
    return api.http.put("/v1/persons/me/password", json={"current": current, "new": new}, headers=headers)


def test_a_person_lists_and_ends_their_own_sessions_and_no_one_elses(
    api: Api, someone: Callable[[str, Role], Api], store: Store
) -> None:
    ann = someone("ann", Role.ANNOTATOR)
    mine, owners = log_in(store, ann), log_in(store, api)
    [listed] = items(ann.get("/v1/sessions"))
    assert listed["address"] == "10.0.0.7"
    [owned] = items(api.get("/v1/sessions"))
    refused(ann.post(f"/v1/sessions/{owned['id']}/end"), 404)
    refused(ann.get("/v1/sessions", person_id=str(made(api.get("/v1/persons/me"))["id"])), 403)
    assert made(ann.post(f"/v1/sessions/{listed['id']}/end")) == {"num_ended": 1}
    assert not is_live(store, mine)
    assert is_live(store, owners)


def test_an_owner_ends_every_session_of_a_person_who_may_not_end_the_owners(
    api: Api, someone: Callable[[str, Role], Api], store: Store
) -> None:
    ann = someone("ann", Role.ANNOTATOR)
    opened = [log_in(store, ann), log_in(store, ann)]
    me, owner = made(ann.get("/v1/persons/me")), made(api.get("/v1/persons/me"))
    refused(ann.post(f"/v1/persons/{owner['id']}/end-sessions"), 403)
    assert made(api.post(f"/v1/persons/{me['id']}/end-sessions")) == {"num_ended": 2}
    assert not any(is_live(store, one) for one in opened)


def test_a_password_is_set_with_the_current_one_and_ends_every_session(
    api: Api, someone: Callable[[str, Role], Api], store: Store
) -> None:
    ann = someone("ann", Role.ANNOTATOR)
    opened = log_in(store, ann)
    assert put_password(ann, "", PASSWORD).status_code == 204
    assert not is_live(store, opened)
    assert "current password" in str(refused(put_password(ann, OTHER, OTHER), 403)["detail"])
    refused(put_password(ann, PASSWORD, "short"), 422)
    assert put_password(ann, PASSWORD, OTHER).status_code == 204
    assert sessions.open_by_password(store, ELSEWHERE, "ann", PASSWORD) is None
    assert sessions.open_by_password(store, ELSEWHERE, "ann", OTHER) is not None


def test_services_and_keys_with_fewer_rights_set_no_password(api: Api, someone: Callable[[str, Role], Api]) -> None:
    refused(put_password(someone("pipe", Role.SERVICE), "", PASSWORD), 403)
    narrow = Api(api.http, str(made(api.post("/v1/keys", {"name": "reader", "scopes": ["read"]}))["api_key"]))
    refused(put_password(narrow, "", PASSWORD), 403)
