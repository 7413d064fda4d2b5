"""The visitor of a page: session, rights, and proof that a form came from one of our pages.

Every page depends on `VisitorDep` (logged in; `needs(right)` checks a right) or `GuestDep` (anyone). If the settings
open the api, a visitor without a session is the first owner, like a call without a key.

The CSRF token is derived from a cookie that only our pages can set: the session's, or before login the visit's.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final
from urllib.parse import quote, unquote
from uuid import UUID

from fastapi import Depends, Request
from fastapi.params import Depends as Dependency
from starlette.datastructures import FormData
from starlette.responses import HTMLResponse, Response

from services.acts.call import PersonCall
from services.acts.callers import Caller, NotAllowed, to_caller
from services.api.deps import AppStateDep
from services.contracts.audit import Via
from services.contracts.persons import Right
from services.runtime.errors import InvalidInput, PreceptorError
from services.store.core.audit import Actor
from services.store.people import logins, persons
from services.web import navigation, rendering

SESSION_COOKIE: Final = "preceptor_session"
VISIT_COOKIE: Final = "preceptor_visit"
THEME_COOKIE: Final = "preceptor_theme"
NOTICE_COOKIE: Final = "preceptor_notice"
CSRF_FIELD: Final = "csrf_token"
CSRF_HEADER: Final = "x-csrf-token"
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
MAX_NOTICE_CHARS: Final = 300


class LoginNeeded(PreceptorError):
    """The page requires a login; a browser is sent to the login page."""

    status_code = 401
    title = "Please log in"
    hint = "Your session may have ended. After logging in you return to this page."


class ForeignForm(PreceptorError):
    """The form did not come from one of our pages, or came from before a login or logout."""

    status_code = 403
    title = "This form is out of date"
    hint = "Load the page again and send the form once more."


class FormUnreadable(InvalidInput):
    """The form's bytes are not text."""

    hint = "Send forms in UTF-8, as the page does."


class Theme(StrEnum):
    """How pages look; `system` follows the device."""

    SYSTEM = "system"
    LIGHT = "light"
    DARK = "dark"


@dataclass(frozen=True)
class Guest:
    """Anyone who opens a page."""

    path: str
    """The page's own path and query, to come back to."""
    csrf_token: str
    theme: Theme
    is_fragment: bool
    """Whether htmx asks for a piece of a page."""
    origin: str
    """Scheme, host and port as the browser knows them, for links that are shown whole."""
    address: str | None
    agent: str | None
    notice: str | None
    new_visit: str | None
    caller: Caller | None
    session_id: UUID | None
    links: tuple[navigation.Link, ...]

    @property
    def is_secure(self) -> bool:
        """Whether the page came over https."""
        return self.origin.startswith("https:")

    def may(self, right: Right) -> bool:
        """Whether the guest is logged in and has the right."""
        return self.caller is not None and self.caller.may(right)


@dataclass(frozen=True)
class Visitor(Guest):
    """A guest who is logged in."""

    caller: Caller

    @property
    def id(self) -> UUID:
        """The person's id."""
        return self.caller.id

    @property
    def actor(self) -> Actor:
        """The actor of this visitor's forms, for the audit trail."""
        via = Via.OPEN if self.session_id is None else Via.SESSION
        return Actor(via, self.caller.id, self.session_id, self.address)


def identify_guest(request: Request, app_state: AppStateDep) -> Guest:
    """The guest of this request, logged in or not."""
    token = request.cookies.get(SESSION_COOKIE, "")
    is_fragment = request.headers.get("hx-request") == "true"
    caller: Caller | None = None
    session_id: UUID | None = None
    if token or app_state.settings.api_open:
        is_use = not (is_fragment and request.method in SAFE_METHODS)  # a self-refreshing page is no use
        with app_state.store.transaction() as session:
            login = logins.find(session, token, is_use=is_use) if token else None
            if login is not None:
                caller, session_id = to_caller(login.person, login.key), login.session.id
            elif app_state.settings.api_open:
                caller = to_caller(persons.find_owner(session), None)
    visit = request.cookies.get(VISIT_COOKIE, "")
    new_visit = None if visit else secrets.token_urlsafe(32)
    made = Guest(
        path=request.url.path + (f"?{request.url.query}" if request.url.query else ""),
        csrf_token=derive_csrf(token if session_id is not None else visit or new_visit or ""),
        theme=_read_theme(request),
        is_fragment=is_fragment,
        origin=str(request.base_url).rstrip("/"),
        address=request.client.host if request.client else None,
        agent=request.headers.get("user-agent"),
        notice=_read_notice(request),
        new_visit=new_visit,
        caller=caller,
        session_id=session_id,
        links=navigation.links_of(request.app.state.pages, caller),
    )
    return made if caller is None else Visitor(**{**vars(made), "caller": caller})


