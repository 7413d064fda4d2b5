"""The audit trail: each act is recorded in its own transaction, and never changed.

It carries ids, words and counts, never a text that a person wrote, because it stays for good.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from services.contracts.audit import AuditEntry, Via
from services.contracts.base import Json, Page
from services.contracts.ids import new_id
from services.store.core.pages import newest_first
from services.store.tables.people import AuditRow, PersonRow


@dataclass(frozen=True)
class Actor:
    """Who acts: a person by a key, a session or an open api; an expert by its signature; our own processes."""

    via: Via
    person_id: UUID | None = None
    credential_id: UUID | None = None
    """The key, the session, or the expert whose signature held."""
    address: str | None = None


SYSTEM = Actor(Via.SYSTEM)

# Arrays, not lists of parameters: a statement whose text is always the same is read and planned once a connection.
_RECORD: Final = text(
    "INSERT INTO audit (id, person_id, via, credential_id, address, action, noun, noun_id, detail) "
    "SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:persons AS uuid[]), CAST(:vias AS text[]), "
    "CAST(:credentials AS uuid[]), CAST(:addresses AS text[]), CAST(:actions AS text[]), CAST(:nouns AS text[]), "
    "CAST(:noun_ids AS text[]), CAST(:details AS jsonb[]))"
)


def record(
    session: Session,
    actor: Actor,
    action: str,
    noun: str,
    noun_id: UUID | str | None = None,
    detail: Mapping[str, Json] | None = None,
) -> None:
    """Record one act, e.g. `experts.pause` on the expert with this id."""
    record_all(session, [AuditRecord(actor, action, noun, noun_id, detail or {})])


@dataclass(frozen=True)
class AuditRecord:
    """The record of one act."""

    actor: Actor
    action: str
    noun: str
    noun_id: UUID | str | None
    detail: Mapping[str, Json]


def record_all(session: Session, entries: Sequence[AuditRecord]) -> None:
    """Record several acts at once."""
    if not entries:
        return
    columns = {
        "ids": [new_id() for _ in entries],
        "persons": [entry.actor.person_id for entry in entries],
        "vias": [entry.actor.via.value for entry in entries],
        "credentials": [entry.actor.credential_id for entry in entries],
        "addresses": [entry.actor.address for entry in entries],
        "actions": [entry.action for entry in entries],
        "nouns": [entry.noun for entry in entries],
        "noun_ids": [None if entry.noun_id is None else str(entry.noun_id) for entry in entries],
        "details": [json.dumps(entry.detail) for entry in entries],
    }
    session.execute(_RECORD, columns)


@dataclass(frozen=True)
class Filter:
    """Which entries are looked for; None looks for all. Each of them has an index that is in the order of the list."""

    person_id: UUID | None = None
    action: str | None = None
    noun_id: str | None = None
    before: datetime | None = None


def read(session: Session, wanted: Filter, *, cursor: str | None, limit: int) -> Page[AuditEntry]:
    """Entries, newest first. Errors: BadCursor."""
    query = select(AuditRow)
    if wanted.person_id is not None:
        query = query.where(AuditRow.person_id == wanted.person_id)
    if wanted.action is not None:
        query = query.where(AuditRow.action == wanted.action)
    if wanted.noun_id is not None:
        query = query.where(AuditRow.noun_id == wanted.noun_id)
    if wanted.before is not None:
        query = query.where(AuditRow.id < first_id_of(wanted.before))
    rows, following = newest_first(session, query, AuditRow.id, cursor, limit)
    ids = {row.person_id for row in rows}
    names = dict(session.execute(select(PersonRow.id, PersonRow.name).where(PersonRow.id.in_(ids))).all())
    return Page[AuditEntry](items=[_view(row, names) for row in rows], next_cursor=following)


def list_actions(session: Session) -> list[str]:
    """Every action in the trail, in order: one index look-up for each, however long the trail is."""
    rows = session.execute(
        text(
            "WITH RECURSIVE known AS ("
            " (SELECT action FROM audit ORDER BY action LIMIT 1)"
            " UNION ALL"
            " SELECT (SELECT a.action FROM audit a WHERE a.action > known.action ORDER BY a.action LIMIT 1)"
            " FROM known WHERE known.action IS NOT NULL"
            ") SELECT action FROM known WHERE action IS NOT NULL"
        )
    )
    return [row.action for row in rows]


def forget_addresses(session: Session, person_id: UUID) -> None:
    """Delete the addresses of a person's acts: the one change that the database allows."""
    session.execute(
        update(AuditRow).where(AuditRow.person_id == person_id, AuditRow.address.is_not(None)).values(address=None)
    )


def first_id_of(moment: datetime) -> UUID:
    """The smallest id that could have been made at this moment: they begin with milliseconds (RFC 9562, UUIDv7)."""
    milliseconds = max(0, int(moment.timestamp() * 1000))
    return UUID(int=(milliseconds & (2**48 - 1)) << 80)


def _view(row: AuditRow, names: Mapping[UUID, str]) -> AuditEntry:
    columns = {name: getattr(row, name) for name in AuditEntry.model_fields if name != "person_name"}
    name = None if row.person_id is None else names.get(row.person_id)
    return AuditEntry.model_validate(columns | {"person_name": name})
