"""API keys: several for a person or service, each with a name, a part of the role's rights, and an end."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy.orm import Session

from services.acts import grants
from services.acts.callers import Caller
from services.api.auth import CallerDep
from services.api.deps import PagingDep, StoreDep
from services.api.once import OnceDep
from services.api.routes.common import build_router, problems
from services.contracts.base import Page
from services.contracts.persons import Key, KeyCreate, KeyCreated, KeyRotate
from services.store.people import keys, persons
from services.store.tables.people import ApiKeyRow

router = build_router("keys")

AT_ONCE = KeyRotate()


@router.post("/keys", status_code=201, responses=problems(404, 409, 413, 415, 422))
def add_key(body: KeyCreate, caller: CallerDep, store: StoreDep, once: OnceDep) -> KeyCreated:
    """Make one more key; the answer shows it, this once. The others go on working.

    Anyone may for themselves, no wider and no longer than the key they use; an owner for everybody.

    Errors: NotAllowed (403), PersonNotFound (404), PersonErased (409), ScopeNotInRole, EndInThePast (422).
    """
    with store.transaction() as session:
        return once(session, lambda: add(session, caller, body), stored_as=hide)


@router.get("/keys", responses=problems(404, 422))
def list_keys(caller: CallerDep, store: StoreDep, paging: PagingDep, person_id: UUID | None = None) -> Page[Key]:
    """One's own keys, or those of another person for an owner; newest first, those that are over too.

    Errors: NotAllowed (403), PersonNotFound (404), BadCursor (422).
    """
    whose = person_id or caller.id
    grants.check_person(caller, whose)
    with store.reading() as session:
        persons.get(session, whose)
        return keys.list_of(session, whose, cursor=paging.cursor, limit=paging.limit)


@router.post("/keys/{key_id}/rotate", status_code=201, responses=problems(404, 409, 413, 415, 422))
def rotate_key(
    key_id: UUID, caller: CallerDep, store: StoreDep, once: OnceDep, body: KeyRotate = AT_ONCE
) -> KeyCreated:
    """Put a new key in place of this one, with its name, rights and end; the answer shows it, this once.

    The old key goes on for `grace_seconds`, by default not at all.

    Errors: NotAllowed (403), KeyNotFound (404), KeyOver (409).
    """
    with store.transaction() as session:
        return once(session, lambda: rotate(session, caller, key_id, body), stored_as=hide)


@router.post("/keys/{key_id}/revoke", responses=problems(404, 409))
def revoke_key(key_id: UUID, caller: CallerDep, store: StoreDep, once: OnceDep) -> Key:
    """Make this key work no more, at once. Errors: NotAllowed (403), KeyNotFound (404), LastOwner (409)."""
    with store.transaction() as session:
        return once(session, lambda: revoke(session, caller, key_id))


def add(session: Session, caller: Caller, wanted: KeyCreate) -> KeyCreated:
    """What `add_key` does, for the pages too."""
    person = persons.get_present(session, wanted.person_id or caller.id)
    given = grants.narrow(caller, person, wanted, datetime.now(UTC))
    return show(*keys.issue(session, person.id, given.name, scopes=given.scopes, expires_at=given.expires_at))


def rotate(session: Session, caller: Caller, key_id: UUID, how: KeyRotate) -> KeyCreated:
    """What `rotate_key` does, for the pages too."""
    grants.check_change(caller, keys.get(session, key_id))
    return show(*keys.rotate(session, key_id, timedelta(seconds=how.grace_seconds)))


def revoke(session: Session, caller: Caller, key_id: UUID) -> Key:
    """What `revoke_key` does, for the pages too."""
    grants.check_change(caller, keys.get(session, key_id))
    return keys.view(keys.revoke(session, key_id))


def show(row: ApiKeyRow, secret: str) -> KeyCreated:
    """The key with its secret."""
    return KeyCreated(**keys.view(row).model_dump(), api_key=secret)


def hide(shown: KeyCreated) -> KeyCreated:
    """The key without its secret, as it is kept for a repeated request."""
    return shown.model_copy(update={"api_key": ""})
