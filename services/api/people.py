"""One-time links, for the api's routes and the pages: both do the same and write the same into the audit trail."""

from typing import Final
from uuid import UUID

from sqlalchemy.orm import Session

from services.acts.callers import Caller
from services.contracts.persons import LinkPurpose, LoginLink, PasswordLinkCreate, Role
from services.runtime.errors import InvalidInput
from services.store.people import logins, passwords, persons
from services.store.tables.people import LoginLinkRow

LINK_PATH: Final = "/link/"


class NoPasswordForServices(InvalidInput):
    """Services use keys; only people have passwords."""


def link_password(session: Session, person_id: UUID, how: PasswordLinkCreate) -> LoginLink:
    """A link that lets a person set their password.

    Errors: PersonNotFound (404), PersonErased (409), NoPasswordForServices (422).
    """
    person = persons.get_present(session, person_id)
    if person.role == Role.SERVICE.value:
        raise NoPasswordForServices(f"{person.name!r} is a service")
    if how.reset:
        passwords.remove(session, person_id)
        logins.end_all(session, person_id)
    return _show(*logins.make_link(session, person_id, LinkPurpose.SET_PASSWORD))


def link_login(session: Session, caller: Caller) -> LoginLink:
    """A link that logs the caller in, no wider than their key. Errors: PersonErased (409)."""
    persons.get_present(session, caller.id)
    return _show(*logins.make_link(session, caller.id, LinkPurpose.LOGIN, caller.key_id))


def _show(row: LoginLinkRow, token: str) -> LoginLink:
    return LoginLink(
        person_id=row.person_id, purpose=LinkPurpose(row.purpose), path=LINK_PATH + token, expires_at=row.expires_at
    )