GuestDep = Annotated[Guest, Depends(identify_guest)]


def _require_visitor(guest: GuestDep) -> Visitor:
    if not isinstance(guest, Visitor):
        raise LoginNeeded("this page requires a login")
    return guest


VisitorDep = Annotated[Visitor, Depends(_require_visitor)]


def _get_call(visitor: VisitorDep, app_state: AppStateDep) -> PersonCall:
    return PersonCall(store=app_state.store, settings=app_state.settings, actor=visitor.actor, caller=visitor.caller)


CallDep = Annotated[PersonCall, Depends(_get_call)]
"""The call of an act by this visitor."""


def needs(right: Right) -> Dependency:
    """A dependency that passes visitors who have the right. Errors: LoginNeeded (401), NotAllowed (403)."""

    def check(visitor: VisitorDep) -> None:
        if not visitor.caller.may(right):
            who = f"{visitor.caller.name} ({visitor.caller.role.value})"
            raise NotAllowed(
                f"you are logged in as {who}, which does not include the right to {right.value}",
                hint="Ask an owner for another role, or log in as someone else.",
            )

    checked: Callable[[Visitor], None] = check
    dependency: Dependency = Depends(checked)
    return dependency


async def check_form(request: Request, guest: GuestDep) -> None:
    """Pass safe methods and forms of our own pages. Errors: ForeignForm (403), FormUnreadable (422)."""
    if request.method in SAFE_METHODS:
        return
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise ForeignForm("this form was sent from another site")
    given = request.headers.get(CSRF_HEADER) or (await read_form(request)).get(CSRF_FIELD)
    if not isinstance(given, str) or not hmac.compare_digest(_as_bytes(given), guest.csrf_token.encode()):
        raise ForeignForm("this form carries no valid token")


async def read_form(request: Request) -> FormData:
    """The form that was sent. Errors: FormUnreadable (422) for bytes that are not in the charset it names."""
    try:
        return await request.form()
    except (LookupError, ValueError):  # an unknown charset, or bytes that it cannot decode
        raise FormUnreadable("the form's text cannot be read in the charset it declares") from None


def _as_bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")  # some charsets spell halves of characters


def derive_csrf(secret: str) -> str:
    """The form token for the holder of a cookie; it does not reveal the cookie."""
    digest = hmac.digest(secret.encode(), b"preceptor form", hashlib.sha256)
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def page(guest: Guest, template: str, /, *, status_code: int = 200, **context: object) -> HTMLResponse:
    """A page or a piece of one: the template filled in for this visitor, never kept by caches."""
    html = rendering.render(template, visitor=guest, **context)
    response = HTMLResponse(html, status_code, {"Cache-Control": "no-store"})
    if guest.new_visit is not None:
        set_cookie(response, guest, VISIT_COOKIE, guest.new_visit)
    if guest.notice is not None and not guest.is_fragment:
        response.delete_cookie(NOTICE_COOKIE)
    return response


def go_to(guest: Guest, path: str, *, notice: str | None = None) -> Response:
    """Redirect to one of our pages after a form; `notice` is shown there, once."""
    headers = {"Cache-Control": "no-store"}
    if guest.is_fragment:
        response = Response(status_code=200, headers={**headers, "HX-Redirect": path})
    else:
        response = Response(status_code=303, headers={**headers, "Location": path})
    if notice is not None:
        set_cookie(response, guest, NOTICE_COOKIE, quote(notice[:MAX_NOTICE_CHARS]), max_age=60)
    return response


def set_cookie(response: Response, guest: Guest, name: str, value: str, *, max_age: int | None = None) -> None:
    """Set a cookie that scripts cannot read and other sites cannot send along with a form."""
    response.set_cookie(name, value, max_age=max_age, httponly=True, samesite="lax", secure=guest.is_secure, path="/")


def local_path(path: str) -> str:
    """The path if it is one of ours, else the front page: a link to us must not redirect to another site."""
    is_ours = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() and "\\" not in path
    return path if is_ours else "/"


def _read_theme(request: Request) -> Theme:
    given = request.cookies.get(THEME_COOKIE, "")
    return Theme(given) if given in set(Theme) else Theme.SYSTEM


def _read_notice(request: Request) -> str | None:
    given = request.cookies.get(NOTICE_COOKIE)
    return unquote(given)[:MAX_NOTICE_CHARS] if given else None
