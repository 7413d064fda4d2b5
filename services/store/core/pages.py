"""Pages: keysets on time-ordered ids, newest first, behind an opaque cursor."""

import base64
import binascii
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from uuid import UUID

from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from services.runtime.errors import InvalidInput

R = TypeVar("R")


class BadCursor(InvalidInput):
    """The cursor was not made by this list."""

    hint = "Give back `next_cursor` exactly as it came, or leave the cursor out to start again at the newest."


def encode_cursor(last: UUID) -> str:
    """The cursor of the page that follows this row."""
    return base64.urlsafe_b64encode(last.bytes).decode().rstrip("=")


def decode_cursor(cursor: str) -> UUID:
    """The row after which the page begins. Errors: BadCursor."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 16:
        raise BadCursor("the cursor cannot be read")
    return UUID(bytes=raw)


def encode_moment(at: datetime, last: UUID) -> str:
    """The cursor of the page that follows this row, in a list ordered by a time and then the id."""
    micros = round(at.timestamp() * 1_000_000)
    return base64.urlsafe_b64encode(micros.to_bytes(8) + last.bytes).decode().rstrip("=")


def decode_moment(cursor: str) -> tuple[datetime, UUID]:
    """The row after which the page begins. Errors: BadCursor."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        micros = int.from_bytes(raw[:8])
        at = datetime.fromtimestamp(micros // 1_000_000, UTC) + timedelta(microseconds=micros % 1_000_000)
        return at, UUID(bytes=raw[8:])
    except (binascii.Error, ValueError, OverflowError, OSError):
        raise BadCursor("the cursor cannot be read") from None


def newest_first(
    session: Session, query: Select[R], key: InstrumentedAttribute[UUID], cursor: str | None, limit: int
) -> tuple[list[R], str | None]:
    """At most `limit` rows of the query, newest first, and the cursor of the next page (None on the last).

    `key` is the id of the query's rows. Errors: BadCursor.
    """
    if cursor is not None:
        query = query.where(key < decode_cursor(cursor))
    rows = session.scalars(query.order_by(key.desc()).limit(limit + 1)).all()
    items = list(rows[:limit])
    return items, encode_cursor(getattr(items[-1], key.key)) if len(rows) > limit else None
