"""The loop: from the task to the answers about a rollout.

Only tasks of the split `train` train, by a chain of composite foreign keys: task(id, split) <- rollout(id, split,
purpose) <- lesson(split = 'train', purpose = 'train'). Solutions exist for `train` tasks only.
"""

from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    CheckConstraint,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from services.contracts.answers import AnswerStatus
from services.contracts.base import JsonObject
from services.contracts.consultations import ConsultationStatus
from services.contracts.evaluations import EvaluationStatus
from services.contracts.experts import ExpertStatus, OwnKind
from services.contracts.rollouts import GroupStatus, Purpose, RolloutStatus
from services.contracts.tasks import Split
from services.store.tables.base import Base, LineageRow, id_column, lineage_column, now_column, one_of


class LoopRow(Base):
    """How far a lineage's loop may go: running or paused, and the bounds the sampler keeps."""

    __tablename__ = "loop"

    lineage_id: Mapped[UUID] = mapped_column(ForeignKey(LineageRow.id), primary_key=True)
    sampling: Mapped[bool] = mapped_column(server_default="false")
    training: Mapped[bool] = mapped_column(server_default="true")
    max_updates: Mapped[int | None]
    blocked_by: Mapped[str | None]
    """Why the sampler does not draw although it is on, as the last sweep found: too little room on a disk."""


QUESTION: Final = '$[*] ? (@.role != "system")'
"""Of a task's messages, as a path: those that ask."""


class TaskRow(Base):
    """A task."""

    __tablename__ = "task"
    __table_args__ = (
        UniqueConstraint("lineage_id", "key"),
        UniqueConstraint("id", "split"),
        one_of("split", Split),
        CheckConstraint("split = 'train' OR NOT jsonb_exists(metadata, 'reference')", name="reference_is_train_only"),
        CheckConstraint(
            "split = 'train' OR NOT jsonb_exists(metadata, 'precedents')", name="precedents_are_train_only"
        ),
        Index("ix_task_family", "lineage_id", "domain", "family"),
        Index("ix_task_messages", "lineage_id", "messages_sha256"),
        Index(
            "ix_task_question",
            "lineage_id",
            text(f"md5(jsonb_path_query_array(messages, '{QUESTION}')::text)"),
        ),
        Index("ix_task_draw", "lineage_id", "split", "domain", "num_rollouts", "id"),
    )

    id: Mapped[UUID] = id_column()
    lineage_id: Mapped[UUID] = lineage_column()
    key: Mapped[str]
    domain: Mapped[str]
    family: Mapped[str]
    split: Mapped[str]
    messages: Mapped[list[JsonObject]] = mapped_column(JSONB)
    messages_sha256: Mapped[str]
    metadata_: Mapped[JsonObject] = mapped_column("metadata")
    content_sha256: Mapped[str]
    num_groups: Mapped[int] = mapped_column(server_default="0")
    num_rollouts: Mapped[int] = mapped_column(server_default="0")
    drawn_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = now_column()


class EvaluationRow(Base):
    """A policy version measured on a split."""

    __tablename__ = "evaluation"
    __table_args__ = (
        one_of("status", EvaluationStatus),
        CheckConstraint("split <> 'train'", name="not_on_train"),
    )

    id: Mapped[UUID] = id_column()
    lineage_id: Mapped[UUID] = lineage_column()
    policy_version: Mapped[str]
    split: Mapped[str]
    status: Mapped[str] = mapped_column(default=EvaluationStatus.RUNNING.value)
    settings: Mapped[JsonObject]
    created_at: Mapped[datetime] = now_column()
    finished_at: Mapped[datetime | None]


