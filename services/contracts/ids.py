"""Identifiers: time-ordered UUIDs (version 7), made in Python so that a row's id is known before it is stored."""

from uuid import UUID

import uuid_utils.compat


def new_id() -> UUID:
    """A fresh UUIDv7: ids made later sort later, so primary keys are insertion-ordered and pages are keysets."""
    return uuid_utils.compat.uuid7()
