"""Who may give which key. Owners may give any key to anyone; others only keys for themselves that allow no more and
last no longer than the one they use, so that a leaked key cannot make itself a better one."""

from datetime import datetime
from uuid import UUID

from services.acts.callers import Caller, NotAllowed
from services.contracts.persons import RIGHTS, KeyCreate, Right, Role
from services.runtime.errors import InvalidInput
from services.store.tables.people import ApiKeyRow, PersonRow


class ScopeNotInRole(InvalidInput):
    """The key would carry a right its person does not have."""

    hint = "Leave `scopes` out for all rights of the role, or name some of them."


class EndInThePast(InvalidInput):
    """The key would be over before it is made."""


def check_person(caller: Caller, person_id: UUID) -> None:
    """Pass who acts for themselves, and who administers. Errors: NotAllowed (403)."""
    if person_id != caller.id:
        caller.must(Right.ADMINISTER)


def check_whole(caller: Caller, person_id: UUID, expires_at: datetime | None) -> None:
    """Pass who administers, and who acts for themselves by a key with all rights of their role that lasts as long.

    Errors: NotAllowed (403).
    """
    check_person(caller, person_id)
    if not caller.may(Right.ADMINISTER):
        check_covers(caller, None, expires_at)


def narrow(caller: Caller, person: PersonRow, wanted: KeyCreate, now: datetime) -> KeyCreate:
    """The wanted key as this caller may give it: left open, its rights and its end are the caller's own.

    Errors: NotAllowed (403), ScopeNotInRole, EndInThePast (422).
    """
    check_person(caller, person.id)
    of_role = RIGHTS[Role(person.role)]
    if wanted.scopes is not None and not of_role.issuperset(wanted.scopes):
        missing = ", ".join(sorted(set(wanted.scopes) - of_role))
        raise ScopeNotInRole(f"{person.name!r} is {person.role}, which does not include: {missing}")
    if wanted.expires_at is not None and wanted.expires_at <= now:
        raise EndInThePast("the key would already be expired")
    if caller.may(Right.ADMINISTER):
        return wanted
    scopes = wanted.scopes if wanted.scopes is not None or caller.scopes is None else sorted(caller.rights)
    expires_at = wanted.expires_at or caller.key_expires_at
    check_covers(caller, None if scopes is None else frozenset(scopes), expires_at)
    return wanted.model_copy(update={"scopes": scopes, "expires_at": expires_at})


def check_change(caller: Caller, key: ApiKeyRow) -> None:
    """Pass who may rotate or revoke this key. Errors: NotAllowed (403)."""
    check_person(caller, key.person_id)
    if not caller.may(Right.ADMINISTER):
        check_covers(caller, None if key.scopes is None else frozenset(map(Right, key.scopes)), key.expires_at)


def check_covers(caller: Caller, scopes: frozenset[Right] | None, expires_at: datetime | None) -> None:
    """Pass when a key of these scopes and end is no wider and no longer than what the caller holds.

    Errors: NotAllowed (403).
    """
    if not (RIGHTS[caller.role] if scopes is None else scopes) <= caller.rights:
        raise NotAllowed("this key has more rights than yours", hint="Use a key with all rights, or log in.")
    if caller.key_expires_at is not None and (expires_at is None or expires_at > caller.key_expires_at):
        raise NotAllowed("this key lasts longer than yours", hint="Use a key that never expires, or log in.")
