"""Rows that serve the store itself: repeated requests, running processes, counts of rows, old rows, status changes."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, Identity, LargeBinary
from sqlalchemy.orm import Mapped, mapped_column

from services.contracts.base import JsonObject
from services.store.tables.base import Base, now_column


class IdempotencyRow(Base):
    """The answer to a POST with an idempotency key: the same request gets it again and changes no row."""

    __tablename__ = "idempotency"

    principal: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    route: Mapped[str]
    request_sha256: Mapped[str]
    status_code: Mapped[int]
    body: Mapped[str]
    created_at: Mapped[datetime] = now_column()


class ProcessRow(Base):
    """The last report of a running process: its activity and its counters (seconds in the model, waiting, ...)."""

    __tablename__ = "process"

    name: Mapped[str] = mapped_column(primary_key=True)
    pid: Mapped[int] = mapped_column(BigInteger)
    activity: Mapped[str]
    counters: Mapped[JsonObject]
    started_at: Mapped[datetime] = now_column()
    beat_at: Mapped[datetime] = now_column()


class VocabularyRow(Base):
    """The text of every token of a tokenizer, packed: see `services.store.loop.vocabularies`."""

    __tablename__ = "vocabulary"

    tokenizer_hash: Mapped[str] = mapped_column(primary_key=True)
    packed: Mapped[bytes] = mapped_column(LargeBinary)


class TallyRow(Base):
    """How many rows of a noun have a word: see `store.core.row_counts`. The rows of `tally_change` come on top."""

    __tablename__ = "tally"

    lineage_id: Mapped[UUID] = mapped_column(primary_key=True)
    noun: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    word: Mapped[str] = mapped_column(primary_key=True)
    num: Mapped[int] = mapped_column(BigInteger)


class TallyChangeRow(Base):
    """The change that one statement made to a tally; triggers write it, the sweep folds it in."""

    __tablename__ = "tally_change"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    lineage_id: Mapped[UUID]
    noun: Mapped[str]
    kind: Mapped[str]
    word: Mapped[str]
    num: Mapped[int] = mapped_column(BigInteger)


class RetentionRow(Base):
    """How far a walk through old rows has come, so that each sweep goes on where the last one ended."""

    __tablename__ = "retention"

    name: Mapped[str] = mapped_column(primary_key=True)
    mark: Mapped[UUID]
    num_deleted: Mapped[int] = mapped_column(BigInteger, server_default="0")
    walked_at: Mapped[datetime] = now_column()


class StatusChangeRow(Base):
    """Every allowed status change, filled by migrations from the contracts; triggers look changes up here."""

    __tablename__ = "status_change"

    noun: Mapped[str] = mapped_column(primary_key=True)
    old: Mapped[str] = mapped_column(primary_key=True)
    new: Mapped[str] = mapped_column(primary_key=True)
