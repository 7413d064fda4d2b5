"""The person or service that calls an act, and what they may do."""

from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from services.contracts.persons import RIGHTS, Right, Role
from services.runtime.errors import PreceptorError
from services.store.tables.people import ApiKeyRow, PersonRow


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
    key_id: UUID | None = None
    key_expires_at: datetime | None = None

    @property
    def rights(self) -> frozenset[Right]:
        """The role's rights, less those their key leaves out."""
        return RIGHTS[self.role] if self.scopes is None else RIGHTS[self.role] & self.scopes

    def may(self, right: Right) -> bool:
        """Whether the caller's role includes the right, and their key too."""
        return right in self.rights

    def must(self, right: Right) -> None:
        """Pass when the caller may. Errors: NotAllowed (403)."""
        if not self.may(right):
            if right in RIGHTS[self.role]:
                raise NotAllowed(f"this key of {self.name!r} does not include the right to {right.value}")
            raise NotAllowed(f"{self.name!r} is {self.role.value}, a role that lacks the right to {right.value}")


def to_caller(person: PersonRow, key: ApiKeyRow | None) -> Caller:
    """The person as a caller, narrowed to the key's scopes."""
    whole = Caller(id=person.id, name=person.name, role=Role(person.role))
    if key is None:
        return whole
    scopes = None if key.scopes is None else frozenset(map(Right, key.scopes))
    return replace(whole, scopes=scopes, key_id=key.id, key_expires_at=key.expires_at)
