"""Acts on persons and services: adding them, their role and keys as a whole, one-time links, erasing their text."""

from typing import Final
from uuid import UUID

from services.acts import grants
from services.acts.call import Call, PersonCall
from services.contracts.persons import (
    Erasure,
    LinkPurpose,
    LoginLink,
    PasswordLinkCreate,
    Person,
    PersonCreate,
    PersonCreated,
    Role,
)
from services.runtime.errors import InvalidInput
from services.store.people import erasing, logins, passwords, persons
from services.store.tables.people import LoginLinkRow, PersonRow

LINK_PATH: Final = "/link/"
HIDDEN_KEY: Final = {"api_key": ""}
HIDDEN_LINK: Final = {"path": ""}


class NoPasswordForServices(InvalidInput):
    """Services use keys; only people have passwords."""


def add(call: Call, wanted: PersonCreate) -> PersonCreated:
    """Add a person or service; the answer shows their API key, this once. Errors: NameTaken (409)."""
    with call.begin() as act:
        made = act.keep(_show_key(*persons.create(act.session, wanted.name, wanted.role)), hide=HIDDEN_KEY)
        act.record("persons.add", "person", made.id, {"role": made.role.value})
    return made


def change_role(call: Call, person_id: UUID, role: Role) -> Person:
    """Give a person another role, from their next call on; their keys and sessions go on, within its rights.

    Errors: PersonNotFound (404), PersonErased, ServiceStays, LastOwner (409).
    """
    with call.begin() as act:
        changed = act.keep(Person.model_validate(persons.change_role(act.session, person_id, role)))
        act.record("persons.role", "person", person_id, {"role": role.value})
    return changed


def rotate_key(call: PersonCall, person_id: UUID) -> PersonCreated:
    """Give a person one new API key, shown this once; all their old keys stop working.

    Errors: NotAllowed (403), PersonNotFound (404), PersonErased (409).
    """
    grants.check_whole(call.caller, person_id, None)
    with call.begin() as act:
        made = act.keep(_show_key(*persons.rotate_key(act.session, person_id)), hide=HIDDEN_KEY)
        act.record("persons.rotate", "person", person_id)
    return made


def revoke_keys(call: Call, person_id: UUID) -> Person:
    """Leave a person without any working key. Errors: PersonNotFound (404), LastOwner (409)."""
    with call.begin() as act:
        left = act.keep(Person.model_validate(persons.revoke_keys(act.session, person_id)))
        act.record("persons.revoke", "person", person_id)
    return left


def link_password(call: Call, person_id: UUID, how: PasswordLinkCreate) -> LoginLink:
    """Make a link with which a person sets their password, once. `reset` also ends their sessions and removes their
    current password.

    Errors: PersonNotFound (404), PersonErased (409), NoPasswordForServices (422).
    """
    with call.begin() as act:
        person = persons.get_present(act.session, person_id)
        if person.role == Role.SERVICE.value:
            raise NoPasswordForServices(f"{person.name!r} is a service")
        if how.reset:
            passwords.remove(act.session, person_id)
            logins.end_all(act.session, person_id)
        made = _show_link(*logins.make_link(act.session, person_id, LinkPurpose.SET_PASSWORD))
        act.record("persons.password-link", "person", person_id, {"reset": how.reset})
        return act.keep(made, hide=HIDDEN_LINK)


def link_login(call: PersonCall) -> LoginLink:
    """Make a link that logs the caller in, with no more rights than their key. Errors: PersonErased (409)."""
    caller = call.caller
    with call.begin() as act:
        persons.get_present(act.session, caller.id)
        made = _show_link(*logins.make_link(act.session, caller.id, LinkPurpose.LOGIN, caller.key_id))
        act.record("persons.login-link", "person", caller.id)
        return act.keep(made, hide=HIDDEN_LINK)


def erase(call: Call, person_id: UUID) -> Erasure:
    """Remove what a person wrote, their name, keys, sessions and password, for good.

    Errors: PersonNotFound (404), LastOwner (409).
    """
    with call.begin() as act:
        erased = act.keep(erasing.erase(act.session, person_id))
        act.record("persons.erase", "person", person_id)
    return erased


def _show_key(row: PersonRow, key: str) -> PersonCreated:
    return PersonCreated(**Person.model_validate(row).model_dump(), api_key=key)


def _show_link(row: LoginLinkRow, token: str) -> LoginLink:
    return LoginLink(
        person_id=row.person_id, purpose=LinkPurpose(row.purpose), path=LINK_PATH + token, expires_at=row.expires_at
    )
