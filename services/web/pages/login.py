"""Logging in, by password, key or one-time link, and out."""

from dataclasses import dataclass, field
from typing import Annotated
from uuid import UUID

import structlog
from fastapi import Query
from pydantic import Field
from sqlalchemy.orm import Session
from starlette.responses import Response

from services.api.deps import StoreDep
from services.contracts.audit import Via
from services.contracts.base import Contract
from services.contracts.persons import LinkPurpose
from services.store.core import audit
from services.store.core.audit import Actor
from services.store.core.transaction import Store
from services.store.people import keys, logins, passwords
from services.web.forms import build_pages, form_of
from services.web.visitors import (
    SESSION_COOKIE,
    Guest,
    GuestDep,
    Visitor,
    VisitorDep,
    go_to,
    local_path,
    page,
    set_cookie,
)

router = build_pages()
log = structlog.get_logger(__name__)

UNKNOWN_KEY = "Unknown key: it may be mistyped, replaced, revoked or expired."
WRONG_PASSWORD = "Wrong name or password."  # noqa: S105 - a sentence, no password

Next = Annotated[str, Query(max_length=2000)]
Secret = Annotated[str, Field(max_length=passwords.MAX_CHARS + 1, repr=False)]


class LoginForm(Contract):
    """Who somebody says they are: a name and password, or a key."""

    name: Annotated[str, Field(max_length=200)] = ""
    password: Secret = ""
    key: Secret = ""
    next: Annotated[str, Field(max_length=2000)] = "/"


class NewPasswordForm(Contract):
    """A password to be, typed twice; empty where the link only logs in."""

    new: Secret = ""
    again: Secret = ""


@router.get("/login")
def show_login(guest: GuestDep, next: Next = "/") -> Response:
    """The login page; who is logged in already goes on."""
    if isinstance(guest, Visitor):
        return go_to(guest, local_path(next))
    return page(guest, "login.html", next=local_path(next), name="", problem=None, by_key=False)


@router.post("/login")
def log_in(guest: GuestDep, store: StoreDep, form: Annotated[LoginForm, form_of(LoginForm)]) -> Response:
    """Start a session with a token of its own, whatever cookies came along."""
    try:
        token = _open_by_key(store, guest, form.key) if form.key else _open_by_password(store, guest, form)
    except (passwords.TooManyTries, passwords.PasswordsBusy) as error:
        problem = f"{error.detail.capitalize()}. {error.hint}"
        refused = _show_again(guest, form, problem, error.status_code)
        refused.headers["Retry-After"] = str(error.retry_after_seconds)
        return refused
    if token is None:
        log.warning("login refused", address=guest.address, by="key" if form.key else "password")
        return _show_again(guest, form, UNKNOWN_KEY if form.key else WRONG_PASSWORD, 401)
    response = go_to(guest, local_path(form.next))
    set_cookie(response, guest, SESSION_COOKIE, token)
    return response


@router.post("/logout")
def log_out(visitor: VisitorDep, store: StoreDep) -> Response:
    """End this session."""
    if visitor.session_id is not None:
        with store.transaction() as session:
            logins.end(session, visitor.session_id)
            audit.record(session, visitor.actor, "sessions.end", "session", visitor.session_id)
    response = go_to(visitor, "/login", notice="You are logged out.")
    response.delete_cookie(SESSION_COOKIE)
    return response


@router.get("/link/{token}")
def show_link(token: str, guest: GuestDep, store: StoreDep) -> Response:
    """What a one-time link does, and the button that does it: looking at it does not use it up.

    Errors: LinkNotFound (404).
    """
    with store.reading() as session:
        link, person = logins.find_link(session, token)
    return page(guest, "link.html", token=token, link=link, person=person, problem=None)


@router.post("/link/{token}")
def use_link(
    token: str, guest: GuestDep, store: StoreDep, form: Annotated[NewPasswordForm, form_of(NewPasswordForm)]
) -> Response:
    """Use a one-time link: log in, after setting a password where that is what it is for.

    Errors: LinkNotFound (404).
    """
    with store.transaction() as session:
        link, person = logins.find_link(session, token)
    sets_password = link.purpose == LinkPurpose.SET_PASSWORD.value
    kept = None
    if sets_password:
        try:
            kept = hash_typed(person.name, form.new, form.again)
        except passwords.PasswordTooWeak as error:
            told = f"{error.detail.capitalize()}. {error.hint}"
            return page(guest, "link.html", token=token, link=link, person=person, problem=told, status_code=422)
    with store.transaction() as session:
        link, person = logins.take_link(session, token)
        if kept is not None:
            passwords.put(session, person.id, kept)
            passwords.forget_tries(session, person.name)
            logins.end_all(session, person.id)
        opened = open_session(session, guest, person.id, link.key_id, "link")
        if kept is not None:
            audit.record(session, opened.actor, "persons.set-password", "person", person.id)
    response = go_to(guest, "/account" if sets_password else "/", notice=f"You are logged in as {person.name}.")
    set_cookie(response, guest, SESSION_COOKIE, opened.token)
    return response


@dataclass(frozen=True)
class Opened:
    """A session that was started: its token, and who acts by it."""

    token: str = field(repr=False)
    actor: Actor


def open_session(session: Session, guest: Guest, person_id: UUID, key_id: UUID | None, by: str) -> Opened:
    """Start a session for this browser; the one it had ends."""
    if guest.session_id is not None:
        logins.end(session, guest.session_id)
    session_id, token = logins.start(session, person_id, key_id, guest.address, guest.agent)
    actor = Actor(Via.SESSION, person_id, session_id, guest.address)
    audit.record(session, actor, "sessions.start", "session", session_id, {"by": by})
    return Opened(token, actor)


def hash_typed(name: str, new: str, again: str) -> str:
    """What is kept of a password that was typed twice. Errors: PasswordTooWeak (422)."""
    if new != again:
        raise passwords.PasswordTooWeak("the two passwords differ", hint="Type the same one twice.")
    return passwords.hash_password(name, new)


def _open_by_key(store: Store, guest: Guest, key: str) -> str | None:
    with store.transaction() as session:
        found = keys.authenticate(session, key.strip())
        return None if found is None else open_session(session, guest, found[0].id, found[1].id, "key").token


def _open_by_password(store: Store, guest: Guest, form: LoginForm) -> str | None:
    """Errors: TooManyTries (429), PasswordsBusy (503)."""
    address = guest.address or ""
    with store.transaction() as session:
        found = passwords.begin_try(session, form.name, address)
    person_id, kept = (None, None) if found is None else (found[0].id, found[1])
    if not passwords.is_right(kept, form.password) or person_id is None:
        return None
    with store.transaction() as session:
        if kept is None or not passwords.is_still(session, person_id, kept):
            return None
        passwords.forget_tries(session, form.name, address)
        return open_session(session, guest, person_id, None, "password").token


def _show_again(guest: Guest, form: LoginForm, problem: str, status_code: int) -> Response:
    return page(
        guest,
        "login.html",
        next=local_path(form.next),
        name=form.name,
        problem=problem,
        by_key=bool(form.key),
        status_code=status_code,
    )
