"""A person's own account: password, sessions, keys, and how pages look."""

from typing import Annotated
from uuid import UUID

from pydantic import Field
from starlette.responses import Response

from services.acts import grants
from services.acts.callers import NotAllowed
from services.api.deps import StoreDep
from services.contracts.base import Contract
from services.contracts.persons import Role
from services.store.core import audit
from services.store.core.transaction import Store
from services.store.people import keys, logins, passwords
from services.web.forms import build_pages, form_of
from services.web.pages.login import Secret, hash_typed, open_session
from services.web.visitors import (
    SESSION_COOKIE,
    THEME_COOKIE,
    GuestDep,
    Theme,
    Visitor,
    VisitorDep,
    go_to,
    local_path,
    page,
    set_cookie,
)

THEME_SECONDS = 365 * 86400
MAX_KEYS = 100

router = build_pages()


class ThemeForm(Contract):
    """How pages shall look, and where to go back to."""

    theme: Theme
    next: Annotated[str, Field(max_length=2000)] = "/account"


class PasswordForm(Contract):
    """The password of now, where there is one, and the one to be, typed twice."""

    current: Secret = ""
    new: Secret
    again: Secret


@router.get("/account")
def show_account(visitor: VisitorDep, store: StoreDep) -> Response:
    """The visitor's own account."""
    return _show(visitor, store, None, 200)


@router.post("/account/password")
def change_password(
    visitor: VisitorDep, store: StoreDep, form: Annotated[PasswordForm, form_of(PasswordForm)]
) -> Response:
    """Set or change the visitor's password; every session ends, and this browser gets a new one.

    Errors: NotAllowed (403) for a session that a narrower key opened, TooManyTries (429).
    """
    _check_may_set(visitor)
    name, address = visitor.caller.name, visitor.address or ""
    with store.transaction() as session:
        kept = passwords.find(session, visitor.id)
        if kept is not None:
            passwords.begin_try(session, name, address)
    if kept is not None and not passwords.is_right(kept.hash, form.current):
        return _show(visitor, store, "The current password is not correct.", 403)
    try:
        new = hash_typed(name, form.new, form.again)
    except passwords.PasswordTooWeak as error:
        return _show(visitor, store, f"{error.detail.capitalize()}. {error.hint}", error.status_code)
    with store.transaction() as session:
        passwords.put(session, visitor.id, new)
        passwords.forget_tries(session, name, address)
        audit.record(session, visitor.actor, "persons.set-password", "person", visitor.id)
        logins.end_all(session, visitor.id)
        opened = open_session(session, visitor, visitor.id, visitor.caller.key_id, "password")
    response = go_to(visitor, "/account", notice="Your password is set. All other sessions have ended.")
    set_cookie(response, visitor, SESSION_COOKIE, opened.token)
    return response


@router.post("/account/sessions/end")
def end_other_sessions(visitor: VisitorDep, store: StoreDep) -> Response:
    """End every session of the visitor but this one. Errors: NotAllowed (403) for one that a narrower key opened."""
    _check_may_end(visitor)
    with store.transaction() as session:
        num = logins.end_all(session, visitor.id, but=visitor.session_id)
        audit.record(session, visitor.actor, "sessions.end-others", "person", visitor.id, {"num": num})
    return go_to(visitor, "/account", notice=f"Sessions ended: {num}.")


@router.post("/account/sessions/{session_id}/end")
def end_session(session_id: UUID, visitor: VisitorDep, store: StoreDep) -> Response:
    """End one of the visitor's sessions.

    Errors: NotAllowed (403) where a narrower key opened this session and it is another one, SessionNotFound (404).
    """
    if session_id != visitor.session_id:
        _check_may_end(visitor)
    with store.transaction() as session:
        logins.end_mine(session, visitor.id, session_id)
        audit.record(session, visitor.actor, "sessions.end", "session", session_id)
    return go_to(visitor, "/account", notice="The session has ended.")


@router.post("/theme")
def choose_theme(guest: GuestDep, form: Annotated[ThemeForm, form_of(ThemeForm)]) -> Response:
    """Keep how pages shall look in this browser."""
    response = go_to(guest, local_path(form.next))
    set_cookie(response, guest, THEME_COOKIE, form.theme.value, max_age=THEME_SECONDS)
    return response


def _check_may_set(visitor: Visitor) -> None:
    """A password opens all of the role for good: a session of a narrower key must not make one."""
    if visitor.caller.role is Role.SERVICE:
        raise NotAllowed("services use keys; only people have passwords", hint="Log in as a person.")
    grants.check_covers(visitor.caller, None, None)


def _check_may_end(visitor: Visitor) -> None:
    """Whoever has found a narrow key must not log its owner out."""
    grants.check_covers(visitor.caller, None, visitor.caller.key_expires_at)


def _show(visitor: Visitor, store: Store, problem: str | None, status_code: int) -> Response:
    with store.transaction() as session:
        password = passwords.find(session, visitor.id)
        changed_at = None if password is None else password.changed_at
        sessions = logins.list_live(session, visitor.id)
        held = keys.list_of(session, visitor.id, cursor=None, limit=MAX_KEYS)
    return page(
        visitor,
        "account.html",
        problem=problem,
        has_password=password is not None,
        changed_at=changed_at,
        sessions=sessions,
        keys=held.items,
        person_id=visitor.id,
        scopes=sorted(visitor.caller.rights),
        status_code=status_code,
    )
