"""Persons and their API keys. A key is 256 random bits, shown once and kept as its SHA-256."""

import hashlib
import secrets
from uuid import UUID

from sqlalchemy import func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from services.contracts.ids import new_id
from services.contracts.persons import Role
from services.errors import Conflict, NotFound
from services.store.models import ApiKeyRow, PersonRow

KEY_PREFIX = "pk_"
OWNER_NAME = "owner"


class PersonNotFound(NotFound):
    """No person with this id."""


class NameTaken(Conflict):
    """A person of this name exists."""

    hint = "Choose another name, or rotate the key of the one that exists."


class LastOwner(Conflict):
    """Without this key nobody could administer the installation any more."""

    hint = "Make another owner first, or rotate the key instead of revoking it."


def hash_key(key: str) -> str:
    """What is stored of a key. A plain digest is enough: the key is 256 random bits, so nothing can be guessed."""
    return hashlib.sha256(key.encode()).hexdigest()


def get(session: Session, person_id: UUID) -> PersonRow:
    """The person. Errors: PersonNotFound."""
    row = session.get(PersonRow, person_id)
    if row is None:
        raise PersonNotFound(f"no person {person_id}")
    return row


def create(session: Session, name: str, role: Role) -> tuple[PersonRow, str]:
    """A new person and their key. Errors: NameTaken."""
    row = _insert(session, name, role)
    if row is None:
        raise NameTaken(f"a person named {name!r} exists")
    return row, _issue_key(session, row)


def ensure_owner(session: Session) -> str | None:
    """The key of a first owner, to be shown this once; None when an owner already holds one."""
    row = find_owner(session)
    session.refresh(row, with_for_update=True)  # two first starts at once take turns
    return None if _num_keys(session, Role.OWNER) else _issue_key(session, row)


def find_owner(session: Session) -> PersonRow:
    """The first owner, made without a key when there is none: who acts where no key is asked for."""
    owners = select(PersonRow).where(PersonRow.role == Role.OWNER.value).order_by(PersonRow.id).limit(1)
    return session.scalar(owners) or _insert(session, OWNER_NAME, Role.OWNER) or session.scalars(owners).one()


def authenticate(session: Session, key: str) -> tuple[PersonRow, ApiKeyRow] | None:
    """The person who holds this key, and the key, unless it was revoked or is too old."""
    found = session.execute(
        select(PersonRow, ApiKeyRow)
        .join(ApiKeyRow, ApiKeyRow.person_id == PersonRow.id)
        .where(
            ApiKeyRow.key_sha256 == hash_key(key),
            ApiKeyRow.revoked_at.is_(None),
            or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > func.now()),
        )
    ).one_or_none()
    return None if found is None else (found[0], found[1])


def rotate_key(session: Session, person_id: UUID) -> tuple[PersonRow, str]:
    """The person with a new key; the old ones stop working. Errors: PersonNotFound."""
    row = get(session, person_id)
    _revoke(session, row)
    return row, _issue_key(session, row)


def revoke_keys(session: Session, person_id: UUID) -> PersonRow:
    """The person, left without a working key. Errors: PersonNotFound, LastOwner."""
    row = get(session, person_id)
    # Owners are locked so that two revocations at once cannot each leave the other's owner as the last.
    session.execute(
        select(PersonRow.id).where(PersonRow.role == Role.OWNER.value).order_by(PersonRow.id).with_for_update()
    )
    _revoke(session, row)
    if row.role == Role.OWNER.value and not _num_keys(session, Role.OWNER):
        raise LastOwner(f"{row.name!r} holds the last owner's key")
    return row


def _insert(session: Session, name: str, role: Role) -> PersonRow | None:
    return session.scalar(
        insert(PersonRow)
        .values(id=new_id(), name=name, role=role.value)
        .on_conflict_do_nothing(index_elements=["name"])
        .returning(PersonRow)
    )


def _issue_key(session: Session, person: PersonRow) -> str:
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    session.add(ApiKeyRow(person_id=person.id, key_sha256=hash_key(key)))
    session.flush()
    return key


def _revoke(session: Session, person: PersonRow) -> None:
    session.execute(
        update(ApiKeyRow)
        .where(ApiKeyRow.person_id == person.id, ApiKeyRow.revoked_at.is_(None))
        .values(revoked_at=func.now())
    )


def _num_keys(session: Session, role: Role) -> int:
    keys = select(func.count()).select_from(ApiKeyRow).join(PersonRow, PersonRow.id == ApiKeyRow.person_id)
    return session.scalar(keys.where(PersonRow.role == role.value, ApiKeyRow.revoked_at.is_(None))) or 0
