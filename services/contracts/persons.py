"""Persons and services: who corrects, registers and operates, and the keys they hold."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final
from uuid import UUID

from pydantic import Field

from services.contracts.base import Contract, Name, View


class Role(StrEnum):
    """An owner may do everything, an operator run the loop, an annotator correct, a service send data."""

    OWNER = "owner"
    OPERATOR = "operator"
    ANNOTATOR = "annotator"
    SERVICE = "service"


class Right(StrEnum):
    """What a route or page may ask of its caller, and a key's scope."""

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
    """What a one-time link is for."""

    LOGIN = "login"
    SET_PASSWORD = "set_password"  # noqa: S105 - a word, no password


class PersonCreate(Contract):
    """A new person or service; the answer carries its API key, shown this once."""

    name: Name
    role: Role = Role.ANNOTATOR


class Person(View):
    """A stored person; keys are kept only as hashes."""

    id: UUID
    name: str
    role: Role
    created_at: datetime


class PersonCreated(Person):
    """A person with the one showing of its key."""

    api_key: Annotated[str, Field(repr=False)]
