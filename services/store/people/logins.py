"""Login sessions and one-time links, each known by a random token that is kept as its hash.

A session lasts until it idles, ages, is ended, or the key it was opened with is over. A link works once.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, Select, delete, func, or_, select, update
from sqlalchemy.orm import Session

from services.contracts.base import Page
from services.contracts.ids import new_id
from services.contracts.persons import LinkPurpose, LoginSession
from services.runtime.errors import NotFound
from services.store.core.pages import newest_first
from services.store.people import keys
from services.store.tables.people import ApiKeyRow, LoginLinkRow, LoginSessionRow, PersonRow

IDLE: Final = timedelta(hours=12)
"""A session unused for this long is over; a page that refreshes itself does not count as use."""
ABSOLUTE: Final = timedelta(days=14)
"""However much it is used, a session ends then."""
SEEN_EVERY: Final = timedelta(minutes=1)
"""How often the last use is written down; more often would be a write for every page."""
MAX_AGENT_CHARS: Final = 300
LINK_LASTS: Final = {LinkPurpose.LOGIN: timedelta(minutes=15), LinkPurpose.SET_PASSWORD: timedelta(days=3)}
KEPT: Final = timedelta(days=60)
"""How long a session's row outlives it: an address is known for a while, and the audit trail names sessions."""


class SessionNotFound(NotFound):
    """No live session of this person with this id."""


class LinkNotFound(NotFound):
    """The link is invalid, expired or already used."""

    title = "This link does not work any more"
    hint = "A link works once and for a limited time. Ask for a new one, or log in with your key or password."


@dataclass(frozen=True)
class Login:
    """A live session, its person, and the key it was opened with."""

    session: LoginSessionRow
    person: PersonRow
    key: ApiKeyRow | None


def hash_token(token: str) -> str:
    """A token as it is stored. A plain digest is enough: the token is 256 random bits."""
    return hashlib.sha256(token.encode()).hexdigest()


def start(
    session: Session, person_id: UUID, key_id: UUID | None, address: str | None, agent: str | None
) -> tuple[UUID, str]:
    """A new session's id and its token, which goes into the cookie and nowhere else."""
    token = secrets.token_urlsafe(32)
    row = LoginSessionRow(
        id=new_id(),
        person_id=person_id,
        key_id=key_id,
        token_sha256=hash_token(token),
        address=address,
        agent=agent and agent[:MAX_AGENT_CHARS],
        expires_at=func.now() + ABSOLUTE,
    )
    session.add(row)
    session.flush()
    return row.id, token


def find(session: Session, token: str, *, is_use: bool) -> Login | None:
    """The live session of this token; None when there is none or it is over. `is_use` puts off its idle end."""
    found = session.execute(
        select(LoginSessionRow, PersonRow, ApiKeyRow)
        .join(PersonRow, PersonRow.id == LoginSessionRow.person_id)
        .outerjoin(ApiKeyRow, ApiKeyRow.id == LoginSessionRow.key_id)
        .where(LoginSessionRow.token_sha256 == hash_token(token), _is_live(), PersonRow.erased_at.is_(None))
    ).one_or_none()
    if found is None:
        return None
    row, person, key = found
    if is_use and row.seen_at < datetime.now(UTC) - SEEN_EVERY:
        seen = update(LoginSessionRow).where(LoginSessionRow.id == row.id).values(seen_at=func.now())
        session.execute(seen.execution_options(synchronize_session=False))
    return Login(row, person, key)


def end(session: Session, session_id: UUID) -> None:
    """End one session."""
    _end(session, LoginSessionRow.id == session_id)


def end_mine(session: Session, person_id: UUID, session_id: UUID) -> None:
    """End one of a person's own sessions. Errors: SessionNotFound (404)."""
    if not _end(session, (LoginSessionRow.id == session_id) & (LoginSessionRow.person_id == person_id)):
        raise SessionNotFound("no session of yours with this id is live")


def end_all(session: Session, person_id: UUID, *, but: UUID | None = None) -> int:
    """End every session of a person, or every other one; how many."""
    mine = LoginSessionRow.person_id == person_id
    return _end(session, mine if but is None else mine & (LoginSessionRow.id != but))


