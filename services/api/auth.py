"""Authentication of callers, and their rights.

Every call carries `Authorization: Bearer pk_…`, except /healthz and late answers signed by an expert. Where the
settings open the api (only on loopback, as the entrypoint enforces), a call without a key acts as the first owner.
"""

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request
from fastapi.params import Depends as Dependency
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.orm import Session

from services.acts.callers import Caller, to_caller
from services.api.deps import SettingsDep, StoreDep
from services.contracts.audit import Via
from services.contracts.persons import Right
from services.runtime.errors import PreceptorError
from services.runtime.settings import Settings
from services.store.core.audit import Actor
from services.store.people import keys, persons


class KeyMissing(PreceptorError):
    """The call carries no API key."""

    status_code = 401
    title = "API key missing"
    hint = "Send the header `Authorization: Bearer pk_…`; the first key was shown when the stack first started."


class KeyUnknown(PreceptorError):
    """The API key is not a live one."""

    status_code = 401
    title = "API key not accepted"
    hint = "It was mistyped, rotated, revoked or has ended; an owner can make a new one with POST /v1/keys."


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
    found = keys.authenticate(session, key)
    if found is None:
        raise KeyUnknown("this API key is not known")
    return to_caller(*found)


CallerDep = Annotated[Caller, Depends(identify)]


def needs(right: Right) -> Dependency:
    """A dependency that passes callers who have the right. Errors: KeyMissing, KeyUnknown (401), NotAllowed (403)."""

    def check(caller: CallerDep) -> None:
        caller.must(right)

    checked: Callable[[Caller], None] = check
    dependency: Dependency = Depends(checked)
    return dependency


def to_actor(caller: Caller, request: Request) -> Actor:
    """The caller of this request, for the audit trail."""
    return act_from(caller, request.client.host if request.client else None)


def act_from(caller: Caller, address: str | None) -> Actor:
    """The caller at this address, for the audit trail."""
    return Actor(Via.OPEN if caller.key_id is None else Via.KEY, caller.id, caller.key_id, address)
