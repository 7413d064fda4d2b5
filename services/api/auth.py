"""Who calls, and what they may do.

Every call carries `Authorization: Bearer pk_…`, but for /healthz and late answers that an expert signed. Where the
settings open the api (loopback only; the entrypoint sees to that), a call without a key is the first owner's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final
from uuid import UUID

from fastapi import Depends
from fastapi.params import Depends as Dependency
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.orm import Session

from services.api.deps import SettingsDep, StoreDep
from services.contracts.persons import Role
from services.errors import PreceptorError
from services.settings import Settings
from services.store import persons


class Right(StrEnum):
    """What a route may ask of its caller."""

    READ = "read"
    SEND = "send"
    CORRECT = "correct"
    OPERATE = "operate"
    ADMINISTER = "administer"


RIGHTS: Final[Mapping[Role, frozenset[Right]]] = {
    Role.OWNER: frozenset(Right),
    Role.OPERATOR: frozenset({Right.READ, Right.SEND, Right.CORRECT, Right.OPERATE}),
    Role.ANNOTATOR: frozenset({Right.READ, Right.CORRECT}),
    Role.SERVICE: frozenset({Right.READ, Right.SEND}),
}
"""read: every list and detail, but of tasks' metadata only the keys. send: tasks, rollouts. correct: the human queue.
operate: tasks' metadata, experts and late answers for those that do not sign, evaluations, the loop, requeueing.
administer: persons and their keys."""


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
    """A person or service whose key was checked."""

    id: UUID
    name: str
    role: Role

    def may(self, right: Right) -> bool:
        """Whether the caller's role includes the right."""
        return right in RIGHTS[self.role]

    def must(self, right: Right) -> None:
        """Pass when the caller may. Errors: NotAllowed (403)."""
        if not self.may(right):
            raise NotAllowed(f"{self.name!r} is {self.role.value}, which may not {right.value} here")


_bearer = HTTPBearer(auto_error=False, description="An API key: `pk_` and 43 characters.")
BearerDep = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


def identify(bearer: BearerDep, store: StoreDep, settings: SettingsDep) -> Caller:
    """The caller. Errors: KeyMissing, KeyUnknown (401)."""
    with store.transaction() as session:
        return authenticate(session, None if bearer is None else bearer.credentials, settings)


def authenticate(session: Session, key: str | None, settings: Settings) -> Caller:
    """Who holds the key. Errors: KeyMissing, KeyUnknown (401)."""
    if key is None and not settings.api_open:
        raise KeyMissing("this call needs an API key")
    row = persons.find_owner(session) if key is None else persons.authenticate(session, key)
    if row is None:
        raise KeyUnknown("this API key is not known")
    return Caller(id=row.id, name=row.name, role=Role(row.role))


CallerDep = Annotated[Caller, Depends(identify)]


def needs(right: Right) -> Dependency:
    """A dependency that passes callers who have the right. Errors: KeyMissing, KeyUnknown (401), NotAllowed (403)."""

    def check(caller: CallerDep) -> None:
        caller.must(right)

    checked: Callable[[Caller], None] = check
    dependency: Dependency = Depends(checked)
    return dependency