def list_live(session: Session, person_id: UUID, *, cursor: str | None, limit: int) -> Page[LoginSession]:
    """A person's live sessions, newest first. Errors: BadCursor (422)."""
    query = (
        select(LoginSessionRow)
        .outerjoin(ApiKeyRow, ApiKeyRow.id == LoginSessionRow.key_id)
        .where(LoginSessionRow.person_id == person_id, _is_live())
    )
    rows, following = newest_first(session, query, LoginSessionRow.id, cursor, limit)
    return Page[LoginSession](items=[LoginSession.model_validate(row) for row in rows], next_cursor=following)


def make_link(
    session: Session, person_id: UUID, purpose: LinkPurpose, key_id: UUID | None = None
) -> tuple[LoginLinkRow, str]:
    """A link and its token. Where a key is named, the session has no wider rights than that key."""
    token = secrets.token_urlsafe(32)
    row = LoginLinkRow(
        id=new_id(),
        person_id=person_id,
        key_id=key_id,
        purpose=purpose.value,
        token_sha256=hash_token(token),
        expires_at=func.now() + LINK_LASTS[purpose],
    )
    session.add(row)
    session.flush()
    session.refresh(row)
    return row, token


def find_link(session: Session, token: str) -> tuple[LoginLinkRow, PersonRow]:
    """The link that still works, and its person. Errors: LinkNotFound (404)."""
    return _read_link(session, _links(token))


def take_link(session: Session, token: str) -> tuple[LoginLinkRow, PersonRow]:
    """Use the link up, and with a password link every other one of its person. Errors: LinkNotFound (404)."""
    link, person = _read_link(session, _links(token).with_for_update(of=LoginLinkRow))
    which = LoginLinkRow.id == link.id
    if link.purpose == LinkPurpose.SET_PASSWORD.value:
        which = (LoginLinkRow.person_id == link.person_id) & LoginLinkRow.used_at.is_(None)
    session.execute(update(LoginLinkRow).where(which).values(used_at=func.now()))
    return link, person


def _links(token: str) -> Select[LoginLinkRow, PersonRow]:
    return (
        select(LoginLinkRow, PersonRow)
        .join(PersonRow, PersonRow.id == LoginLinkRow.person_id)
        .outerjoin(ApiKeyRow, ApiKeyRow.id == LoginLinkRow.key_id)
        .where(
            LoginLinkRow.token_sha256 == hash_token(token),
            LoginLinkRow.used_at.is_(None),
            LoginLinkRow.expires_at > func.now(),
            PersonRow.erased_at.is_(None),
            or_(ApiKeyRow.id.is_(None), keys.is_live()),
        )
    )


def _read_link(session: Session, query: Select[LoginLinkRow, PersonRow]) -> tuple[LoginLinkRow, PersonRow]:
    found = session.execute(query).one_or_none()
    if found is None:
        raise LinkNotFound("this link is invalid, expired or already used")
    return found[0], found[1]


def forget_old(session: Session) -> int:
    """Delete sessions and links that ended long ago; how many sessions."""
    long_ago = func.now() - KEPT
    session.execute(delete(LoginLinkRow).where(LoginLinkRow.expires_at < long_ago))
    gone = session.execute(
        delete(LoginSessionRow).where(LoginSessionRow.expires_at < long_ago).returning(LoginSessionRow.id)
    )
    return len(gone.all())


def _end(session: Session, which: ColumnElement[bool]) -> int:
    ended = session.scalars(
        update(LoginSessionRow)
        .where(which, LoginSessionRow.ended_at.is_(None))
        .values(ended_at=func.now())
        .returning(LoginSessionRow.id)
    )
    return len(ended.all())


def _is_live() -> ColumnElement[bool]:
    """A condition on sessions outer-joined with their keys."""
    return (
        LoginSessionRow.ended_at.is_(None)
        & (LoginSessionRow.expires_at > func.now())
        & (LoginSessionRow.seen_at > func.now() - IDLE)
        & or_(ApiKeyRow.id.is_(None), keys.is_live())
    )
