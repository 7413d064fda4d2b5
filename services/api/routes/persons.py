"""Persons and services: who corrects, registers, operates, and the keys they hold."""

from uuid import UUID

from sqlalchemy.orm import Session

from services.acts import grants
from services.api import people
from services.api.auth import CallerDep, needs
from services.api.deps import PagingDep, StoreDep
from services.api.once import OnceDep
from services.api.routes.common import build_router, problems
from services.contracts.base import Page
from services.contracts.persons import (
    Erasure,
    LoginLink,
    PasswordLinkCreate,
    Person,
    PersonCreate,
    PersonCreated,
    Right,
    RoleChange,
)
from services.store.people import erasing, persons
from services.store.tables.people import PersonRow
from services.store.views import browse

router = build_router("persons")

KEEP_PASSWORD = PasswordLinkCreate()


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
    with store.reading() as session:
        return browse.list_persons(session, cursor=paging.cursor, limit=paging.limit)


@router.get("/persons/me")
def get_me(caller: CallerDep, store: StoreDep) -> Person:
    """The person or service this key belongs to."""
    with store.reading() as session:
        return Person.model_validate(persons.get(session, caller.id))


@router.post("/persons/{person_id}/rotate-key", responses=problems(404, 409))
def rotate_key(person_id: UUID, caller: CallerDep, store: StoreDep, once: OnceDep) -> PersonCreated:
    """Give a person one new API key, shown this once; all their old keys stop working. Anyone may rotate their own.

    One key of several, with a grace for the old one, is rotated by POST /v1/keys/{id}/rotate.

    Errors: NotAllowed (403), PersonNotFound (404), PersonErased (409).
    """
    grants.check_person(caller, person_id)
    if not caller.may(Right.ADMINISTER):
        grants.check_covers(caller, None, None)
    with store.transaction() as session:
        return once(session, lambda: _show(*persons.rotate_key(session, person_id)), stored_as=_hide)


@router.post("/persons/{person_id}/revoke-key", dependencies=[needs(Right.ADMINISTER)], responses=problems(404, 409))
def revoke_key(person_id: UUID, store: StoreDep, once: OnceDep) -> Person:
    """Leave a person without any working key. Errors: PersonNotFound (404), LastOwner (409)."""
    with store.transaction() as session:
        return once(session, lambda: _revoke(session, person_id))


@router.post(
    "/persons/{person_id}/role",
    name="persons.role",
    dependencies=[needs(Right.ADMINISTER)],
    responses=problems(404, 409, 413, 415, 422),
)
def change_role(person_id: UUID, body: RoleChange, store: StoreDep, once: OnceDep) -> Person:
    """Give a person another role, from their next call on; keys and sessions go on, within its rights.

    Errors: PersonNotFound (404), PersonErased, ServiceStays, LastOwner (409).
    """
    with store.transaction() as session:
        return once(session, lambda: Person.model_validate(persons.change_role(session, person_id, body.role)))


@router.post(
    "/persons/{person_id}/password-link",
    name="persons.password-link",
    status_code=201,
    dependencies=[needs(Right.ADMINISTER)],
    responses=problems(404, 409, 413, 415, 422),
)
def link_password(
    person_id: UUID, store: StoreDep, once: OnceDep, body: PasswordLinkCreate = KEEP_PASSWORD
) -> LoginLink:
    """Make a link that lets a person set their password, once, within three days. The answer shows it, this once.

    `reset` makes their password of now useless and ends their sessions, without waiting for the link to be used.

    Errors: PersonNotFound (404), PersonErased (409), NoPasswordForServices (422).
    """
    with store.transaction() as session:
        return once(session, lambda: people.link_password(session, person_id, body), stored_as=_hide_link)


@router.post("/persons/me/login-link", name="persons.login-link", status_code=201, responses=problems(404, 409))
def link_login(caller: CallerDep, store: StoreDep, once: OnceDep) -> LoginLink:
    """Make a link that logs the holder of this key in, in a browser, once, within 15 minutes.

    The session it opens may no more than this key, and ends with it. Errors: PersonErased (409).
    """
    with store.transaction() as session:
        return once(session, lambda: people.link_login(session, caller), stored_as=_hide_link)


@router.get("/persons/{person_id}/erasure", dependencies=[needs(Right.ADMINISTER)], responses=problems(404, 422))
def preview_erasure(person_id: UUID, store: StoreDep) -> Erasure:
    """What erasing a person's text would take out, or took out, and which updates it shaped.

    Errors: PersonNotFound (404).
    """
    with store.reading() as session:
        return erasing.preview(session, person_id)


@router.post(
    "/persons/{person_id}/erase",
    name="persons.erase",
    dependencies=[needs(Right.ADMINISTER)],
    responses=problems(404, 409, 422),
)
def erase_person(person_id: UUID, store: StoreDep, once: OnceDep) -> Erasure:
    """Take out what a person wrote, their name, keys, sessions and password; for good.

    Hashes, lengths and numbers stay. Lessons not yet used never train on it; what was trained is said, not undone.

    Errors: PersonNotFound (404), LastOwner (409).
    """
    with store.transaction() as session:
        return once(session, lambda: erasing.erase(session, person_id))


def _revoke(session: Session, person_id: UUID) -> Person:
    return Person.model_validate(persons.revoke_keys(session, person_id))


def _show(row: PersonRow, key: str) -> PersonCreated:
    return PersonCreated(**Person.model_validate(row).model_dump(), api_key=key)


def _hide_link(shown: LoginLink) -> LoginLink:
    return shown.model_copy(update={"path": ""})


def _hide(shown: PersonCreated) -> PersonCreated:
    return shown.model_copy(update={"api_key": ""})
