"""Who calls, and what they may do.

Every call carries `Authorization: Bearer pk_…`, but for /healthz and late answers that an expert signed. Where the
settings open the api (loopback only; the entrypoint sees to that), a call without a key is the first owner's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from fastapi import Depends
from fastapi.params import Depends as Dependency
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.orm import Session

from services.api.deps import SettingsDep, StoreDep
from services.contracts.persons import RIGHTS as RIGHTS
from services.contracts.persons import Right as Right
from services.contracts.persons import Role
from services.errors import PreceptorError
from services.settings import Settings
from services.store import persons
from services.store.models import ApiKeyRow, PersonRow


class KeyMissing(PreceptorError):
    """The call carries no API key."""

    status_code = 401
    title = "API key missing"
    hint = "Send the header `Authorization: Bearer pk_…`; the first key was shown when the stack first started."


class KeyUnknown(PreceptorError):
    """The API key is not a live one."""

    status_code = 401
    title = "API key not accepted"
    hint = "It was mistyped, rotated or revoked; an owner can issue a new one with POST /v1/persons/{id}/rotate-key."


class NotAllowed(PreceptorError):
    """The caller's role does not include this."""

    status_code = 403
    title = "Not allowed"
    hint = "Ask an owner for a key with another role."


@dataclass(frozen=True)
class Caller:
    """A person or service whose key or session was checked."""

    id: UUID
    name: str
    role: Role
    scopes: frozenset[Right] | None = None
    """What their key narrows the role to; None leaves it whole."""

    def may(self, right: Right) -> bool:
        """Whether the caller's role includes the right, and their key too."""
        return right in RIGHTS[self.role] and (self.scopes is None or right in self.scopes)

    def must(self, right: Right) -> None:
        """Pass when the caller may. Errors: NotAllowed (403)."""
        if not self.may(right):
            raise NotAllowed(f"{self.name!r} is {self.role.value}, which may not {right.value} here")


_bearer = HTTPBearer(auto_error=False, description="An API key: `pk_` and 43 characters.")
BearerDep = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


def identify(bearer: BearerDep, store: StoreDep, settings: SettingsDep) -> Caller:
    """The caller. Errors: KeyMissing, KeyUnknown (401)."""
    key = None if bearer is None else bearer.credentials
    require_key(key, settings)
    with store.transaction() as session:
        return authenticate(session, key, settings)


def require_key(key: str | None, settings: Settings) -> None:
    """Pass when a key was given, or none is asked for. Errors: KeyMissing (401)."""
    if key is None and not settings.api_open:
        raise KeyMissing("this call needs an API key")


def authenticate(session: Session, key: str | None, settings: Settings) -> Caller:
    """Who holds the key. Errors: KeyMissing, KeyUnknown (401)."""
    require_key(key, settings)
    if key is None:
        return to_caller(persons.find_owner(session), None)
    found = persons.authenticate(session, key)
    if found is None:
        raise KeyUnknown("this API key is not known")
    return to_caller(*found)


def to_caller(person: PersonRow, key: ApiKeyRow | None) -> Caller:
    """The person as a caller, narrowed to the key's scopes."""
    scopes = None if key is None or key.scopes is None else frozenset(map(Right, key.scopes))
    return Caller(id=person.id, name=person.name, role=Role(person.role), scopes=scopes)


CallerDep = Annotated[Caller, Depends(identify)]


def needs(right: Right) -> Dependency:
    """A dependency that passes callers who have the right. Errors: KeyMissing, KeyUnknown (401), NotAllowed (403)."""

    def check(caller: CallerDep) -> None:
        caller.must(right)

    checked: Callable[[Caller], None] = check
    dependency: Dependency = Depends(checked)
    return dependency
