"""Logging in by key, password and link; how sessions end; what limits guessing."""

import re
import threading
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from sqlalchemy import text

from services.contracts.persons import Role
from services.store.core.transaction import Store
from services.store.people import erasing, logins, passwords, persons
from services.web.__main__ import main
from tests.store.conftest import World
from tests.waiting import wait_until
from tests.web.conftest import Browser, key_id_of

SECRET = "correct horse battery"  # noqa: S105 - a test's own


@pytest.fixture
def ann(person: Callable[[str, Role], str], store: Store, world: World) -> str:
    """An annotator with a password; their key."""
    key = person("ann", Role.ANNOTATOR)
    with store.transaction() as session:
        row = persons.find(session, "ann")
        assert row is not None
        passwords.put(session, row.id, passwords.hash_password("ann", SECRET))
    return key


def session_cookie(browser: Browser) -> str | None:
    return browser.http.cookies.get("preceptor_session")


def is_in(browser: Browser) -> bool:
    return browser.get("/account").status_code == 200


@pytest.mark.parametrize(
    "password",
    [
        "",
        "short",
        "aaaaaaaaaaaaaaaa",
        "the-owners-own-name",
        "x" * 300,
        "123456789012",
        "passwordpassword",
        "qwertyuiop12",
        "iloveyou1234",
    ],
)
def test_a_password_that_would_be_guessed_is_refused(password: str) -> None:
    with pytest.raises(passwords.PasswordTooWeak):
        passwords.hash_password("the-owners-own-name", password)


def test_a_password_is_kept_as_argon2id_and_known_again() -> None:
    kept = passwords.hash_password("ann", SECRET)
    assert kept.startswith("$argon2id$")
    assert passwords.is_right(kept, SECRET)
    assert not passwords.is_right(kept, SECRET + "x")
    assert not passwords.is_right(None, "the password of a name that does not exist")


