"""Ids that go into a statement as one parameter, however many they are: a statement takes 65,535."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import ARRAY, Select, Uuid, func, literal, select

Ids = Select[UUID]


def listed(ids: Sequence[UUID]) -> Ids:
    """These ids as a query, whose one column is `id`."""
    return select(func.unnest(literal(list(ids), ARRAY(Uuid()))).label("id"))
