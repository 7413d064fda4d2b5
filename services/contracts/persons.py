"""Persons and services: who corrects, registers and operates, and the keys they hold."""

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Final
from uuid import UUID

from pydantic import AwareDatetime, Field

from services.contracts.base import Bool, Contract, Int, Name, View

MAX_GRACE_SECONDS: Final = 30 * 86_400
MAX_PASSWORD_CHARS: Final = 257
"""One more than a password may have, so that a longer one is refused with the reason."""


class Role(StrEnum):
    """An owner may do everything, an operator run the loop, an annotator correct, a service send data."""

    OWNER = "owner"
    OPERATOR = "operator"
    ANNOTATOR = "annotator"
    SERVICE = "service"


class Right(StrEnum):
    """A right that a route or page asks of its caller; also the scopes of keys."""

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
operate: tasks' metadata, experts and late answers for those that do not sign, evaluations, the loop, requeueing, the
audit trail. administer: persons and their keys."""


class LinkPurpose(StrEnum):
    """The purpose of a one-time link."""

    LOGIN = "login"
    SET_PASSWORD = "set_password"  # noqa: S105 - a word, no password


class KeyStatus(StrEnum):
    """Whether a key works; told from its times, not stored."""

    LIVE = "live"
    EXPIRED = "expired"
    REVOKED = "revoked"


class PersonCreate(Contract):
    """A new person or service; the answer carries its API key, shown this once."""

    name: Name
    role: Role = Role.ANNOTATOR


class RoleChange(Contract):
    """A person's new role."""

    role: Role


class Person(View):
    """A stored person or service. Of one whose text was erased the name is a pseudonym."""

    id: UUID
    name: str
    role: Role
    created_at: datetime
    erased_at: datetime | None = None


class PersonLine(Person):
    """A person with their live keys, whether they have a password, and when they last used either."""

    num_keys: int
    has_password: bool
    key_used_at: datetime | None
    seen_at: datetime | None


class PersonCreated(Person):
    """A person with the one showing of its key."""

    api_key: Annotated[str, Field(repr=False)]


class KeyCreate(Contract):
    """One more key, for oneself or, by an owner, for another person.

    scopes: the part of the role's rights it carries, all of them where absent. expires_at: never, where absent.
    """

    person_id: UUID | None = None
    name: Name
    scopes: Annotated[list[Right], Field(min_length=1, max_length=len(Right))] | None = None
    expires_at: AwareDatetime | None = None


class KeyRotate(Contract):
    """A new secret for a key of the same name, scopes and end; the old one goes on for the grace, if any."""

    grace_seconds: Annotated[Int, Field(ge=0, le=MAX_GRACE_SECONDS)] = 0


class Key(View):
    """A stored key: its rights, its end, and the few characters by which its holder recognises it."""

    id: UUID
    person_id: UUID
    name: str
    prefix: str | None
    scopes: list[Right] | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None

    @property
    def status(self) -> KeyStatus:
        """Whether it works now, and if not, why."""
        if self.revoked_at is not None:
            return KeyStatus.REVOKED
        is_over = self.expires_at is not None and self.expires_at <= datetime.now(UTC)
        return KeyStatus.EXPIRED if is_over else KeyStatus.LIVE


class KeyCreated(Key):
    """A key with the one showing of its secret."""

    api_key: Annotated[str, Field(repr=False)]


class PasswordLinkCreate(Contract):
    """A link to set a password; `reset` also removes the current one."""

    reset: Bool = False


class PasswordSet(Contract):
    """A new password; `current` is the one it replaces, where there is one."""

    current: Annotated[str, Field(max_length=MAX_PASSWORD_CHARS, repr=False)] = ""
    new: Annotated[str, Field(max_length=MAX_PASSWORD_CHARS, repr=False)]


class LoginLink(View):
    """A link that works once and briefly, shown this once; `path` is below the address of the pages."""

    person_id: UUID
    purpose: LinkPurpose
    path: Annotated[str, Field(repr=False)]
    expires_at: datetime


class LoginSession(View):
    """A browser that is logged in."""

    id: UUID
    address: str | None
    agent: str | None
    created_at: datetime
    seen_at: datetime
    expires_at: datetime


class SessionsEnded(Contract):
    """How many login sessions were ended."""

    num_ended: Int


class ShapedUpdate(Contract):
    """An applied update of a lineage that used something a person wrote."""

    lineage: str
    number: Int


class Erasure(Contract):
    """What erasing a person's text takes out, or took out; and what it cannot: the updates and versions it shaped.

    texts: pieces of text by the noun they are or were kept in. chars: their length. answers: made of them, which never
    train again. lessons: withdrawn because nothing else was in them. updates: whose training used the text, and goes on
    having used it. policy_versions: that carry those updates.
    """

    person_id: UUID
    is_done: Bool
    texts: dict[str, Int]
    chars: Int
    answers: Int
    lessons: Int
    updates: list[ShapedUpdate]
    policy_versions: list[str]
