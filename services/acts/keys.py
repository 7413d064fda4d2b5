"""Acts on API keys: making, rotating and revoking one of several."""

from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from services.acts import grants
from services.acts.call import PersonCall
from services.contracts.persons import Key, KeyCreate, KeyCreated, KeyRotate
from services.store.people import keys, persons
from services.store.tables.people import ApiKeyRow

HIDDEN_KEY: Final = {"api_key": ""}


def add(call: PersonCall, wanted: KeyCreate) -> KeyCreated:
    """Make one more key, shown this once; the others go on working.

    Errors: NotAllowed (403), PersonNotFound (404), PersonErased (409), ScopeNotInRole, EndInThePast (422).
    """
    with call.begin() as act:
        person = persons.get_present(act.session, wanted.person_id or call.caller.id)
        given = grants.narrow(call.caller, person, wanted, datetime.now(UTC))
        row, secret = keys.issue(act.session, person.id, given.name, scopes=given.scopes, expires_at=given.expires_at)
        act.record("keys.add", "key", row.id, {"person_id": str(person.id)})
        return act.keep(_show(row, secret), hide=HIDDEN_KEY)


def rotate(call: PersonCall, key_id: UUID, how: KeyRotate) -> KeyCreated:
    """Put a new key in the place of one, shown this once; the old one ends after the grace.

    Errors: NotAllowed (403), KeyNotFound (404), KeyOver (409).
    """
    with call.begin() as act:
        grants.check_change(call.caller, keys.get(act.session, key_id))
        row, secret = keys.rotate(act.session, key_id, timedelta(seconds=how.grace_seconds))
        act.record("keys.rotate", "key", key_id, {"new_id": str(row.id)})
        return act.keep(_show(row, secret), hide=HIDDEN_KEY)


def revoke(call: PersonCall, key_id: UUID) -> Key:
    """Make a key stop working at once. Errors: NotAllowed (403), KeyNotFound (404), LastOwner (409)."""
    with call.begin() as act:
        grants.check_change(call.caller, keys.get(act.session, key_id))
        revoked = act.keep(keys.view(keys.revoke(act.session, key_id)))
        act.record("keys.revoke", "key", key_id)
    return revoked


def _show(row: ApiKeyRow, secret: str) -> KeyCreated:
    return KeyCreated(**keys.view(row).model_dump(), api_key=secret)
