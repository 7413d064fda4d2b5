"""API keys: 256 random bits each, shown once and kept as their SHA-256. A person may hold several.

A key is live until it is revoked or its end has come. Who may make which key is the caller's to decide
(`services.api.grants`); here it is only kept.
"""

import hashlib
import secrets
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.orm import Session

from services.contracts.base import Page
from services.contracts.ids import new_id
from services.contracts.persons import Key, Right, Role
from services.runtime.errors import Conflict, NotFound
from services.store.core.pages import newest_first
from services.store.tables.people import ApiKeyRow, PersonRow

KEY_PREFIX: Final = "pk_"
NUM_SHOWN: Final = len(KEY_PREFIX) + 6
"""Characters of a key that are kept to know it by; 37 random ones stay unknown."""
USED_EVERY: Final = timedelta(minutes=1)
"""How often a key's last use is written down; more often would be a write for every call."""


class KeyNotFound(NotFound):
    """No API key with this id."""


class KeyOver(Conflict):
    """The key was revoked or has expired, so it cannot be rotated."""

    hint = "Make a new key instead."


class LastOwner(Conflict):
    """Without this key the installation would have no administrator."""

    hint = "Make another owner first, or rotate the key instead of revoking it."


def hash_key(key: str) -> str:
    """A key as it is stored. A plain digest is enough: 256 random bits cannot be guessed."""
    return hashlib.sha256(key.encode()).hexdigest()


def get(session: Session, key_id: UUID) -> ApiKeyRow:
    """The key. Errors: KeyNotFound."""
    row = session.get(ApiKeyRow, key_id)
    if row is None:
        raise KeyNotFound(f"no API key {key_id}")
    return row


def view(row: ApiKeyRow) -> Key:
    """The contract of a row."""
    return Key.model_validate(row)


def list_of(session: Session, person_id: UUID, *, cursor: str | None, limit: int) -> Page[Key]:
    """A person's keys, including expired and revoked ones. Errors: BadCursor."""
    query = select(ApiKeyRow).where(ApiKeyRow.person_id == person_id)
    rows, following = newest_first(session, query, ApiKeyRow.id, cursor, limit)
    return Page[Key](items=[view(row) for row in rows], next_cursor=following)


def authenticate(session: Session, key: str) -> tuple[PersonRow, ApiKeyRow] | None:
    """The person who holds this live key, and the key; None for any other text."""
    found = session.execute(
        select(PersonRow, ApiKeyRow)
        .join(ApiKeyRow, ApiKeyRow.person_id == PersonRow.id)
        .where(ApiKeyRow.key_sha256 == hash_key(key), is_live())
    ).one_or_none()
    if found is None:
        return None
    person, row = found
    if row.last_used_at is None or row.last_used_at < datetime.now(UTC) - USED_EVERY:
        used = update(ApiKeyRow).where(ApiKeyRow.id == row.id).values(last_used_at=func.now())
        session.execute(used.execution_options(synchronize_session=False))
    return person, row


def issue(
    session: Session,
    person_id: UUID,
    name: str,
    *,
    scopes: Collection[Right] | None = None,
    expires_at: datetime | None = None,
) -> tuple[ApiKeyRow, str]:
    """A new key and its secret, which is kept nowhere."""
    secret = KEY_PREFIX + secrets.token_urlsafe(32)
    row = ApiKeyRow(
        id=new_id(),
        person_id=person_id,
        name=name,
        prefix=secret[:NUM_SHOWN],
        key_sha256=hash_key(secret),
        scopes=None if scopes is None else sorted(set(scopes)),
        expires_at=expires_at,
    )
    session.add(row)
    session.flush()
    session.refresh(row)
    return row, secret


def rotate(session: Session, key_id: UUID, grace: timedelta) -> tuple[ApiKeyRow, str]:
    """A new key of the same name, scopes and end, and its secret; the old one ends after the grace.

    Errors: KeyNotFound (404), KeyOver (409).
    """
    old = get(session, key_id)
    session.refresh(old, with_for_update=True)
    if session.scalar(select(ApiKeyRow.id).where(ApiKeyRow.id == old.id, is_live())) is None:
        raise KeyOver(f"the key {old.name!r} has expired or been revoked")
    made = issue(
        session,
        old.person_id,
        old.name,
        scopes=None if old.scopes is None else [Right(scope) for scope in old.scopes],
        expires_at=old.expires_at,
    )
    if grace:
        session.execute(
            update(ApiKeyRow)
            .where(ApiKeyRow.id == old.id)
            .values(expires_at=func.least(ApiKeyRow.expires_at, func.now() + grace))
        )
    else:
        old.revoked_at = func.now()
    session.flush()
    session.refresh(old)
    return made


def revoke(session: Session, key_id: UUID) -> ApiKeyRow:
    """The key, which works no more. Errors: KeyNotFound (404), LastOwner (409)."""
    row = get(session, key_id)
    person = session.get_one(PersonRow, row.person_id)
    lock_owners(session)
    _end(session, ApiKeyRow.id == key_id)
    check_owned(session, person)
    session.refresh(row)
    return row


def revoke_all(session: Session, person_id: UUID) -> None:
    """Leave a person without a live key, even if the installation then has no administrator."""
    _end(session, ApiKeyRow.person_id == person_id)


def lock_owners(session: Session) -> None:
    """Take turns with whoever else ends an owner's key: two at once could each leave the other's as the last."""
    session.execute(
        select(PersonRow.id).where(PersonRow.role == Role.OWNER.value).order_by(PersonRow.id).with_for_update()
    )


def check_owned(session: Session, person: PersonRow) -> None:
    """Pass unless this person's key was the last that administers. Errors: LastOwner (409)."""
    if person.role == Role.OWNER.value and not has_owner_key(session):
        raise LastOwner(f"{person.name!r} holds the last owner's key")


def has_owner_key(session: Session) -> bool:
    """Whether any owner holds a live key that administers and has no end."""
    administers = or_(ApiKeyRow.scopes.is_(None), ApiKeyRow.scopes.any_() == Right.ADMINISTER.value)
    return (
        session.scalar(
            select(ApiKeyRow.id)
            .join(PersonRow, PersonRow.id == ApiKeyRow.person_id)
            .where(PersonRow.role == Role.OWNER.value, is_live(), ApiKeyRow.expires_at.is_(None), administers)
            .limit(1)
        )
        is not None
    )


def is_live() -> ColumnElement[bool]:
    """A condition on keys: not revoked, not at their end."""
    return ApiKeyRow.revoked_at.is_(None) & or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > func.now())


def _end(session: Session, which: ColumnElement[bool]) -> None:
    session.execute(update(ApiKeyRow).where(which, ApiKeyRow.revoked_at.is_(None)).values(revoked_at=func.now()))
