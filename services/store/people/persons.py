"""Persons and services. Their keys are in `keys`, passwords and sessions in `passwords` and `logins`."""

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from services.contracts.ids import new_id
from services.contracts.persons import Right, Role
from services.runtime.errors import Conflict, NotFound
from services.store.core import audit
from services.store.people import keys
from services.store.tables.people import PersonRow

OWNER_NAME = "owner"
FIRST_KEY = "first key"
KEY_AGAIN = "key of this installation"


class PersonNotFound(NotFound):
    """No person with this id."""


class NameTaken(Conflict):
    """A person of this name exists."""

    hint = "Choose another name, or rotate the key of the one that exists."


class PersonErased(Conflict):
    """The person's text was erased; they hold no keys and get none."""


class ServiceStays(Conflict):
    """A program does not become a person, nor a person a program: only one of them has a password and logs in."""

    hint = "Add another one with the role you want, and revoke the keys of this one."


def get(session: Session, person_id: UUID) -> PersonRow:
    """The person. Errors: PersonNotFound."""
    row = session.get(PersonRow, person_id)
    if row is None:
        raise PersonNotFound(f"no person {person_id}")
    return row


def get_present(session: Session, person_id: UUID) -> PersonRow:
    """The person, who may be given keys and passwords. Errors: PersonNotFound (404), PersonErased (409)."""
    row = get(session, person_id)
    if row.erased_at is not None:
        raise PersonErased(f"{row.name} was erased")
    return row


def find(session: Session, name: str) -> PersonRow | None:
    """The person of this name."""
    return session.scalar(select(PersonRow).where(PersonRow.name == name))


def create(session: Session, name: str, role: Role) -> tuple[PersonRow, str]:
    """A new person and their key. Errors: NameTaken."""
    row = _insert(session, name, role)
    if row is None:
        raise NameTaken(f"a person named {name!r} exists")
    return row, keys.issue(session, row.id, FIRST_KEY)[1]


def ensure_owner(session: Session, *, is_lost: bool = False) -> str | None:
    """The key of a first owner, to be shown this once; None when an owner already holds one.

    is_lost: the owner's key is lost, as after a restore without secrets: they get one more.
    """
    row = find_owner(session)
    session.refresh(row, with_for_update=True)  # two first starts at once take turns
    holds_one = keys.has_owner_key(session)
    if holds_one and not is_lost:
        return None
    made, secret = keys.issue(session, row.id, KEY_AGAIN if holds_one else FIRST_KEY)
    audit.record(session, audit.SYSTEM, "keys.add", "key", made.id, {"person_id": str(row.id)})
    return secret


def find_owner(session: Session) -> PersonRow:
    """The first owner, made without a key when there is none: who acts where no key is asked for."""
    owners = (
        select(PersonRow)
        .where(PersonRow.role == Role.OWNER.value, PersonRow.erased_at.is_(None))
        .order_by(PersonRow.id)
        .limit(1)
    )
    return session.scalar(owners) or _insert(session, OWNER_NAME, Role.OWNER) or session.scalars(owners).one()


def rotate_key(session: Session, person_id: UUID, scopes: frozenset[Right] | None = None) -> tuple[PersonRow, str]:
    """The person with one new key; all the old ones stop working. Errors: PersonNotFound (404), PersonErased (409)."""
    row = get_present(session, person_id)
    keys.revoke_all(session, person_id)
    return row, keys.issue(session, row.id, FIRST_KEY, scopes=scopes)[1]


def revoke_keys(session: Session, person_id: UUID) -> PersonRow:
    """The person, left without a working key. Errors: PersonNotFound (404), LastOwner (409)."""
    row = get(session, person_id)
    keys.lock_owners(session)
    keys.revoke_all(session, person_id)
    keys.check_owned(session, row)
    return row


def change_role(session: Session, person_id: UUID, role: Role) -> PersonRow:
    """The person in another role, from their next call on; keys, password and sessions go on, within its rights.

    Errors: PersonNotFound (404), PersonErased, ServiceStays, LastOwner (409).
    """
    row = get_present(session, person_id)
    keys.lock_owners(session)
    session.refresh(row, with_for_update=True)
    if (row.role == Role.SERVICE.value) is not (role is Role.SERVICE):
        raise ServiceStays(f"{row.name!r} is a {row.role}, which does not become a {role.value}")
    was_owner, row.role = row.role == Role.OWNER.value, role.value
    session.flush()
    if was_owner and not keys.has_owner_key(session):
        raise keys.LastOwner(f"{row.name!r} holds the last owner's key")
    return row


def _insert(session: Session, name: str, role: Role) -> PersonRow | None:
    return session.scalar(
        insert(PersonRow)
        .values(id=new_id(), name=name, role=role.value)
        .on_conflict_do_nothing(index_elements=["name"])
        .returning(PersonRow)
    )
