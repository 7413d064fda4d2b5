"""The human queue: its items, the drafts of people at work on them, and their effects. Train tasks only."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    CheckConstraint,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from services.contracts.base import JsonObject
from services.contracts.corrections import CorrectionStatus
from services.contracts.effects import EffectSide, EffectStatus
from services.store.tables.base import Base, id_column, lineage_column, now_column, one_of
from services.store.tables.ledger import UpdateRow
from services.store.tables.loop import ConsultationRow
from services.store.tables.people import PersonRow


class CorrectionRow(Base):
    """An item of the human queue; train tasks only."""

    __tablename__ = "correction"
    __table_args__ = (
        ForeignKeyConstraint(["rollout_id", "split"], ["rollout.id", "rollout.split"]),
        CheckConstraint("split = 'train'", name="train_only"),
        CheckConstraint("status <> 'claimed' OR (person_id IS NOT NULL AND lease_until IS NOT NULL)", name="claim"),
        CheckConstraint(
            "person_id IS NOT NULL OR (text IS NULL AND comment IS NULL AND skip_reason IS NULL)",
            name="words_have_an_author",
        ),
        one_of("status", CorrectionStatus),
        Index(
            "ix_correction_queue",
            "lineage_id",
            "priority",
            "disagreement",
            "uncertainty",
            "id",
            postgresql_where=text("status = 'open'"),
        ),
        Index("ix_correction_submitted", "lineage_id", "id", postgresql_where=text("status = 'submitted'")),
        Index("ix_correction_held", "person_id", postgresql_where=text("status = 'claimed'")),
        Index(
            "ix_correction_skipped",
            "lineage_id",
            "priority",
            "disagreement",
            "uncertainty",
            "id",
            postgresql_where=text("status = 'skipped'"),
        ),
        Index("ix_correction_decided", "person_id", "decided_at", "id"),
        Index("ix_correction_rollout_id", "rollout_id"),
    )

    id: Mapped[UUID] = id_column()
    lineage_id: Mapped[UUID] = lineage_column()
    consultation_id: Mapped[UUID] = mapped_column(ForeignKey(ConsultationRow.id), unique=True)
    rollout_id: Mapped[UUID]
    split: Mapped[str]
    status: Mapped[str] = mapped_column(default=CorrectionStatus.OPEN.value)
    priority: Mapped[float] = mapped_column(Float, server_default="0")
    disagreement: Mapped[float] = mapped_column(Float, server_default="0")
    uncertainty: Mapped[float] = mapped_column(Float, server_default="0")
    person_id: Mapped[UUID | None] = mapped_column(ForeignKey(PersonRow.id))
    lease_until: Mapped[datetime | None]
    verdict: Mapped[str | None]
    text: Mapped[str | None]
    comment: Mapped[str | None]
    skip_kind: Mapped[str | None]
    skip_reason: Mapped[str | None]
    skipped_by: Mapped[list[UUID]] = mapped_column(ARRAY(Uuid), server_default="{}")
    """The people who skipped it since it was asked for; the kind and reason are those of the last one."""
    held_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = now_column()
    decided_at: Mapped[datetime | None]


class DraftRow(Base):
    """One person's unfinished work on an item; every save raises `version`."""

    __tablename__ = "correction_draft"
    __table_args__ = (Index("ix_correction_draft_person_id", "person_id", "saved_at"),)

    correction_id: Mapped[UUID] = mapped_column(ForeignKey("correction.id"), primary_key=True)
    person_id: Mapped[UUID] = mapped_column(ForeignKey(PersonRow.id), primary_key=True)
    version: Mapped[int]
    text: Mapped[str]
    comment: Mapped[str]
    spans: Mapped[list[JsonObject]] = mapped_column(JSONB)
    saved_at: Mapped[datetime] = now_column()


class EffectRow(Base):
    """A correction as measured under one policy version, before or after an update that used it."""

    __tablename__ = "correction_effect"
    __table_args__ = (
        UniqueConstraint("correction_id", "update_id", "side"),
        one_of("side", EffectSide),
        one_of("status", EffectStatus),
        CheckConstraint("status <> 'gone' OR reason IS NOT NULL", name="gone_has_a_reason"),
        CheckConstraint("status <> 'measured' OR text_logprob IS NOT NULL", name="measured_has_logprobs"),
        Index("ix_correction_effect_work", "not_before", postgresql_where=text("status = 'pending'")),
    )

    id: Mapped[UUID] = id_column()
    correction_id: Mapped[UUID] = mapped_column(ForeignKey("correction.id"))
    update_id: Mapped[UUID] = mapped_column(ForeignKey(UpdateRow.id))
    side: Mapped[str]
    version: Mapped[str]
    status: Mapped[str] = mapped_column(default=EffectStatus.PENDING.value)
    reason: Mapped[str | None]
    attempts: Mapped[int] = mapped_column(server_default="0")
    failures: Mapped[int] = mapped_column(server_default="0")
    not_before: Mapped[datetime] = mapped_column(server_default=func.now())
    sent_at: Mapped[datetime | None]
    num_tokens: Mapped[int | None]
    span_start: Mapped[int | None]
    span_end: Mapped[int | None]
    text_logprob: Mapped[float | None] = mapped_column(Float)
    span_logprob: Mapped[float | None] = mapped_column(Float)
    answer: Mapped[str | None]
    measured_at: Mapped[datetime | None]
