"""Logging in and out."""

from typing import Annotated

from fastapi import Query
from pydantic import Field
from starlette.responses import Response

from services.api.deps import StoreDep
from services.contracts.base import Contract
from services.store import logins, persons
from services.web.forms import build_pages, form_of
from services.web.visitors import SESSION_COOKIE, GuestDep, Visitor, VisitorDep, go_to, local_path, page, set_cookie

router = build_pages()


class LoginForm(Contract):
    """How somebody says who they are."""

    key: Annotated[str, Field(max_length=200, repr=False)]
    next: Annotated[str, Field(max_length=2000)] = "/"


@router.get("/login")
def show_login(guest: GuestDep, next: Annotated[str, Query(max_length=2000)] = "/") -> Response:
    """The login page; who is logged in already goes on."""
    if isinstance(guest, Visitor):
        return go_to(guest, local_path(next))
    return page(guest, "login.html", next=local_path(next), problem=None)


@router.post("/login")
def log_in(guest: GuestDep, store: StoreDep, form: Annotated[LoginForm, form_of(LoginForm)]) -> Response:
    """Start a session with a token of its own, whatever cookies came along."""
    with store.transaction() as session:
        found = persons.authenticate(session, form.key)
        token = found and logins.start(session, found[0].id, found[1].id, guest.address, guest.agent)
    if token is None:
        problem = "This key is not known; it may have been mistyped, replaced or revoked."
        return page(guest, "login.html", next=local_path(form.next), problem=problem, status_code=401)
    response = go_to(guest, local_path(form.next))
    set_cookie(response, guest, SESSION_COOKIE, token)
    return response


@router.post("/logout")
def log_out(visitor: VisitorDep, store: StoreDep) -> Response:
    """End this session."""
    if visitor.session_id is not None:
        with store.transaction() as session:
            logins.end(session, visitor.session_id)
    response = go_to(visitor, "/login", notice="You are logged out.")
    response.delete_cookie(SESSION_COOKIE)
    return response