@pytest.mark.integration
def test_the_session_cookie_is_out_of_scripts_and_other_sites_reach(
    browser: Callable[[], Browser], owner_key: str, store: Store
) -> None:
    one = browser()
    cookies = one.log_in(owner_key).headers.get_list("set-cookie")
    (cookie,) = [c for c in cookies if c.startswith("preceptor_session=")]
    assert {"HttpOnly", "SameSite=lax", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert "Secure" not in cookie
    token = session_cookie(one)
    assert token is not None
    with store.transaction() as session:
        kept = session.scalars(text("SELECT token_sha256 FROM login_session")).all()
    assert kept == [logins.hash_token(token)]


@pytest.mark.integration
def test_over_https_the_cookie_is_secure(browser: Callable[[], Browser], owner_key: str) -> None:
    one = browser()
    one.http.base_url = "https://testserver"
    cookies = one.log_in(owner_key).headers.get_list("set-cookie")
    assert all("Secure" in cookie for cookie in cookies if cookie.startswith("preceptor_session="))


@pytest.mark.integration
def test_a_login_starts_a_session_of_its_own_whatever_cookies_came_along(
    browser: Callable[[], Browser], owner_key: str
) -> None:
    victim, attacker = browser(), browser()
    victim.http.cookies.set("preceptor_session", "planted")
    victim.http.cookies.set("preceptor_visit", "planted")
    victim.log_in(owner_key)
    assert victim.http.cookies.get("preceptor_session", domain="testserver.local", path="/") != "planted"
    attacker.http.cookies.set("preceptor_session", "planted")
    assert not is_in(attacker)


@pytest.mark.integration
def test_a_name_and_its_password_log_in_and_nothing_else_does(browser: Callable[[], Browser], ann: str) -> None:
    one = browser()
    for name, password in (("ann", "wrong"), ("nobody", SECRET), ("ann", ""), ("ann", ann), ("ANN", SECRET)):
        refused = one.send("/login", name=name, password=password)
        assert refused.status_code == 401
        assert "Wrong name or password" in refused.text
        assert SECRET not in refused.text
        assert not is_in(one)
    assert one.send("/login", name="ann", password=SECRET).status_code == 303
    assert is_in(one)


@pytest.mark.integration
def test_too_many_tries_at_one_name_from_one_address_must_wait_and_nobody_else(
    browser: Callable[[], Browser], ann: str, person: Callable[[str, Role], str], store: Store
) -> None:
    one = browser()
    for _ in range(passwords.MAX_OF_PAIR):
        assert one.send("/login", name="ann", password=SECRET + "x").status_code == 401
    refused = one.send("/login", name="ann", password=SECRET)
    assert refused.status_code == 429
    assert 0 < int(refused.headers["retry-after"]) <= passwords.WINDOW.total_seconds() + 1
    assert browser().send("/login", key=ann).status_code == 303, "a key is not limited"
    assert browser().send("/login", name="ben", password=SECRET).status_code == 401
    with store.transaction() as session:
        assert passwords.begin_try(session, "ann", "10.0.0.9") is not None, "from elsewhere she may still try"
        kept = session.scalars(text("SELECT DISTINCT name_sha256 FROM login_attempt")).all()
        assert all(len(digest) == 64 for digest in kept)
        session.execute(text("UPDATE login_attempt SET created_at = now() - interval '16 minutes'"))
    assert one.send("/login", name="ann", password=SECRET).status_code == 303


@pytest.mark.integration
def test_a_name_tried_from_everywhere_is_open_where_its_person_usually_is(store: Store, ann: str) -> None:
    with store.transaction() as session:
        row = persons.find(session, "ann")
        assert row is not None
        logins.start(session, row.id, None, "192.0.2.1", None)
    for i in range(passwords.MAX_OF_NAME):
        with store.transaction() as session:
            passwords.begin_try(session, "ann", f"198.51.100.{i}")
    with store.transaction() as session:
        with pytest.raises(passwords.TooManyTries):
            passwords.begin_try(session, "ann", "203.0.113.7")
        assert passwords.begin_try(session, "ann", "192.0.2.1") is not None


@pytest.mark.integration
@pytest.mark.parametrize(
    "change",
    [
        "UPDATE login_session SET seen_at = now() - interval '13 hours'",
        "UPDATE login_session SET expires_at = now()",
        "UPDATE login_session SET ended_at = now()",
        "UPDATE api_key SET revoked_at = now()",
        "UPDATE api_key SET expires_at = now()",
    ],
)
def test_a_session_is_over_when_it_idles_ages_ends_or_its_key_does(owner: Browser, store: Store, change: str) -> None:
    assert is_in(owner)
    with store.transaction() as session:
        session.execute(text(change))
    assert owner.get("/account").headers["location"].startswith("/login")


@pytest.mark.integration
def test_a_page_that_refreshes_itself_keeps_no_session_alive(owner: Browser, store: Store) -> None:
    seen = text("SELECT seen_at < now() - interval '1 hour' FROM login_session")
    with store.transaction() as session:
        session.execute(text("UPDATE login_session SET seen_at = now() - interval '2 hours'"))
    assert owner.http.get("/audit", headers={"HX-Request": "true"}).status_code == 200
    with store.transaction() as session:
        assert session.scalar(seen) is True
    owner.get("/audit")
    with store.transaction() as session:
        assert session.scalar(seen) is False


@pytest.mark.integration
def test_a_logout_ends_the_session_on_the_server(owner: Browser, browser: Callable[[], Browser]) -> None:
    stolen = browser()
    stolen.http.cookies.set("preceptor_session", session_cookie(owner) or "")
    assert is_in(stolen)
    assert owner.send("/logout", seen_on="/account").headers["location"] == "/login"
    assert not is_in(owner)
    assert not is_in(stolen)


@pytest.mark.integration
def test_a_changed_password_ends_every_other_session(browser: Callable[[], Browser], ann: str) -> None:
    here, there = browser(), browser()
    for one in (here, there):
        assert one.send("/login", name="ann", password=SECRET).status_code == 303
    before = session_cookie(here)
    new = "another horse entirely"
    wrong = here.send("/account/password", seen_on="/account", current="wrong", new=new, again=new)
    assert wrong.status_code == 403
    differs = here.send("/account/password", seen_on="/account", current=SECRET, new=new, again=new + "x")
    assert (differs.status_code, "differ" in differs.text) == (422, True)
    assert here.send("/account/password", seen_on="/account", current=SECRET, new=new, again=new).status_code == 303
    assert is_in(here)
    assert session_cookie(here) != before
    assert not is_in(there)
    assert there.send("/login", name="ann", password=SECRET).status_code == 401
    assert there.send("/login", name="ann", password=new).status_code == 303


@pytest.mark.integration
def test_one_of_my_sessions_can_be_ended_and_nobody_elses(
    browser: Callable[[], Browser], ann: str, owner: Browser
) -> None:
    here, there = browser(), browser()
    here.log_in(ann)
    there.log_in(ann)
    (other,) = re.findall(r'action="/account/sessions/([0-9a-f-]{36})/end"', here.get("/account").text)
    assert owner.send(f"/account/sessions/{other}/end", seen_on="/account").status_code == 404
    assert is_in(there)
    assert here.send(f"/account/sessions/{other}/end", seen_on="/account").status_code == 303
    assert not is_in(there)
    assert is_in(here)


@pytest.mark.integration
def test_an_owner_gives_another_role_which_holds_for_whoever_is_logged_in(
    owner: Browser, browser: Callable[[], Browser], ann: str, store: Store
) -> None:
    there = browser()
    there.log_in(ann)
    assert there.get("/audit").status_code == 403
    with store.transaction() as session:
        row = persons.find(session, "ann")
        assert row is not None
    page = f"/persons/{row.id}"
    assert owner.send(f"{page}/role", seen_on=page, role="operator").headers["location"] == page
    assert 'value="operator" checked' in owner.get(page).text
    assert there.get("/audit").status_code == 200
    assert owner.send(f"{page}/role", seen_on=page, role="service").status_code == 409
    assert owner.send(f"{page}/role", seen_on=page).status_code == 422


def test_only_a_few_passwords_wait_to_be_checked_and_the_next_is_turned_away() -> None:
    kept = passwords.hash_password("ann", SECRET)
    with ExitStack() as taken:
        for _ in range(2):
            passwords._turns.acquire()
            taken.callback(passwords._turns.release)
        waiting = [threading.Thread(target=passwords.is_right, args=(kept, SECRET)) for _ in range(20)]
        refused = []
        threading.excepthook, before = (lambda args: refused.append(args.exc_type)), threading.excepthook
        taken.callback(setattr, threading, "excepthook", before)
        for thread in waiting:
            thread.start()
        wait_until(lambda: len(refused) == 10)
        assert refused == [passwords.PasswordsBusy] * 10
    for thread in waiting:
        thread.join()
    assert passwords.is_right(kept, SECRET)


@pytest.mark.integration
def test_a_login_that_is_turned_away_says_when_to_come_back(browser: Callable[[], Browser], ann: str) -> None:
    with ExitStack() as taken:
        while passwords._places.acquire(blocking=False):
            taken.callback(passwords._places.release)
        refused = browser().send("/login", name="ann", password=SECRET)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
    assert "Try again in a moment" in refused.text
    assert browser().send("/login", name="ann", password=SECRET).status_code == 303


@pytest.mark.integration
def test_a_password_that_was_changed_while_it_was_checked_opens_nothing(ann: str, store: Store) -> None:
    with store.transaction() as session:
        row = persons.find(session, "ann")
        assert row is not None
        kept = passwords.find(session, row.id)
        assert kept is not None
        assert passwords.is_still(session, row.id, kept.hash)
        passwords.put(session, row.id, passwords.hash_password("ann", SECRET + " and more"))
        assert not passwords.is_still(session, row.id, kept.hash)


@pytest.mark.integration
def test_a_session_of_somebody_who_was_erased_opens_nothing(
    browser: Callable[[], Browser], ann: str, store: Store
) -> None:
    one = browser()
    one.log_in(ann)
    with store.transaction() as session:  # as if it had begun while they were erased
        session.execute(text("UPDATE person SET erased_at = now() WHERE name = 'ann'"))
    assert not is_in(one)


@pytest.mark.integration
def test_a_session_of_a_narrow_key_ends_only_itself(browser: Callable[[], Browser], owner_key: str) -> None:
    wide, narrow = browser(), browser()
    wide.log_in(owner_key)
    body = {"name": "reader", "scopes": ["read"]}
    made = wide.http.post("/v1/keys", json=body, headers={"Authorization": f"Bearer {owner_key}"})
    narrow.log_in(str(made.json()["api_key"]))
    (other,) = re.findall(r'action="/account/sessions/([0-9a-f-]{36})/end"', narrow.get("/account").text)
    assert narrow.send("/account/sessions/end", seen_on="/account").status_code == 403
    assert narrow.send(f"/account/sessions/{other}/end", seen_on="/account").status_code == 403
    assert is_in(wide)
    assert narrow.send("/logout", seen_on="/account").status_code == 303


@pytest.mark.parametrize("proxies", [None, "10.0.0.1"])
def test_where_a_caller_is_said_to_be_is_believed_of_a_named_proxy_only(
    proxies: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr("uvicorn.run", lambda app, **options: given.update(options))
    monkeypatch.setattr("services.web.__main__.freeze_heap", lambda: None)
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    if proxies is not None:
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", proxies)
    assert main([]) == 0
    assert given["proxy_headers"] is (proxies is not None)


@pytest.mark.integration
def test_what_erasing_takes_out_is_a_page_of_its_own(
    owner: Browser, ann: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.transaction() as session:
        row = persons.find(session, "ann")
        assert row is not None
    page = f"/persons/{row.id}"
    with monkeypatch.context() as patched:
        patched.setattr(erasing, "preview", None)  # it may take a while, and a role must be changed at once
        shown = owner.get(page)
        assert shown.status_code == 200
        assert f'href="{page}/erasure"' in shown.text
    assert "Type <strong>ann</strong> to confirm" in owner.get(f"{page}/erasure").text
    assert owner.send(f"{page}/erase", seen_on=f"{page}/erasure", name="anna").status_code == 422
    done = owner.send(f"{page}/erase", seen_on=f"{page}/erasure", name="ann")
    assert done.headers["location"] == f"{page}/erasure"
    assert "What was removed" in owner.get(f"{page}/erasure").text
    assert "pseudonym" in owner.get(page).text


@pytest.mark.integration
def test_a_password_link_sets_a_password_once(
    owner: Browser, browser: Callable[[], Browser], ann: str, store: Store
) -> None:
    with store.transaction() as session:
        row = persons.find(session, "ann")
        assert row is not None
    logged_in = browser()
    logged_in.log_in(ann)
    shown = owner.send(f"/persons/{row.id}/password-link", seen_on=f"/persons/{row.id}", reset="true").text
    path = "/link/" + shown.split("/link/")[1].split("<")[0]
    assert not is_in(logged_in), "a reset ends the sessions at once"
    assert browser().send("/login", name="ann", password=SECRET).status_code == 401
    one = browser()
    assert "Set your password" in one.get(path).text
    assert one.get(path).status_code == 200, "looking does not use it up"
    new = "a new word or three"
    assert one.send(path, seen_on=path, new="short", again="short").status_code == 422
    assert one.send(path, seen_on=path, new=new, again=new).headers["location"] == "/account"
    assert is_in(one)
    assert browser().get(path).status_code == 404
    assert browser().send("/login", name="ann", password=new).status_code == 303


@pytest.mark.integration
def test_a_login_link_works_once_and_no_longer_than_its_time_and_key(
    browser: Callable[[], Browser], owner_key: str, store: Store
) -> None:
    headers = {"Authorization": f"Bearer {owner_key}"}

    def make() -> str:
        response = browser().http.post("/v1/persons/me/login-link", headers=headers)
        assert response.status_code == 201
        return str(response.json()["path"])

    path = make()
    one, two = browser(), browser()
    token_of_two = two.token(path)
    assert one.send(path, seen_on=path).headers["location"] == "/"
    assert is_in(one)
    assert two.send_as(token_of_two, path).status_code == 404
    late = make()
    with store.transaction() as session:
        session.execute(text("UPDATE login_link SET expires_at = now()"))
    assert browser().get(late).status_code == 404
    with store.transaction() as session:
        session.execute(text("UPDATE api_key SET revoked_at = now()"))
    assert not is_in(one), "its session ends with the key the link was made with"


@pytest.mark.integration
def test_a_session_of_a_narrow_key_is_as_narrow(browser: Callable[[], Browser], owner_key: str) -> None:
    headers = {"Authorization": f"Bearer {owner_key}"}
    body = {"name": "reader", "scopes": ["read"]}
    key = browser().http.post("/v1/keys", json=body, headers=headers).json()["api_key"]
    one = browser()
    one.log_in(key)
    assert one.get("/persons").status_code == 403
    new = "a new word or three"
    assert one.send("/account/password", seen_on="/account", new=new, again=new).status_code == 403
    wide = {"person_id": "", "name": "wider", "scopes": ["read", "operate"]}
    mine = browser().http.get("/v1/persons/me", headers=headers).json()["id"]
    assert one.send("/keys", seen_on="/account", **(wide | {"person_id": mine})).status_code == 403


@pytest.mark.integration
def test_a_session_outlives_no_rotation_of_its_key(owner: Browser, owner_key: str, store: Store) -> None:
    key_id = key_id_of(store, owner_key)
    shown = owner.send(f"/keys/{key_id}/rotate", seen_on="/account", grace_days="0")
    assert shown.status_code == 200
    assert "pk_" in shown.text
    assert not is_in(owner)


@pytest.mark.integration
def test_no_page_or_answer_ever_holds_a_password_or_token_hash(owner: Browser, store: Store, ann: str) -> None:
    with store.transaction() as session:
        row = persons.find(session, "ann")
        assert row is not None
        secrets = "SELECT hash FROM password UNION SELECT key_sha256 FROM api_key UNION SELECT token_sha256"
        kept = session.scalars(text(f"{secrets} FROM login_session")).all()
    for path in ("/account", "/persons", f"/persons/{row.id}", "/audit"):
        shown = owner.get(path).text
        assert not [secret for secret in kept if secret in shown]
        assert "argon2" not in shown
