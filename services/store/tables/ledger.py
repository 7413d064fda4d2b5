"""The ledger: lessons, the updates that used them, the policy versions made of updates."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, LargeBinary, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from services.contracts.base import JsonObject
from services.contracts.lessons import LessonStatus
from services.contracts.policies import PolicyStatus
from services.contracts.updates import UpdateStatus
from services.store.tables.base import Base, id_column, lineage_column, now_column, one_of
from services.store.tables.loop import AnswerRow, GroupRow


class LessonRow(Base):
    """A rollout with the answers that may train it; `split` and `purpose` exist to make the constraint possible."""

    __tablename__ = "lesson"
    __table_args__ = (
        ForeignKeyConstraint(["rollout_id", "split", "purpose"], ["rollout.id", "rollout.split", "rollout.purpose"]),
        CheckConstraint("split = 'train' AND purpose = 'train'", name="train_only"),
        CheckConstraint("status <> 'claimed' OR (owner IS NOT NULL AND lease_until IS NOT NULL)", name="claim"),
        UniqueConstraint("rollout_id", "ordinal"),
        one_of("status", LessonStatus),
        Index("ix_lesson_work", "lineage_id", "status", "group_id"),
        Index("ix_lesson_group_id", "group_id"),
    )

    id: Mapped[UUID] = id_column()
    lineage_id: Mapped[UUID] = lineage_column()
    rollout_id: Mapped[UUID]
    split: Mapped[str]
    purpose: Mapped[str]
    group_id: Mapped[UUID] = mapped_column(ForeignKey(GroupRow.id))
    ordinal: Mapped[int]
    late: Mapped[bool] = mapped_column(server_default="false")
    status: Mapped[str] = mapped_column(default=LessonStatus.OPEN.value)
    reason: Mapped[str | None]
    owner: Mapped[UUID | None]
    lease_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = now_column()


class LessonAnswerRow(Base):
    """Which answers a lesson may use."""

    __tablename__ = "lesson_answer"
    __table_args__ = (Index("ix_lesson_answer_answer_id", "answer_id"),)

    lesson_id: Mapped[UUID] = mapped_column(ForeignKey("lesson.id"), primary_key=True)
    answer_id: Mapped[UUID] = mapped_column(ForeignKey(AnswerRow.id), primary_key=True)


class UpdateRow(Base):
    """One optimizer step of the ledger."""

    __tablename__ = "update"
    __table_args__ = (
        one_of("status", UpdateStatus),
        Index(
            "uq_update_number",
            "lineage_id",
            "number",
            unique=True,
            postgresql_where=text("status IN ('started', 'applied')"),
        ),
        CheckConstraint("status <> 'applied' OR checkpoint_sha256 IS NOT NULL", name="applied_has_a_checkpoint"),
        Index(
            "ix_update_effects_due",
            "lineage_id",
            "number",
            postgresql_where=text("status = 'applied' AND NOT effects_planned"),
        ),
    )

    id: Mapped[UUID] = id_column()
    lineage_id: Mapped[UUID] = lineage_column()
    number: Mapped[int]
    status: Mapped[str] = mapped_column(default=UpdateStatus.STARTED.value)
    reason: Mapped[str | None]
    owner: Mapped[UUID]
    objective: Mapped[str]
    settings: Mapped[JsonObject]
    metrics: Mapped[JsonObject] = mapped_column(default=dict)
    parent_sha256: Mapped[str | None]
    fell_back_to: Mapped[str | None]
    """The version whose checkpoint the parent is, where training had fallen back instead of going on."""
    checkpoint_sha256: Mapped[str | None]
    batch_sha256: Mapped[str]
    started_at: Mapped[datetime] = now_column()
    applied_at: Mapped[datetime | None]
    effects_planned: Mapped[bool] = mapped_column(server_default="false")


class UpdateLessonRow(Base):
    """The part of one lesson in one update. A partial unique index guarantees one counting update per lesson."""

    __tablename__ = "update_lesson"
    __table_args__ = (
        CheckConstraint("status IN ('started', 'applied', 'abandoned', 'undone')", name="status"),
        Index("ix_update_lesson_lesson_id", "lesson_id"),
        Index(
            "uq_update_lesson_counts",
            "lesson_id",
            unique=True,
            postgresql_where=text("status IN ('started', 'applied')"),
        ),
        Index(
            "ix_update_lesson_terms",
            "terms",
            postgresql_using="gin",
            postgresql_ops={"terms": "jsonb_path_ops"},
        ),
    )

    update_id: Mapped[UUID] = mapped_column(ForeignKey("update.id"), primary_key=True)
    lesson_id: Mapped[UUID] = mapped_column(ForeignKey("lesson.id"), primary_key=True)
    status: Mapped[str] = mapped_column(default=UpdateStatus.STARTED.value)
    baseline_group: Mapped[str | None]
    terms: Mapped[list[JsonObject]] = mapped_column(JSONB, default=list)
    future_nonzero: Mapped[bool] = mapped_column(server_default="false")
    staleness: Mapped[int | None]
    token_costs: Mapped[list[float] | None]


class TeacherChoicesRow(Base):
    """The tokens our own teacher found likeliest along one lesson of one update: see `store.ledger.distributions`."""

    __tablename__ = "teacher_choices"
    __table_args__ = (
        ForeignKeyConstraint(
            ["update_id", "lesson_id"], ["update_lesson.update_id", "update_lesson.lesson_id"], ondelete="CASCADE"
        ),
    )

    update_id: Mapped[UUID] = mapped_column(primary_key=True)
    lesson_id: Mapped[UUID] = mapped_column(primary_key=True)
    num_rows: Mapped[int]
    width: Mapped[int]
    packed: Mapped[bytes] = mapped_column(LargeBinary)


class PolicyVersionRow(Base):
    """Published weights; a name is never used twice and at most one version of a lineage serves."""

    __tablename__ = "policy_version"
    __table_args__ = (
        UniqueConstraint("lineage_id", "name"),
        UniqueConstraint("lineage_id", "number"),
        one_of("status", PolicyStatus),
        Index("uq_policy_version_serving", "lineage_id", unique=True, postgresql_where=text("status = 'serving'")),
        CheckConstraint("number = 0 OR artifact_sha256 IS NOT NULL", name="has_weights"),
    )

    id: Mapped[UUID] = id_column()
    lineage_id: Mapped[UUID] = lineage_column()
    number: Mapped[int]
    name: Mapped[str]
    parent_id: Mapped[UUID | None] = mapped_column(ForeignKey("policy_version.id"))
    status: Mapped[str] = mapped_column(default=PolicyStatus.CANDIDATE.value)
    reason: Mapped[str | None]
    artifact_sha256: Mapped[str | None]
    update_number: Mapped[int] = mapped_column(server_default="0")
    gate: Mapped[JsonObject | None] = mapped_column(JSONB(none_as_null=True))
    created_at: Mapped[datetime] = now_column()
    served_at: Mapped[datetime | None]
    weights_deleted_at: Mapped[datetime | None]
    """When retention deleted the weights of a version that no longer serves; the version cannot come back then."""


class FallbackRow(Base):
    """Training went on from a version that serves instead of from its last update: the gate had refused too many.

    version_update: the update that made the version; those after it up to `after_update` were left behind.
    """

    __tablename__ = "fallback"
    __table_args__ = (
        CheckConstraint("version_update <= after_update", name="goes_back"),
        Index("ix_fallback_lineage_id", "lineage_id", "id"),
    )

    id: Mapped[UUID] = id_column()
    lineage_id: Mapped[UUID] = lineage_column()
    version_id: Mapped[UUID] = mapped_column(ForeignKey("policy_version.id"))
    version_update: Mapped[int]
    after_update: Mapped[int]
    checkpoint_sha256: Mapped[str]
    fresh_optimizer: Mapped[bool]
    num_refused: Mapped[int]
    reason: Mapped[str | None]
    created_at: Mapped[datetime] = now_column()