class GroupRow(Base):
    """One prompt to be drawn `size` times; the durable row behind a sampling message."""

    __tablename__ = "rollout_group"
    __table_args__ = (
        ForeignKeyConstraint(["task_id", "split"], ["task.id", "task.split"]),
        one_of("status", GroupStatus),
        one_of("purpose", Purpose),
        CheckConstraint("purpose <> 'train' OR split = 'train'", name="train_draws_train_tasks"),
        CheckConstraint("num_shown BETWEEN 0 AND size", name="num_shown_range"),
        CheckConstraint("num_shown = 0 OR context IS NOT NULL", name="shown_has_a_context"),
        CheckConstraint("num_shown = 0 OR split = 'train'", name="contexts_are_train_only"),
        Index("ix_rollout_group_work", "status", "not_before"),
        Index("ix_rollout_group_evaluation", "evaluation_id"),
        Index(
            "ix_rollout_group_shown_answers",
            text("(context -> 'answers')"),
            postgresql_using="gin",
            postgresql_where=text("context IS NOT NULL"),
        ),
        Index("ix_rollout_group_dead", "lineage_id", "id", postgresql_where=text("status = 'dead'")),
    )

    id: Mapped[UUID] = id_column()
    lineage_id: Mapped[UUID] = lineage_column()
    task_id: Mapped[UUID]
    split: Mapped[str]
    purpose: Mapped[str]
    evaluation_id: Mapped[UUID | None] = mapped_column(ForeignKey("evaluation.id"))
    policy_version: Mapped[str | None]
    size: Mapped[int]
    sampling: Mapped[JsonObject]
    external: Mapped[bool] = mapped_column(server_default="false")
    context: Mapped[JsonObject | None] = mapped_column(JSONB(none_as_null=True))
    """What is shown to the teacher that draws the group's last `num_shown` rollouts: a `ShownContext`."""
    num_shown: Mapped[int] = mapped_column(server_default="0")
    status: Mapped[str] = mapped_column(default=GroupStatus.PENDING.value)
    reason: Mapped[str | None]
    attempts: Mapped[int] = mapped_column(server_default="0")
    failures: Mapped[int] = mapped_column(server_default="0")
    lease_until: Mapped[datetime | None]
    not_before: Mapped[datetime] = mapped_column(server_default=func.now())
    sent_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = now_column()


class RolloutRow(Base):
    """One sampled answer, token by token."""

    __tablename__ = "rollout"
    __table_args__ = (
        ForeignKeyConstraint(["task_id", "split"], ["task.id", "task.split"]),
        UniqueConstraint("id", "split", "purpose"),
        UniqueConstraint("id", "split"),
        UniqueConstraint("group_id", "index_in_group"),
        one_of("status", RolloutStatus),
        one_of("purpose", Purpose),
        CheckConstraint("cardinality(token_ids) = cardinality(action_mask)", name="mask_is_aligned"),
        CheckConstraint(
            "sampler_logprobs IS NULL OR cardinality(token_ids) = cardinality(sampler_logprobs)",
            name="logprobs_are_aligned",
        ),
        CheckConstraint("purpose <> 'train' OR split = 'train'", name="train_rollouts_are_of_train_tasks"),
        CheckConstraint("status <> 'set_aside' OR reason IS NOT NULL", name="set_aside_has_a_reason"),
        CheckConstraint("NOT shown OR sampler_logprobs IS NULL", name="shown_has_no_logprobs"),
        Index("ix_rollout_task_id_id", "task_id", "id"),
        Index(
            "ix_rollout_success",
            "task_id",
            "id",
            postgresql_where=text("purpose = 'train' AND NOT shown AND score > 0.5"),
        ),
        Index("ix_rollout_open", "id", postgresql_where=text("status = 'open'")),
        Index("ix_rollout_purpose", "lineage_id", "purpose", "id"),
        Index("ix_rollout_policy_version", "lineage_id", "policy_version", "id"),
        Index("ix_rollout_set_aside", "lineage_id", "id", postgresql_where=text("status = 'set_aside'")),
    )

    id: Mapped[UUID] = id_column()
    lineage_id: Mapped[UUID] = lineage_column()
    task_id: Mapped[UUID]
    split: Mapped[str]
    purpose: Mapped[str]
    group_id: Mapped[UUID] = mapped_column(ForeignKey("rollout_group.id"))
    index_in_group: Mapped[int]
    status: Mapped[str] = mapped_column(default=RolloutStatus.OPEN.value)
    reason: Mapped[str | None]
    policy_version: Mapped[str | None]
    prompt_token_ids: Mapped[list[int]]
    token_ids: Mapped[list[int]]
    sampler_logprobs: Mapped[list[float] | None]
    action_mask: Mapped[list[bool]]
    tokenizer_hash: Mapped[str]
    tokenized_at_ingest: Mapped[bool] = mapped_column(server_default="false")
    sampling: Mapped[JsonObject | None]
    text: Mapped[str]
    turns: Mapped[list[JsonObject] | None] = mapped_column(JSONB)
    answer_start: Mapped[int] = mapped_column(server_default="0")
    finish_reason: Mapped[str]
    shown: Mapped[bool] = mapped_column(server_default="false")
    """Whether the teacher drew it, after its group's context: it trains the local term alone and counts in no rate."""
    score: Mapped[float | None] = mapped_column(Float)
    created_at: Mapped[datetime] = now_column()
    settled_at: Mapped[datetime | None]

    @property
    def num_tokens(self) -> int:
        """Response tokens."""
        return len(self.token_ids)


