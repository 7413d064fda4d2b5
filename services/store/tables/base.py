"""The parts that tables share: names of constraints, types of columns, the lineage that most rows belong to.

The database checks status columns twice: a CHECK knows the words, and a trigger looks every change up in
`status_change` (see `services.store.tables.schema`).
"""

from array import array
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    REAL,
    Boolean,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    Integer,
    MetaData,
    Text,
    TypeDecorator,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from services.contracts.base import JsonObject
from services.contracts.ids import new_id

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class _Real(TypeDecorator[float]):
    """A single-precision number, rounded here: Postgres refuses a double that rounds to zero."""

    impl = REAL
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> float | None:
        """The nearest single-precision number."""
        return None if value is None else array("f", [value])[0]


class Base(DeclarativeBase):
    """Declarative base: timestamps carry a zone, text is text, JSON is jsonb."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {
        datetime: DateTime(timezone=True),
        str: Text(),
        JsonObject: JSONB(),
        list[int]: ARRAY(Integer),
        list[float]: ARRAY(_Real),
        list[bool]: ARRAY(Boolean),
        list[str]: ARRAY(Text),
    }


def one_of(column: str, words: type[StrEnum]) -> CheckConstraint:
    """The constraint that the column holds one of these words."""
    listed = ", ".join(f"'{word.value}'" for word in words)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


def id_column() -> Mapped[UUID]:
    """The primary key."""
    return mapped_column(primary_key=True, default=new_id)


def now_column() -> Mapped[datetime]:
    """The time of the transaction that adds the row."""
    return mapped_column(server_default=func.now())


class LineageRow(Base):
    """One model being trained."""

    __tablename__ = "lineage"

    id: Mapped[UUID] = id_column()
    name: Mapped[str] = mapped_column(unique=True)
    model: Mapped[str]
    base_sha256: Mapped[str]
    tokenizer_hash: Mapped[str]
    vocab_size: Mapped[int]
    created_at: Mapped[datetime] = now_column()


def lineage_column() -> Mapped[UUID]:
    """The lineage the row belongs to."""
    return mapped_column(ForeignKey(LineageRow.id))
