"""Login sessions: a browser's random token, kept as its hash, until it idles, ages, is ended or its key dies."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.orm import Session

from services.contracts.ids import new_id
from services.store.models import ApiKeyRow, LoginSessionRow, PersonRow

IDLE: Final = timedelta(hours=12)
"""A session nobody used for this long is over; a page that refreshes itself is no use."""
ABSOLUTE: Final = timedelta(days=14)
"""However much it is used, a session ends then."""
SEEN_EVERY: Final = timedelta(minutes=1)
"""How often the last use is written down; more often would be a write for every page."""
MAX_AGENT_CHARS: Final = 300


@dataclass(frozen=True)
class Login:
    """A live session, its person, and the key it was opened with."""

    session: LoginSessionRow
    person: PersonRow
    key: ApiKeyRow | None


def hash_token(token: str) -> str:
    """What is stored of a token. A plain digest is enough: the token is 256 random bits."""
    return hashlib.sha256(token.encode()).hexdigest()


def start(session: Session, person_id: UUID, key_id: UUID | None, address: str | None, agent: str | None) -> str:
    """A new session's token; it goes into the cookie and nowhere else."""
    token = secrets.token_urlsafe(32)
    session.add(
        LoginSessionRow(
            id=new_id(),
            person_id=person_id,
            key_id=key_id,
            token_sha256=hash_token(token),
            address=address,
            agent=agent and agent[:MAX_AGENT_CHARS],
            expires_at=func.now() + ABSOLUTE,
        )
    )
    session.flush()
    return token


def find(session: Session, token: str, *, is_use: bool) -> Login | None:
    """The live session of this token; None when there is none or it is over. `is_use` puts off its idle end."""
    found = session.execute(
        select(LoginSessionRow, PersonRow, ApiKeyRow)
        .join(PersonRow, PersonRow.id == LoginSessionRow.person_id)
        .outerjoin(ApiKeyRow, ApiKeyRow.id == LoginSessionRow.key_id)
        .where(LoginSessionRow.token_sha256 == hash_token(token), _is_live())
    ).one_or_none()
    if found is None:
        return None
    row, person, key = found
    if is_use:
        session.execute(
            update(LoginSessionRow)
            .where(LoginSessionRow.id == row.id, LoginSessionRow.seen_at < func.now() - SEEN_EVERY)
            .values(seen_at=func.now())
            .execution_options(synchronize_session=False)
        )
    return Login(row, person, key)


def end(session: Session, session_id: UUID) -> None:
    """End one session."""
    session.execute(
        update(LoginSessionRow)
        .where(LoginSessionRow.id == session_id, LoginSessionRow.ended_at.is_(None))
        .values(ended_at=func.now())
    )


def _is_live() -> ColumnElement[bool]:
    """A condition on sessions joined with their keys, where they have one."""
    return (
        LoginSessionRow.ended_at.is_(None)
        & (LoginSessionRow.expires_at > func.now())
        & (LoginSessionRow.seen_at > func.now() - IDLE)
        & ApiKeyRow.revoked_at.is_(None)
        & or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > func.now())
    )
