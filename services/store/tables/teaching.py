"""What teaches: measurements of sources, the tasks they were measured on, and the scouts of tasks."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, Float, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from services.contracts.measurements import MeasurementStatus
from services.contracts.sources import ContextSource
from services.contracts.templates import Template
from services.store.tables.base import Base, id_column, lineage_column, now_column, one_of
from services.store.tables.loop import ExpertRow, GroupRow, TaskRow


class MeasurementRow(Base):
    """One source of one expert in one domain, measured against the policy itself; see `contracts.measurements`."""

    __tablename__ = "measurement"
    __table_args__ = (
        one_of("status", MeasurementStatus),
        one_of("source", ContextSource),
        one_of("template", Template),
        CheckConstraint("(status = 'measuring') = (decided_at IS NULL)", name="decided"),
        Index(
            "uq_measurement_under_way",
            "expert_id",
            "source",
            "template",
            "domain",
            unique=True,
            postgresql_where=text("status = 'measuring'"),
        ),
        Index("ix_measurement_newest", "lineage_id", "expert_id", "source", "template", "domain", "id"),
    )

    id: Mapped[UUID] = id_column()
    lineage_id: Mapped[UUID] = lineage_column()
    expert_id: Mapped[UUID] = mapped_column(ForeignKey(ExpertRow.id))
    source: Mapped[str]
    template: Mapped[str]
    domain: Mapped[str]
    policy_version: Mapped[str]
    temperature: Mapped[float] = mapped_column(Float)
    asked_until: Mapped[datetime | None]
    """Whether a person asked for it: then it goes on while the loop is paused, whatever its share of the draws."""
    status: Mapped[str] = mapped_column(default=MeasurementStatus.MEASURING.value)
    reason: Mapped[str | None]
    num_looks: Mapped[int] = mapped_column(server_default="0")
    num_tasks: Mapped[int] = mapped_column(server_default="0")
    num_tokens: Mapped[int] = mapped_column(server_default="0")
    gap: Mapped[float | None] = mapped_column(Float)
    gap_low: Mapped[float | None] = mapped_column(Float)
    gap_high: Mapped[float | None] = mapped_column(Float)
    net: Mapped[float | None] = mapped_column(Float)
    net_low: Mapped[float | None] = mapped_column(Float)
    net_high: Mapped[float | None] = mapped_column(Float)
    created_at: Mapped[datetime] = now_column()
    decided_at: Mapped[datetime | None]


class MeasuredTaskRow(Base):
    """A task of a measurement, with the groups that were drawn for it. Measurements of one round share the student's
    group."""

    __tablename__ = "measured_task"
    __table_args__ = (
        Index("ix_measured_task_student", "student_group_id"),
        Index("ix_measured_task_teacher", "teacher_group_id"),
        Index("ix_measured_task_control", "control_group_id"),
    )

    measurement_id: Mapped[UUID] = mapped_column(ForeignKey(MeasurementRow.id), primary_key=True)
    task_id: Mapped[UUID] = mapped_column(ForeignKey(TaskRow.id), primary_key=True)
    num_sharing: Mapped[int] = mapped_column(server_default="1")
    """Measurements that the student's group was drawn for."""
    student_group_id: Mapped[UUID] = mapped_column(ForeignKey(GroupRow.id))
    teacher_group_id: Mapped[UUID | None] = mapped_column(ForeignKey(GroupRow.id))
    control_group_id: Mapped[UUID | None] = mapped_column(ForeignKey(GroupRow.id))


class ScoutRow(Base):
    """An expert that is asked about a task ahead of its train group, once, and the group drawn for that. Experts that a
    task is scouted for together share the group."""

    __tablename__ = "scout"
    __table_args__ = (Index("ix_scout_group", "group_id"),)

    task_id: Mapped[UUID] = mapped_column(ForeignKey(TaskRow.id), primary_key=True)
    expert_id: Mapped[UUID] = mapped_column(ForeignKey(ExpertRow.id), primary_key=True)
    group_id: Mapped[UUID] = mapped_column(ForeignKey(GroupRow.id))
