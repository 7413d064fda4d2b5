"""A person's own account."""

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from services.contracts.base import Contract
from services.web.forms import build_pages, form_of
from services.web.visitors import THEME_COOKIE, GuestDep, Theme, VisitorDep, go_to, local_path, page, set_cookie

THEME_SECONDS = 365 * 86400

router = build_pages()


class ThemeForm(Contract):
    """How pages shall look, and where to go back to."""

    theme: Theme
    next: Annotated[str, Query(max_length=2000)] = "/account"


@router.get("/account")
def show_account(visitor: VisitorDep) -> Response:
    """The visitor's own account."""
    return page(visitor, "account.html")


@router.post("/theme")
def choose_theme(guest: GuestDep, form: Annotated[ThemeForm, form_of(ThemeForm)]) -> Response:
    """Keep how pages shall look in this browser."""
    response = go_to(guest, local_path(form.next))
    set_cookie(response, guest, THEME_COOKIE, form.theme.value, max_age=THEME_SECONDS)
    return response
