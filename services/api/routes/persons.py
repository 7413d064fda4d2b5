"""Persons and services: who corrects, registers, operates, and the keys they hold."""

from uuid import UUID

from services.acts import persons as acts
from services.acts import sessions
from services.api.auth import CallerDep, needs
from services.api.calls import CallDep, PlainCallDep
from services.api.deps import PagingDep, StoreDep
from services.api.routes.common import build_router, problems
from services.contracts.base import Page
from services.contracts.persons import (
    Erasure,
    LoginLink,
    PasswordLinkCreate,
    PasswordSet,
    Person,
    PersonCreate,
    PersonCreated,
    Right,
    RoleChange,
    SessionsEnded,
)
from services.store.people import erasing, persons
from services.store.views import browse

router = build_router("persons")

KEEP_PASSWORD = PasswordLinkCreate()


@router.post(
    "/persons", status_code=201, dependencies=[needs(Right.ADMINISTER)], responses=problems(409, 413, 415, 422)
)
def add_person(body: PersonCreate, call: CallDep) -> PersonCreated:
    """Add a person or service; the answer shows its API key, this once.

    Only the key's hash is kept, so a repeated request (same idempotency key) gets this answer with an empty `api_key`.

    Errors: NameTaken (409).
    """
    return acts.add(call, body)


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
def rotate_key(person_id: UUID, call: CallDep) -> PersonCreated:
    """Give a person one new API key, shown this once; all their old keys stop working. Anyone may rotate their own.

    One key of several, with a grace for the old one, is rotated by POST /v1/keys/{id}/rotate.

    Errors: NotAllowed (403), PersonNotFound (404), PersonErased (409).
    """
    return acts.rotate_key(call, person_id)


@router.post("/persons/{person_id}/revoke-key", dependencies=[needs(Right.ADMINISTER)], responses=problems(404, 409))
def revoke_key(person_id: UUID, call: CallDep) -> Person:
    """Leave a person without any working key. Errors: PersonNotFound (404), LastOwner (409)."""
    return acts.revoke_keys(call, person_id)


@router.post(
    "/persons/{person_id}/role",
    name="persons.role",
    dependencies=[needs(Right.ADMINISTER)],
    responses=problems(404, 409, 413, 415, 422),
)
def change_role(person_id: UUID, body: RoleChange, call: CallDep) -> Person:
    """Give a person another role, from their next call on; keys and sessions go on, within its rights.

    Errors: PersonNotFound (404), PersonErased, ServiceStays, LastOwner (409).
    """
    return acts.change_role(call, person_id, body.role)


@router.post(
    "/persons/{person_id}/password-link",
    name="persons.password-link",
    status_code=201,
    dependencies=[needs(Right.ADMINISTER)],
    responses=problems(404, 409, 413, 415, 422),
)
def link_password(person_id: UUID, call: CallDep, body: PasswordLinkCreate = KEEP_PASSWORD) -> LoginLink:
    """Make a link that lets a person set their password, once, within three days. The answer shows it, this once.

    `reset` removes their current password and ends their sessions at once, before the link is used.

    Errors: PersonNotFound (404), PersonErased (409), NoPasswordForServices (422).
    """
    return acts.link_password(call, person_id, body)


@router.post("/persons/me/login-link", name="persons.login-link", status_code=201, responses=problems(404, 409))
def link_login(call: CallDep) -> LoginLink:
    """Make a link that logs the holder of this key in, in a browser, once, within 15 minutes.

    The session it opens may no more than this key, and ends with it. Errors: PersonErased (409).
    """
    return acts.link_login(call)


@router.get("/persons/{person_id}/erasure", dependencies=[needs(Right.ADMINISTER)], responses=problems(404, 422))
def preview_erasure(person_id: UUID, store: StoreDep) -> Erasure:
    """The texts that erasing a person would remove, or removed, and the updates that used them.

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
def erase_person(person_id: UUID, call: CallDep) -> Erasure:
    """Erase a person's text, name, keys, sessions and password permanently.

    Hashes, lengths and numbers stay. Unused lessons never train on it; updates that used it are listed, not undone.

    Errors: PersonNotFound (404), LastOwner (409).
    """
    return acts.erase(call, person_id)


@router.post("/persons/{person_id}/end-sessions", responses=problems(404, 409))
def end_sessions(person_id: UUID, call: CallDep) -> SessionsEnded:
    """End every login session of a person. Anyone may end their own, owners anyone's.

    Errors: NotAllowed (403), PersonNotFound (404).
    """
    return sessions.end_all(call, person_id)


@router.put("/persons/me/password", status_code=204, responses=problems(413, 415, 422, 429))
def set_password(body: PasswordSet, call: PlainCallDep) -> None:
    """Set or change this person's password for logging in to the pages; every login session of theirs ends.

    `current` is needed where there is a password already. The key must carry all rights of its person's role and have
    no end. A wrong `current` counts as a try to log in.

    Errors: NotAllowed, WrongPassword (403), PasswordTooWeak (422), TooManyTries (429), PasswordsBusy (503).
    """
    sessions.set_password(call, body)
