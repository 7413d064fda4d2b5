"""Persons and services: who corrects, registers, operates, and the keys they hold."""

from uuid import UUID

from sqlalchemy.orm import Session

from services.api.auth import CallerDep, Right, needs
from services.api.deps import PagingDep, StoreDep
from services.api.once import OnceDep
from services.api.routes.common import build_router, problems
from services.contracts.base import Page
from services.contracts.persons import Person, PersonCreate, PersonCreated
from services.store import browse, persons
from services.store.models import PersonRow

router = build_router("persons")


@router.post(
    "/persons", status_code=201, dependencies=[needs(Right.ADMINISTER)], responses=problems(409, 413, 415, 422)
)
def add_person(body: PersonCreate, store: StoreDep, once: OnceDep) -> PersonCreated:
    """Add a person or service; the answer shows its API key, this once.

    Only the key's hash is kept, so a repeated request (same idempotency key) gets this answer with an empty `api_key`.

    Errors: NameTaken (409).
    """
    with store.transaction() as session:
        return once(session, lambda: _show(*persons.create(session, body.name, body.role)), stored_as=_hide)


@router.get("/persons", dependencies=[needs(Right.ADMINISTER)], responses=problems(422))
def list_persons(store: StoreDep, paging: PagingDep) -> Page[Person]:
    """Persons and services, newest first. Errors: BadCursor (422)."""
    with store.transaction() as session:
        return browse.list_persons(session, cursor=paging.cursor, limit=paging.limit)


@router.get("/persons/me")
def get_me(caller: CallerDep, store: StoreDep) -> Person:
    """The person or service this key belongs to."""
    with store.transaction() as session:
        return Person.model_validate(persons.get(session, caller.id))


@router.post("/persons/{person_id}/rotate-key", responses=problems(404, 409))
def rotate_key(person_id: UUID, caller: CallerDep, store: StoreDep, once: OnceDep) -> PersonCreated:
    """Give a person a new API key, shown this once; their old keys stop working. Anyone may rotate their own.

    Errors: PersonNotFound (404).
    """
    if person_id != caller.id:
        caller.must(Right.ADMINISTER)
    with store.transaction() as session:
        return once(session, lambda: _show(*persons.rotate_key(session, person_id)), stored_as=_hide)


@router.post("/persons/{person_id}/revoke-key", dependencies=[needs(Right.ADMINISTER)], responses=problems(404, 409))
def revoke_key(person_id: UUID, store: StoreDep, once: OnceDep) -> Person:
    """Leave a person without a working key. Errors: PersonNotFound (404), LastOwner (409)."""
    with store.transaction() as session:
        return once(session, lambda: _revoke(session, person_id))


def _revoke(session: Session, person_id: UUID) -> Person:
    return Person.model_validate(persons.revoke_keys(session, person_id))


def _show(row: PersonRow, key: str) -> PersonCreated:
    return PersonCreated(**Person.model_validate(row).model_dump(), api_key=key)


def _hide(shown: PersonCreated) -> PersonCreated:
    return shown.model_copy(update={"api_key": ""})
