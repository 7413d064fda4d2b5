"""The base of every contract: strict frozen models, JSON values, pages, status tables."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Generic, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, Strict

from services.runtime.errors import IllegalStatusChange

Json: TypeAlias = JsonValue
JsonObject: TypeAlias = dict[str, JsonValue]

T = TypeVar("T")
S = TypeVar("S", bound=StrEnum)

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+ -]*$")]
# Values are never converted: `true` is no number, `1.0` no count, "yes" no boolean.
Bool = Annotated[bool, Strict()]
Int = Annotated[int, Strict()]
Float = Annotated[float, Strict()]

TokenId = Annotated[Int, Field(ge=0, lt=2**31)]
Seed = Annotated[Int, Field(ge=0, lt=2**63)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Contract(BaseModel):
    """A typed object that crosses a boundary: frozen, refuses unknown fields, NaN and infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class View(BaseModel):
    """A contract read from a row of the store."""

    model_config = ConfigDict(frozen=True, from_attributes=True, allow_inf_nan=False)


class Page(Contract, Generic[T]):
    """One page of a list, newest first; `next_cursor` is given back as `cursor` and is absent on the last page."""

    items: list[T]
    next_cursor: str | None = None


StatusChanges: TypeAlias = Mapping[S, frozenset[S]]


def check_change(changes: StatusChanges[S], old: S, new: S) -> None:
    """Pass when `old` may become `new`. Raises IllegalStatusChange (409) naming both."""
    if new not in changes.get(old, frozenset()):
        noun = type(old).__name__.removesuffix("Status").lower()
        was, wanted = (word.value.replace("_", " ") for word in (old, new))
        end = f"{wanted} again" if old == new else f"made {wanted}"
        raise IllegalStatusChange(f"this {noun} is {was}, so it cannot be {end}")
