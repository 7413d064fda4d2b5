"""Identifiers: time-ordered UUIDs (version 7), made in Python so that a row's id is known before it is stored."""

from datetime import datetime
from uuid import UUID

import uuid_utils.compat


def new_id() -> UUID:
    """A fresh UUIDv7: ids made later sort later, so primary keys are insertion-ordered and pages are keysets."""
    return uuid_utils.compat.uuid7()


def first_id_of(moment: datetime) -> UUID:
    """The smallest id that could be made at this moment; later rows have greater ones."""
    milliseconds = int(moment.timestamp() * 1000)
    return UUID(int=milliseconds << 80 | 7 << 76 | 2 << 62)
