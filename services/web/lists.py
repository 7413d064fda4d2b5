"""Lists in pages: filters that come from a form, and the address that carries them to the next page."""

from enum import StrEnum
from typing import Annotated, TypeVar
from urllib.parse import urlencode
from uuid import UUID

from pydantic import BeforeValidator

T = TypeVar("T")

Chosen = Annotated[T | None, BeforeValidator(lambda given: given or None)]
"""A filter: a form sends the empty text where none is chosen."""


def list_path(path: str, **filters: StrEnum | UUID | str | None) -> str:
    """The path with the filters that are set."""
    chosen = {name: str(value) for name, value in filters.items() if value not in (None, "")}
    return f"{path}?{urlencode(chosen)}" if chosen else path
