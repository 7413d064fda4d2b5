"""The audit trail: written in the transaction of what it tells of, and never changed.

It carries ids, words and counts, never a text that somebody wrote: what is in it stays for good.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.orm import Session

from services.contracts.audit import Via
from services.contracts.base import Json
from services.contracts.ids import new_id
from services.store.models import AuditRow


@dataclass(frozen=True)
class Actor:
    """Who acts: a person by a key, a session or an open api; an expert by its signature; our own processes."""

    via: Via
    person_id: UUID | None = None
    credential_id: UUID | None = None
    """The key, the session, or the expert whose signature held."""
    address: str | None = None


SYSTEM = Actor(Via.SYSTEM)


def record(
    session: Session,
    actor: Actor,
    action: str,
    noun: str,
    noun_id: UUID | str | None = None,
    detail: Mapping[str, Json] | None = None,
) -> None:
    """Write down that the actor did this, e.g. `experts.pause` to the expert of this id."""
    session.add(
        AuditRow(
            id=new_id(),
            person_id=actor.person_id,
            via=actor.via.value,
            credential_id=actor.credential_id,
            address=actor.address,
            action=action,
            noun=noun,
            noun_id=None if noun_id is None else str(noun_id),
            detail=dict(detail or {}),
        )
    )
    session.flush()
