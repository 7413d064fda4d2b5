"""Acts on login sessions and passwords: logging in by password, key or one-time link, setting a password, logging out.

Logging in has no caller before it: those functions take the store and the browser instead of a call. Passwords are
hashed and checked between transactions, because that is slow on purpose.
"""

from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy.orm import Session

from services.acts import grants
from services.acts.call import PersonCall
from services.acts.callers import NotAllowed
from services.contracts.audit import Via
from services.contracts.persons import LinkPurpose, PasswordSet, Role, SessionsEnded
from services.runtime.errors import PreceptorError
from services.store.core import audit
from services.store.core.audit import Actor
from services.store.core.transaction import Store
from services.store.people import keys, logins, passwords, persons
from services.store.tables.people import LoginLinkRow, PersonRow


class WrongPassword(PreceptorError):
    """The current password that was sent is not right."""

    status_code = 403
    title = "Wrong password"
    hint = "Ask an owner for a link to set a new one if you have forgotten it."


@dataclass(frozen=True)
class Browser:
    """Where somebody logs in from; `session_id` is the session it has now, which ends when another one starts."""

    address: str | None
    agent: str | None
    session_id: UUID | None


@dataclass(frozen=True)
class Opened:
    """A session that was started: its token for the cookie, and who acts by it."""

    token: str = field(repr=False)
    actor: Actor


def open_by_key(store: Store, browser: Browser, key: str) -> Opened | None:
    """Start a session by an API key, no wider than the key; None where the key is not a live one."""
    with store.transaction() as session:
        found = keys.authenticate(session, key)
        return None if found is None else _open(session, browser, found[0].id, found[1].id, "key")


def open_by_password(store: Store, browser: Browser, name: str, password: str) -> Opened | None:
    """Start a session by name and password; None where they do not belong together.

    Errors: TooManyTries (429), PasswordsBusy (503).
    """
    address = browser.address or ""
    with store.transaction() as session:
        found = passwords.begin_try(session, name, address)
    person_id, kept = (None, None) if found is None else (found[0].id, found[1])
    if not passwords.is_right(kept, password) or person_id is None:
        return None
    with store.transaction() as session:
        if kept is None or not passwords.is_still(session, person_id, kept):
            return None
        passwords.forget_tries(session, name, address)
        return _open(session, browser, person_id, None, "password")


def use_link(store: Store, browser: Browser, token: str, new_password: str) -> Opened:
    """Use a one-time link: start a session, after setting the password if the link is for that.

    Setting a password ends every other session of the person. Errors: LinkNotFound (404), PasswordTooWeak (422),
    PasswordsBusy (503).
    """
    with store.reading() as session:
        link, person = logins.find_link(session, token)
    kept = passwords.hash_password(person.name, new_password) if _sets_password(link) else None
    with store.transaction() as session:
        link, person = logins.take_link(session, token)
        if kept is not None:
            _put_password(session, person, kept)
        opened = _open(session, browser, person.id, link.key_id, "link")
        if kept is not None:
            audit.record(session, opened.actor, "persons.set-password", "person", person.id)
    return opened


def set_password(call: PersonCall, wanted: PasswordSet, browser: Browser | None = None) -> Opened | None:
    """Set or change the caller's password and end all their sessions; a browser gets a new one.

    Errors: NotAllowed (403) for services and for keys with fewer rights than the role, WrongPassword (403),
    PasswordTooWeak (422), TooManyTries (429), PasswordsBusy (503).
    """
    caller, address = call.caller, call.actor.address or ""
    if caller.role is Role.SERVICE:
        raise NotAllowed("services use keys; only people have passwords", hint="Log in as a person.")
    grants.check_covers(caller, None, None)  # a password gives all of the role, for good
    with call.store.transaction() as session:
        current = passwords.find(session, caller.id)
        if current is not None:
            passwords.begin_try(session, caller.name, address)
    if current is not None and not passwords.is_right(current.hash, wanted.current):
        raise WrongPassword("the current password is not correct")
    kept = passwords.hash_password(caller.name, wanted.new)
    with call.begin() as act:
        passwords.put(act.session, caller.id, kept)
        passwords.forget_tries(act.session, caller.name, address)
        logins.end_all(act.session, caller.id)
        act.record("persons.set-password", "person", caller.id)
        opened = None if browser is None else _open(act.session, browser, caller.id, caller.key_id, "password")
        act.keep(None)
    return opened


def end(call: PersonCall, session_id: UUID) -> SessionsEnded:
    """End one of the caller's sessions; with a key narrower than the role only the session it opened.

    Errors: NotAllowed (403), SessionNotFound (404).
    """
    if session_id != call.actor.credential_id:
        grants.check_whole(call.caller, call.caller.id, call.caller.key_expires_at)
    with call.begin() as act:
        logins.end_mine(act.session, call.caller.id, session_id)
        act.record("sessions.end", "session", session_id)
        return act.keep(SessionsEnded(num_ended=1))


def end_all(call: PersonCall, person_id: UUID, *, but: UUID | None = None) -> SessionsEnded:
    """End every session of a person, or every one but one. Anyone may end their own, owners anyone's.

    Errors: NotAllowed (403), PersonNotFound (404).
    """
    grants.check_whole(call.caller, person_id, call.caller.key_expires_at)
    with call.begin() as act:
        persons.get(act.session, person_id)
        ended = act.keep(SessionsEnded(num_ended=logins.end_all(act.session, person_id, but=but)))
        act.record("sessions.end-all", "person", person_id, {"num_ended": ended.num_ended})
    return ended


def _sets_password(link: LoginLinkRow) -> bool:
    return link.purpose == LinkPurpose.SET_PASSWORD.value


def _put_password(session: Session, person: PersonRow, kept: str) -> None:
    passwords.put(session, person.id, kept)
    passwords.forget_tries(session, person.name)
    logins.end_all(session, person.id)


def _open(session: Session, browser: Browser, person_id: UUID, key_id: UUID | None, by: str) -> Opened:
    """Start a session for this browser; the one it had ends."""
    if browser.session_id is not None:
        logins.end(session, browser.session_id)
    session_id, token = logins.start(session, person_id, key_id, browser.address, browser.agent)
    actor = Actor(Via.SESSION, person_id, session_id, browser.address)
    audit.record(session, actor, "sessions.start", "session", session_id, {"by": by})
    return Opened(token, actor)