class ExpertRow(Base):
    """A registered expert service: it is known by its id and endpoint, whatever it calls itself. A new version of it
    is a new row of the same endpoint."""

    __tablename__ = "expert"
    __table_args__ = (
        one_of("status", ExpertStatus),
        one_of("own", OwnKind),
        Index("uq_expert_live_name", "name", unique=True, postgresql_where=text("status <> 'retired' AND own IS NULL")),
        Index("uq_expert_live_endpoint", "endpoint", unique=True, postgresql_where=text("status <> 'retired'")),
        Index("uq_expert_live_own", "own", unique=True, postgresql_where=text("status <> 'retired'")),
    )

    id: Mapped[UUID] = id_column()
    lineage_id: Mapped[UUID] = lineage_column()
    name: Mapped[str]
    endpoint: Mapped[str]
    version: Mapped[str]
    descriptor: Mapped[JsonObject]
    status: Mapped[str] = mapped_column(default=ExpertStatus.PROBATION.value)
    reason: Mapped[str | None]
    granted: Mapped[list[str]]
    trusted: Mapped[bool]
    weight: Mapped[float] = mapped_column(Float)
    group_fraction: Mapped[float] = mapped_column(Float, server_default="1")
    rollouts_per_group: Mapped[int | None]
    top_k: Mapped[int] = mapped_column(server_default="20")
    temperature: Mapped[float] = mapped_column(Float, server_default="1")
    num_places: Mapped[int] = mapped_column(server_default="8")
    num_samples: Mapped[int] = mapped_column(server_default="2")
    consecutive_failures: Mapped[int] = mapped_column(server_default="0")
    num_pauses: Mapped[int] = mapped_column(server_default="0")
    """Looks and quarantines since it last answered; each doubles the next pause."""
    retry_at: Mapped[datetime | None]
    """When it is looked after, while it is quarantined; none: at once."""
    was_active: Mapped[bool] = mapped_column(server_default="false")
    """Whether it was active before it was quarantined: then its answers are waited for, and it becomes so again."""
    signing_secret: Mapped[str | None]
    report: Mapped[JsonObject]
    own: Mapped[str | None]
    """Which of our own experts it is; set by our installer alone, whatever a service calls itself."""
    looked_at: Mapped[datetime | None]
    """When its descriptor was last compared with the one that was registered."""
    created_at: Mapped[datetime] = now_column()


class ConsultationRow(Base):
    """One consultation: one expert is asked about one rollout."""

    __tablename__ = "consultation"
    __table_args__ = (
        UniqueConstraint("rollout_id", "expert_id"),
        UniqueConstraint("id", "rollout_id"),
        one_of("status", ConsultationStatus),
        CheckConstraint("status <> 'dead' OR reason IS NOT NULL", name="dead_has_a_reason"),
        Index("ix_consultation_work", "status", "not_before"),
        Index("ix_consultation_expert_id_id", "expert_id", "id"),
        Index("ix_consultation_expert_status", "expert_id", "status", "id"),
        Index("ix_consultation_dead", "lineage_id", "id", postgresql_where=text("status = 'dead'")),
    )

    id: Mapped[UUID] = id_column()
    lineage_id: Mapped[UUID] = lineage_column()
    rollout_id: Mapped[UUID] = mapped_column(ForeignKey("rollout.id"))
    expert_id: Mapped[UUID] = mapped_column(ForeignKey("expert.id"))
    expert_version: Mapped[str]
    stage: Mapped[int]
    ask: Mapped[JsonObject]
    shown: Mapped[list[UUID]] = mapped_column(ARRAY(Uuid), server_default="{}")
    """The answers in the consultation's context, in its order."""
    status: Mapped[str] = mapped_column(default=ConsultationStatus.PENDING.value)
    reason: Mapped[str | None]
    attempts: Mapped[int] = mapped_column(server_default="0")
    failures: Mapped[int] = mapped_column(server_default="0")
    lease_until: Mapped[datetime | None]
    not_before: Mapped[datetime] = mapped_column(server_default=func.now())
    sent_at: Mapped[datetime | None]
    deadline: Mapped[datetime]
    created_at: Mapped[datetime] = now_column()
    settled_at: Mapped[datetime | None]


