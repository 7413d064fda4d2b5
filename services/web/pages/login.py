"""Logging in, by password, key or one-time link, and out."""

from typing import Annotated

import structlog
from fastapi import Query
from pydantic import Field
from starlette.responses import Response

from services.acts import sessions as acts
from services.acts.sessions import Browser, Opened
from services.api.deps import StoreDep
from services.contracts.base import Contract
from services.contracts.persons import LinkPurpose
from services.store.core.transaction import Store
from services.store.people import logins, passwords
from services.web.forms import build_pages, form_of
from services.web.visitors import (
    SESSION_COOKIE,
    CallDep,
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
WRONG_PASSWORD = "Wrong name or password."  # noqa: S105 - a sentence, not a password

Next = Annotated[str, Query(max_length=2000)]
Secret = Annotated[str, Field(max_length=passwords.MAX_CHARS + 1, repr=False)]


class LoginForm(Contract):
    """The credentials of a login: a name and password, or a key."""

    name: Annotated[str, Field(max_length=200)] = ""
    password: Secret = ""
    key: Secret = ""
    next: Annotated[str, Field(max_length=2000)] = "/"


class NewPasswordForm(Contract):
    """A new password, typed twice; empty if the link only logs in."""

    new: Secret = ""
    again: Secret = ""


@router.get("/login")
def show_login(guest: GuestDep, next: Next = "/") -> Response:
    """The login page; redirects visitors who are already logged in."""
    if isinstance(guest, Visitor):
        return go_to(guest, local_path(next))
    return page(guest, "login.html", next=local_path(next), name="", problem=None, by_key=False)


@router.post("/login")
def log_in(guest: GuestDep, store: StoreDep, form: Annotated[LoginForm, form_of(LoginForm)]) -> Response:
    """Start a session with a new token; cookies of the request are ignored."""
    try:
        opened = _open(store, guest, form)
    except (passwords.TooManyTries, passwords.PasswordsBusy) as error:
        problem = f"{error.detail.capitalize()}. {error.hint}"
        refused = _show_again(guest, form, problem, error.status_code)
        refused.headers["Retry-After"] = str(error.retry_after_seconds)
        return refused
    if opened is None:
        log.warning("login refused", address=guest.address, by="key" if form.key else "password")
        return _show_again(guest, form, UNKNOWN_KEY if form.key else WRONG_PASSWORD, 401)
    response = go_to(guest, local_path(form.next))
    set_cookie(response, guest, SESSION_COOKIE, opened.token)
    return response


@router.post("/logout")
def log_out(visitor: VisitorDep, call: CallDep) -> Response:
    """End this session."""
    if visitor.session_id is not None:
        acts.end(call, visitor.session_id)
    response = go_to(visitor, "/login", notice="You are logged out.")
    response.delete_cookie(SESSION_COOKIE)
    return response


@router.get("/link/{token}")
def show_link(token: str, guest: GuestDep, store: StoreDep) -> Response:
    """The page of a one-time link, with a button to use it; opening the page does not use it up.

    Errors: LinkNotFound (404).
    """
    with store.reading() as session:
        link, person = logins.find_link(session, token)
    return page(guest, "link.html", token=token, link=link, person=person, problem=None)


@router.post("/link/{token}")
def use_link(
    token: str, guest: GuestDep, store: StoreDep, form: Annotated[NewPasswordForm, form_of(NewPasswordForm)]
) -> Response:
    """Use a one-time link: log in, after setting a password if the link is for one.

    Errors: LinkNotFound (404).
    """
    with store.reading() as session:
        link, person = logins.find_link(session, token)
    sets_password = link.purpose == LinkPurpose.SET_PASSWORD.value
    try:
        if sets_password:
            check_typed(form.new, form.again)
        opened = acts.use_link(store, browser_of(guest), token, form.new)
    except passwords.PasswordTooWeak as error:
        told = f"{error.detail.capitalize()}. {error.hint}"
        return page(guest, "link.html", token=token, link=link, person=person, problem=told, status_code=422)
    response = go_to(guest, "/account" if sets_password else "/", notice=f"You are logged in as {person.name}.")
    set_cookie(response, guest, SESSION_COOKIE, opened.token)
    return response


def _open(store: Store, guest: Guest, form: LoginForm) -> Opened | None:
    """Errors: TooManyTries (429), PasswordsBusy (503)."""
    if form.key:
        return acts.open_by_key(store, browser_of(guest), form.key.strip())
    return acts.open_by_password(store, browser_of(guest), form.name, form.password)


def browser_of(guest: Guest) -> Browser:
    """The browser that a session is started for."""
    return Browser(guest.address, guest.agent, guest.session_id)


def check_typed(new: str, again: str) -> None:
    """Check that the new password was typed the same twice. Errors: PasswordTooWeak (422)."""
    if new != again:
        raise passwords.PasswordTooWeak("the two passwords differ", hint="Type the same one twice.")


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
