"""Lists in pages: how many rows a page has, filters that come from a form, and the address that carries them on."""

from enum import StrEnum
from typing import Annotated, Final, TypeVar
from urllib.parse import urlencode
from uuid import UUID

from fastapi import Depends, Query
from pydantic import BeforeValidator

from services.api.deps import Paging

T = TypeVar("T")

NUM_ROWS: Final = 25
"""Rows of a page: on a phone each takes the height of several lines."""


async def _get_rows(
    cursor: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = NUM_ROWS,
) -> Paging:
    return Paging(cursor=cursor, limit=limit)


RowsDep = Annotated[Paging, Depends(_get_rows)]

Chosen = Annotated[T | None, BeforeValidator(lambda given: given or None)]
"""A filter: a form sends the empty text where none is chosen."""


def list_path(path: str, **filters: StrEnum | UUID | str | None) -> str:
    """The path with the filters that are set."""
    chosen = {name: str(value) for name, value in filters.items() if value not in (None, "")}
    return f"{path}?{urlencode(chosen)}" if chosen else path