class AttemptRow(Base):
    """One try at asking: `ok`, `failed` with its reason, or still open."""

    __tablename__ = "consultation_attempt"
    __table_args__ = (CheckConstraint("outcome IN ('ok', 'failed')", name="outcome"),)

    consultation_id: Mapped[UUID] = mapped_column(ForeignKey("consultation.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    outcome: Mapped[str | None]
    reason: Mapped[str | None]
    started_at: Mapped[datetime] = now_column()
    ended_at: Mapped[datetime | None]


class AnswerRow(Base):
    """An expert's answer. A solution is kept for train tasks only."""

    __tablename__ = "answer"
    __table_args__ = (
        ForeignKeyConstraint(["consultation_id", "rollout_id"], ["consultation.id", "consultation.rollout_id"]),
        ForeignKeyConstraint(["rollout_id", "split"], ["rollout.id", "rollout.split"]),
        CheckConstraint("solution IS NULL OR split = 'train'", name="solutions_are_train_only"),
        CheckConstraint("precedents IS NULL OR split = 'train'", name="precedents_are_train_only"),
        CheckConstraint("score BETWEEN 0 AND 1", name="score_range"),
        one_of("status", AnswerStatus),
        Index("uq_answer_current", "consultation_id", unique=True, postgresql_where=text("status = 'current'")),
        Index("ix_answer_rollout_id", "rollout_id"),
        Index("ix_answer_expert_id", "expert_id", "id"),
    )

    id: Mapped[UUID] = id_column()
    lineage_id: Mapped[UUID] = lineage_column()
    consultation_id: Mapped[UUID]
    rollout_id: Mapped[UUID]
    split: Mapped[str]
    expert_id: Mapped[UUID] = mapped_column(ForeignKey("expert.id"))
    expert_version: Mapped[str]
    status: Mapped[str] = mapped_column(default=AnswerStatus.CURRENT.value)
    could_train: Mapped[bool] = mapped_column(server_default="true")
    """Whether its expert could train when it answered; see `services.store.loop.trust`."""
    derived_from: Mapped[list[str]] = mapped_column(server_default="{}")
    """The metadata keys of the task that it may quote, its own or through answers that its expert was shown."""
    score: Mapped[float | None] = mapped_column(Float)
    feedback: Mapped[JsonObject | None] = mapped_column(JSONB(none_as_null=True))
    solution: Mapped[str | None]
    precedents: Mapped[list[JsonObject] | None] = mapped_column(JSONB(none_as_null=True))
    distribution_kind: Mapped[str | None]
    evidence: Mapped[JsonObject | None] = mapped_column(JSONB(none_as_null=True))
    created_at: Mapped[datetime] = now_column()


class DistributionRow(Base):
    """An expert distribution, packed: see `store.ledger.distributions`."""

    __tablename__ = "expert_distribution"
    __table_args__ = (CheckConstraint("kind IN ('topk', 'samples')", name="kind"),)

    answer_id: Mapped[UUID] = mapped_column(ForeignKey("answer.id"), primary_key=True)
    kind: Mapped[str]
    tokenizer_hash: Mapped[str | None]
    temperature: Mapped[float] = mapped_column(Float)
    num_rows: Mapped[int]
    width: Mapped[int]
    packed: Mapped[bytes] = mapped_column(LargeBinary)
