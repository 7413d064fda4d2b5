"""The audit trail: person, action, noun, time and address."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from services.contracts.base import JsonObject, View


class Via(StrEnum):
    """How an actor showed who they are; `open` where no key is asked for, `system` for our own processes."""

    KEY = "key"
    SESSION = "session"
    OPEN = "open"
    SIGNATURE = "signature"
    SYSTEM = "system"


class AuditEntry(View):
    """One thing that was done. credential_id: the key, the session or the expert that stood for the actor."""

    id: UUID
    created_at: datetime
    person_id: UUID | None
    person_name: str | None
    via: Via
    credential_id: UUID | None
    address: str | None
    action: str
    noun: str
    noun_id: str | None
    detail: JsonObject
