"""API keys: several for a person or service, each with a name, a part of the role's rights, and an end."""

from uuid import UUID

from services.acts import grants
from services.acts import keys as acts
from services.api.auth import CallerDep
from services.api.calls import CallDep
from services.api.deps import PagingDep, StoreDep
from services.api.routes.common import build_router, problems
from services.contracts.base import Page
from services.contracts.persons import Key, KeyCreate, KeyCreated, KeyRotate
from services.store.people import keys, persons

router = build_router("keys")

AT_ONCE = KeyRotate()


@router.post("/keys", status_code=201, responses=problems(404, 409, 413, 415, 422))
def add_key(body: KeyCreate, call: CallDep) -> KeyCreated:
    """Create another key; only this answer shows it. Existing keys keep working.

    Owners may issue any key; others only keys for themselves, no stronger and no longer-lived than their own.

    Errors: NotAllowed (403), PersonNotFound (404), PersonErased (409), ScopeNotInRole, EndInThePast (422).
    """
    return acts.add(call, body)


@router.get("/keys", responses=problems(404, 422))
def list_keys(caller: CallerDep, store: StoreDep, paging: PagingDep, person_id: UUID | None = None) -> Page[Key]:
    """Your own keys, or another person's for an owner; newest first, including expired and revoked ones.

    Errors: NotAllowed (403), PersonNotFound (404), BadCursor (422).
    """
    whose = person_id or caller.id
    grants.check_person(caller, whose)
    with store.reading() as session:
        persons.get(session, whose)
        return keys.list_of(session, whose, cursor=paging.cursor, limit=paging.limit)


@router.post("/keys/{key_id}/rotate", status_code=201, responses=problems(404, 409, 413, 415, 422))
def rotate_key(key_id: UUID, call: CallDep, body: KeyRotate = AT_ONCE) -> KeyCreated:
    """Put a new key in place of this one, with its name, rights and end; the answer shows it, this once.

    The old key goes on for `grace_seconds`, by default not at all.

    Errors: NotAllowed (403), KeyNotFound (404), KeyOver (409).
    """
    return acts.rotate(call, key_id, body)


@router.post("/keys/{key_id}/revoke", responses=problems(404, 409))
def revoke_key(key_id: UUID, call: CallDep) -> Key:
    """Revoke this key immediately. Errors: NotAllowed (403), KeyNotFound (404), LastOwner (409)."""
    return acts.revoke(call, key_id)
