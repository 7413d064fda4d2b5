"""A person's own account: password, sessions, keys, and the look of the pages."""

from typing import Annotated
from uuid import UUID

from pydantic import Field
from starlette.responses import Response

from services.acts import sessions as acts
from services.api.deps import StoreDep
from services.contracts.base import Contract
from services.contracts.persons import PasswordSet
from services.store.core.transaction import Store
from services.store.people import keys, logins, passwords
from services.web.forms import build_pages, form_of
from services.web.pages.login import Secret, browser_of, check_typed
from services.web.visitors import (
    SESSION_COOKIE,
    THEME_COOKIE,
    CallDep,
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
MAX_SHOWN = 100
"""Keys and sessions of a person that their page shows."""

router = build_pages()


class ThemeForm(Contract):
    """The theme of the pages, and the page to return to."""

    theme: Theme
    next: Annotated[str, Field(max_length=2000)] = "/account"


class PasswordForm(Contract):
    """The current password, where there is one, and the new one, typed twice."""

    current: Secret = ""
    new: Secret
    again: Secret


@router.get("/account")
def show_account(visitor: VisitorDep, store: StoreDep) -> Response:
    """The visitor's own account."""
    return _show(visitor, store, None, 200)


@router.post("/account/password")
def change_password(
    visitor: VisitorDep, call: CallDep, store: StoreDep, form: Annotated[PasswordForm, form_of(PasswordForm)]
) -> Response:
    """Set or change the visitor's password; every session ends, and this browser gets a new one.

    Errors: NotAllowed (403) for a session that a narrower key opened, TooManyTries (429).
    """
    try:
        check_typed(form.new, form.again)
        wanted = PasswordSet(current=form.current, new=form.new)
        opened = acts.set_password(call, wanted, browser_of(visitor))
    except (acts.WrongPassword, passwords.PasswordTooWeak) as error:
        return _show(visitor, store, f"{error.detail.capitalize()}. {error.hint}", error.status_code)
    assert opened is not None, "a browser gets a new session"
    response = go_to(visitor, "/account", notice="Your password is set. All other sessions have ended.")
    set_cookie(response, visitor, SESSION_COOKIE, opened.token)
    return response


@router.post("/account/sessions/end")
def end_other_sessions(visitor: VisitorDep, call: CallDep) -> Response:
    """End every session of the visitor but this one. Errors: NotAllowed (403) for one that a narrower key opened."""
    num = acts.end_all(call, visitor.id, but=visitor.session_id).num_ended
    return go_to(visitor, "/account", notice=f"Sessions ended: {num}.")


@router.post("/account/sessions/{session_id}/end")
def end_session(session_id: UUID, visitor: VisitorDep, call: CallDep) -> Response:
    """End one of the visitor's sessions.

    Errors: NotAllowed (403) where a narrower key opened this session and it is another one, SessionNotFound (404).
    """
    acts.end(call, session_id)
    return go_to(visitor, "/account", notice="The session has ended.")


@router.post("/theme")
def choose_theme(guest: GuestDep, form: Annotated[ThemeForm, form_of(ThemeForm)]) -> Response:
    """Save the theme of the pages in this browser."""
    response = go_to(guest, local_path(form.next))
    set_cookie(response, guest, THEME_COOKIE, form.theme.value, max_age=THEME_SECONDS)
    return response


def _show(visitor: Visitor, store: Store, problem: str | None, status_code: int) -> Response:
    with store.reading() as session:
        password = passwords.find(session, visitor.id)
        changed_at = None if password is None else password.changed_at
        live = logins.list_live(session, visitor.id, cursor=None, limit=MAX_SHOWN)
        held = keys.list_of(session, visitor.id, cursor=None, limit=MAX_SHOWN)
    return page(
        visitor,
        "account.html",
        problem=problem,
        has_password=password is not None,
        changed_at=changed_at,
        sessions=live.items,
        keys=held.items,
        person_id=visitor.id,
        scopes=sorted(visitor.caller.rights),
        status_code=status_code,
    )
