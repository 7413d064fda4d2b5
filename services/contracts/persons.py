"""Persons and services: who corrects, registers and operates, and the keys they hold."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated
from uuid import UUID

from pydantic import Field

from services.contracts.base import Contract, Name, View


class Role(StrEnum):
    """An owner may do everything, an operator run the loop, an annotator correct, a service send data."""

    OWNER = "owner"
    OPERATOR = "operator"
    ANNOTATOR = "annotator"
    SERVICE = "service"


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
