"""The tables: the durable truth of every noun.

Status columns are checked twice by the database itself: a CHECK knows the words, and a trigger (made by the first
migration) looks every change up in `status_change`, which the migration fills from the contracts' tables.
That only tasks of the split `train` train is a chain of composite foreign keys: task(id, split) <- rollout(id, split,
purpose) <- lesson(split = 'train', purpose = 'train'); solutions and corrections exist for `train` only.
"""

from array import array
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    REAL,
    BigInteger,
    Boolean,
    CheckConstraint,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Text,
    TypeDecorator,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from services.contracts.answers import ANSWER_CHANGES, AnswerStatus
from services.contracts.audit import Via
from services.contracts.base import JsonObject, S, StatusChanges
from services.contracts.consultations import CONSULTATION_CHANGES, ConsultationStatus
from services.contracts.corrections import CORRECTION_CHANGES, CorrectionStatus
from services.contracts.effects import EFFECT_CHANGES, EffectSide, EffectStatus
from services.contracts.evaluations import EVALUATION_CHANGES, EvaluationStatus
from services.contracts.experts import EXPERT_CHANGES, ExpertStatus, OwnKind
from services.contracts.ids import new_id
from services.contracts.lessons import LESSON_CHANGES, LessonStatus
from services.contracts.persons import LinkPurpose, Role
from services.contracts.policies import POLICY_CHANGES, PolicyStatus
from services.contracts.rollouts import GROUP_CHANGES, ROLLOUT_CHANGES, GroupStatus, Purpose, RolloutStatus
from services.contracts.tasks import Split
from services.contracts.updates import UPDATE_CHANGES, UpdateStatus

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


def _one_of(column: str, words: type[StrEnum]) -> CheckConstraint:
    listed = ", ".join(f"'{word.value}'" for word in words)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


def _id() -> Mapped[UUID]:
    return mapped_column(primary_key=True, default=new_id)


def _now() -> Mapped[datetime]:
    return mapped_column(server_default=func.now())


def _lineage() -> Mapped[UUID]:
    return mapped_column(ForeignKey("lineage.id"))


class LineageRow(Base):
    """One model being trained."""

    __tablename__ = "lineage"

    id: Mapped[UUID] = _id()
    name: Mapped[str] = mapped_column(unique=True)
    model: Mapped[str]
    base_sha256: Mapped[str]
    tokenizer_hash: Mapped[str]
    vocab_size: Mapped[int]
    created_at: Mapped[datetime] = _now()


class PersonRow(Base):
    """A person or service."""

    __tablename__ = "person"
    __table_args__ = (_one_of("role", Role),)

    id: Mapped[UUID] = _id()
    name: Mapped[str] = mapped_column(unique=True)
    role: Mapped[str]
    created_at: Mapped[datetime] = _now()
    erased_at: Mapped[datetime | None]


class ApiKeyRow(Base):
    """An API key, as the SHA-256 of its 256 random bits. `scopes` narrow what its person's role allows."""

    __tablename__ = "api_key"
    __table_args__ = (Index("ix_api_key_person_id", "person_id"),)

    id: Mapped[UUID] = _id()
    person_id: Mapped[UUID] = mapped_column(ForeignKey("person.id"))
    name: Mapped[str] = mapped_column(server_default="first key")
    prefix: Mapped[str | None]
    key_sha256: Mapped[str] = mapped_column(unique=True)
    scopes: Mapped[list[str] | None]
    created_at: Mapped[datetime] = _now()
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class PasswordRow(Base):
    """A person's password, as argon2id keeps it; apart from the person, so that no view of one can carry it."""

    __tablename__ = "password"

    person_id: Mapped[UUID] = mapped_column(ForeignKey("person.id"), primary_key=True)
    hash: Mapped[str]
    changed_at: Mapped[datetime] = _now()


class LoginSessionRow(Base):
    """A browser that logged in, as the SHA-256 of its cookie; no wider than the key it logged in with."""

    __tablename__ = "login_session"
    __table_args__ = (Index("ix_login_session_person_id_id", "person_id", "id"),)

    id: Mapped[UUID] = _id()
    person_id: Mapped[UUID] = mapped_column(ForeignKey("person.id"))
    key_id: Mapped[UUID | None] = mapped_column(ForeignKey("api_key.id"))
    token_sha256: Mapped[str] = mapped_column(unique=True)
    address: Mapped[str | None]
    agent: Mapped[str | None]
    created_at: Mapped[datetime] = _now()
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class LoginLinkRow(Base):
    """A link that works once: it logs its person in, or lets them set a password."""

    __tablename__ = "login_link"
    __table_args__ = (_one_of("purpose", LinkPurpose),)

    id: Mapped[UUID] = _id()
    person_id: Mapped[UUID] = mapped_column(ForeignKey("person.id"), index=True)
    key_id: Mapped[UUID | None] = mapped_column(ForeignKey("api_key.id"))
    purpose: Mapped[str]
    token_sha256: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = _now()
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]


class LoginAttemptRow(Base):
    """A try at a password that has not succeeded; the name only as its hash, for people type passwords there."""

    __tablename__ = "login_attempt"
    __table_args__ = (
        Index("ix_login_attempt_name_sha256_created_at", "name_sha256", "created_at"),
        Index("ix_login_attempt_address_created_at", "address", "created_at"),
        Index("ix_login_attempt_created_at", "created_at"),
    )

    id: Mapped[UUID] = _id()
    name_sha256: Mapped[str]
    address: Mapped[str]
    created_at: Mapped[datetime] = _now()


class AuditRow(Base):
    """Who did what, when, from where, to which noun. The database refuses to change or delete it."""

    __tablename__ = "audit"
    __table_args__ = (
        _one_of("via", Via),
        Index("ix_audit_person_id_id", "person_id", "id"),
        Index("ix_audit_action_id", "action", "id"),
        Index("ix_audit_noun_id", "noun_id", "id"),
    )

    id: Mapped[UUID] = _id()
    person_id: Mapped[UUID | None] = mapped_column(ForeignKey("person.id"))
    via: Mapped[str]
    credential_id: Mapped[UUID | None]
    address: Mapped[str | None]
    action: Mapped[str]
    noun: Mapped[str]
    noun_id: Mapped[str | None]
    detail: Mapped[JsonObject] = mapped_column(server_default="{}")
    created_at: Mapped[datetime] = _now()


class ErasureRow(Base):
    """A person's text taken out, with what is left of it in numbers."""

    __tablename__ = "erasure"

    id: Mapped[UUID] = _id()
    person_id: Mapped[UUID] = mapped_column(ForeignKey("person.id"), index=True)
    report: Mapped[JsonObject]
    created_at: Mapped[datetime] = _now()


class ErasedTextRow(Base):
    """The hash and length of one text that was taken out."""

    __tablename__ = "erased_text"

    erasure_id: Mapped[UUID] = mapped_column(ForeignKey("erasure.id"), primary_key=True)
    noun: Mapped[str] = mapped_column(primary_key=True)
    noun_id: Mapped[UUID] = mapped_column(primary_key=True)
    field: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str]
    num_chars: Mapped[int]


class IdempotencyRow(Base):
    """The answer given to a POST with an idempotency key, so that the same request again changes nothing."""

    __tablename__ = "idempotency"

    principal: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    route: Mapped[str]
    request_sha256: Mapped[str]
    status_code: Mapped[int]
    body: Mapped[str]
    created_at: Mapped[datetime] = _now()


class TaskRow(Base):
    """A task."""

    __tablename__ = "task"
    __table_args__ = (
        UniqueConstraint("lineage_id", "key"),
        UniqueConstraint("id", "split"),
        _one_of("split", Split),
        CheckConstraint("split = 'train' OR NOT jsonb_exists(metadata, 'reference')", name="reference_is_train_only"),
        Index("ix_task_family", "lineage_id", "domain", "family"),
        Index("ix_task_messages", "lineage_id", "messages_sha256"),
        Index("ix_task_draw", "lineage_id", "split", "domain", "num_groups", "id"),
    )

    id: Mapped[UUID] = _id()
    lineage_id: Mapped[UUID] = _lineage()
    key: Mapped[str]
    domain: Mapped[str]
    family: Mapped[str]
    split: Mapped[str]
    messages: Mapped[list[JsonObject]] = mapped_column(JSONB)
    messages_sha256: Mapped[str]
    metadata_: Mapped[JsonObject] = mapped_column("metadata")
    content_sha256: Mapped[str]
    num_groups: Mapped[int] = mapped_column(server_default="0")
    created_at: Mapped[datetime] = _now()


class EvaluationRow(Base):
    """A policy version measured on a split."""

    __tablename__ = "evaluation"
    __table_args__ = (
        _one_of("status", EvaluationStatus),
        CheckConstraint("split <> 'train' OR settings ->> 'probe' = 'gap'", name="not_on_train"),
    )

    id: Mapped[UUID] = _id()
    lineage_id: Mapped[UUID] = _lineage()
    policy_version: Mapped[str]
    split: Mapped[str]
    status: Mapped[str] = mapped_column(default=EvaluationStatus.RUNNING.value)
    settings: Mapped[JsonObject]
    created_at: Mapped[datetime] = _now()
    finished_at: Mapped[datetime | None]


class GroupRow(Base):
    """One prompt to be drawn `size` times; the durable row behind a sampling message."""

    __tablename__ = "rollout_group"
    __table_args__ = (
        ForeignKeyConstraint(["task_id", "split"], ["task.id", "task.split"]),
        _one_of("status", GroupStatus),
        _one_of("purpose", Purpose),
        CheckConstraint("purpose <> 'train' OR split = 'train'", name="train_draws_train_tasks"),
        Index("ix_rollout_group_work", "status", "not_before"),
        Index("ix_rollout_group_evaluation", "evaluation_id"),
        Index("ix_rollout_group_dead", "lineage_id", "id", postgresql_where=text("status = 'dead'")),
    )

    id: Mapped[UUID] = _id()
    lineage_id: Mapped[UUID] = _lineage()
    task_id: Mapped[UUID]
    split: Mapped[str]
    purpose: Mapped[str]
    evaluation_id: Mapped[UUID | None] = mapped_column(ForeignKey("evaluation.id"))
    policy_version: Mapped[str | None]
    size: Mapped[int]
    sampling: Mapped[JsonObject]
    external: Mapped[bool] = mapped_column(server_default="false")
    status: Mapped[str] = mapped_column(default=GroupStatus.PENDING.value)
    reason: Mapped[str | None]
    attempts: Mapped[int] = mapped_column(server_default="0")
    failures: Mapped[int] = mapped_column(server_default="0")
    lease_until: Mapped[datetime | None]
    not_before: Mapped[datetime] = mapped_column(server_default=func.now())
    sent_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = _now()


class RolloutRow(Base):
    """One sampled answer, token by token."""

    __tablename__ = "rollout"
    __table_args__ = (
        ForeignKeyConstraint(["task_id", "split"], ["task.id", "task.split"]),
        UniqueConstraint("id", "split", "purpose"),
        UniqueConstraint("id", "split"),
        UniqueConstraint("group_id", "index_in_group"),
        _one_of("status", RolloutStatus),
        _one_of("purpose", Purpose),
        CheckConstraint("cardinality(token_ids) = cardinality(action_mask)", name="mask_is_aligned"),
        CheckConstraint(
            "sampler_logprobs IS NULL OR cardinality(token_ids) = cardinality(sampler_logprobs)",
            name="logprobs_are_aligned",
        ),
        CheckConstraint("purpose <> 'train' OR split = 'train'", name="train_rollouts_are_of_train_tasks"),
        CheckConstraint("status <> 'set_aside' OR reason IS NOT NULL", name="set_aside_has_a_reason"),
        Index("ix_rollout_task_id_id", "task_id", "id"),
        Index("ix_rollout_open", "id", postgresql_where=text("status = 'open'")),
        Index("ix_rollout_purpose", "lineage_id", "purpose", "id"),
        Index("ix_rollout_policy_version", "lineage_id", "policy_version", "id"),
        Index("ix_rollout_set_aside", "lineage_id", "id", postgresql_where=text("status = 'set_aside'")),
    )

    id: Mapped[UUID] = _id()
    lineage_id: Mapped[UUID] = _lineage()
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
    score: Mapped[float | None] = mapped_column(Float)
    created_at: Mapped[datetime] = _now()
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
        _one_of("status", ExpertStatus),
        _one_of("own", OwnKind),
        Index("uq_expert_live_name", "name", unique=True, postgresql_where=text("status <> 'retired' AND own IS NULL")),
        Index("uq_expert_live_endpoint", "endpoint", unique=True, postgresql_where=text("status <> 'retired'")),
        Index("uq_expert_live_own", "own", unique=True, postgresql_where=text("status <> 'retired'")),
    )

    id: Mapped[UUID] = _id()
    lineage_id: Mapped[UUID] = _lineage()
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
    created_at: Mapped[datetime] = _now()


class ConsultationRow(Base):
    """One question to one expert about one rollout."""

    __tablename__ = "consultation"
    __table_args__ = (
        UniqueConstraint("rollout_id", "expert_id"),
        UniqueConstraint("id", "rollout_id"),
        _one_of("status", ConsultationStatus),
        CheckConstraint("status <> 'dead' OR reason IS NOT NULL", name="dead_has_a_reason"),
        Index("ix_consultation_work", "status", "not_before"),
        Index("ix_consultation_expert_id_id", "expert_id", "id"),
        Index("ix_consultation_expert_status", "expert_id", "status", "id"),
        Index("ix_consultation_dead", "lineage_id", "id", postgresql_where=text("status = 'dead'")),
    )

    id: Mapped[UUID] = _id()
    lineage_id: Mapped[UUID] = _lineage()
    rollout_id: Mapped[UUID] = mapped_column(ForeignKey("rollout.id"))
    expert_id: Mapped[UUID] = mapped_column(ForeignKey("expert.id"))
    expert_version: Mapped[str]
    stage: Mapped[int]
    ask: Mapped[JsonObject]
    shown: Mapped[list[UUID]] = mapped_column(ARRAY(Uuid), server_default="{}")
    """The answers in the question's context, in its order."""
    status: Mapped[str] = mapped_column(default=ConsultationStatus.PENDING.value)
    reason: Mapped[str | None]
    attempts: Mapped[int] = mapped_column(server_default="0")
    failures: Mapped[int] = mapped_column(server_default="0")
    lease_until: Mapped[datetime | None]
    not_before: Mapped[datetime] = mapped_column(server_default=func.now())
    sent_at: Mapped[datetime | None]
    deadline: Mapped[datetime]
    created_at: Mapped[datetime] = _now()
    settled_at: Mapped[datetime | None]


class AttemptRow(Base):
    """One try at asking: `ok`, `failed` with its reason, or still open."""

    __tablename__ = "consultation_attempt"
    __table_args__ = (CheckConstraint("outcome IN ('ok', 'failed')", name="outcome"),)

    consultation_id: Mapped[UUID] = mapped_column(ForeignKey("consultation.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    outcome: Mapped[str | None]
    reason: Mapped[str | None]
    started_at: Mapped[datetime] = _now()
    ended_at: Mapped[datetime | None]


class AnswerRow(Base):
    """What an expert said. A solution is kept for train tasks only."""

    __tablename__ = "answer"
    __table_args__ = (
        ForeignKeyConstraint(["consultation_id", "rollout_id"], ["consultation.id", "consultation.rollout_id"]),
        ForeignKeyConstraint(["rollout_id", "split"], ["rollout.id", "rollout.split"]),
        CheckConstraint("solution IS NULL OR split = 'train'", name="solutions_are_train_only"),
        CheckConstraint("score BETWEEN 0 AND 1", name="score_range"),
        _one_of("status", AnswerStatus),
        Index("uq_answer_current", "consultation_id", unique=True, postgresql_where=text("status = 'current'")),
        Index("ix_answer_rollout_id", "rollout_id"),
        Index("ix_answer_expert_id", "expert_id", "id"),
    )

    id: Mapped[UUID] = _id()
    lineage_id: Mapped[UUID] = _lineage()
    consultation_id: Mapped[UUID]
    rollout_id: Mapped[UUID]
    split: Mapped[str]
    expert_id: Mapped[UUID] = mapped_column(ForeignKey("expert.id"))
    expert_version: Mapped[str]
    status: Mapped[str] = mapped_column(default=AnswerStatus.CURRENT.value)
    could_train: Mapped[bool] = mapped_column(server_default="true")
    """Whether its expert could train when it answered; see `services.store.loop.trust`."""
    derived_from: Mapped[list[str]] = mapped_column(server_default="{}")
    """The metadata keys of the task that it may quote: those its expert was given, and those of what it was shown."""
    score: Mapped[float | None] = mapped_column(Float)
    feedback: Mapped[JsonObject | None] = mapped_column(JSONB(none_as_null=True))
    solution: Mapped[str | None]
    distribution_kind: Mapped[str | None]
    evidence: Mapped[JsonObject | None] = mapped_column(JSONB(none_as_null=True))
    created_at: Mapped[datetime] = _now()


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
        _one_of("status", CorrectionStatus),
        Index(
            "ix_correction_queue",
            "lineage_id",
            "priority",
            "disagreement",
            "uncertainty",
            "id",
            postgresql_where=text("status = 'open'"),
        ),
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

    id: Mapped[UUID] = _id()
    lineage_id: Mapped[UUID] = _lineage()
    consultation_id: Mapped[UUID] = mapped_column(ForeignKey("consultation.id"), unique=True)
    rollout_id: Mapped[UUID]
    split: Mapped[str]
    status: Mapped[str] = mapped_column(default=CorrectionStatus.OPEN.value)
    priority: Mapped[float] = mapped_column(Float, server_default="0")
    disagreement: Mapped[float] = mapped_column(Float, server_default="0")
    uncertainty: Mapped[float] = mapped_column(Float, server_default="0")
    person_id: Mapped[UUID | None] = mapped_column(ForeignKey("person.id"))
    lease_until: Mapped[datetime | None]
    verdict: Mapped[str | None]
    text: Mapped[str | None]
    comment: Mapped[str | None]
    skip_kind: Mapped[str | None]
    skip_reason: Mapped[str | None]
    skipped_by: Mapped[list[UUID]] = mapped_column(ARRAY(Uuid), server_default="{}")
    """Everybody who skipped it since it was asked for; the kind and reason are those of the last of them."""
    held_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = _now()
    decided_at: Mapped[datetime | None]


class DraftRow(Base):
    """One person's unfinished work on an item; every save raises `version`."""

    __tablename__ = "correction_draft"
    __table_args__ = (Index("ix_correction_draft_person_id", "person_id", "saved_at"),)

    correction_id: Mapped[UUID] = mapped_column(ForeignKey("correction.id"), primary_key=True)
    person_id: Mapped[UUID] = mapped_column(ForeignKey("person.id"), primary_key=True)
    version: Mapped[int]
    text: Mapped[str]
    comment: Mapped[str]
    spans: Mapped[list[JsonObject]] = mapped_column(JSONB)
    saved_at: Mapped[datetime] = _now()


class EffectRow(Base):
    """What one policy version, before or after an update, makes of a correction that the update used."""

    __tablename__ = "correction_effect"
    __table_args__ = (
        UniqueConstraint("correction_id", "update_id", "side"),
        _one_of("side", EffectSide),
        _one_of("status", EffectStatus),
        CheckConstraint("status <> 'gone' OR reason IS NOT NULL", name="gone_has_a_reason"),
        CheckConstraint("status <> 'measured' OR text_logprob IS NOT NULL", name="measured_has_logprobs"),
        Index("ix_correction_effect_work", "not_before", postgresql_where=text("status = 'pending'")),
    )

    id: Mapped[UUID] = _id()
    correction_id: Mapped[UUID] = mapped_column(ForeignKey("correction.id"))
    update_id: Mapped[UUID] = mapped_column(ForeignKey("update.id"))
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


class LessonRow(Base):
    """A rollout with the answers that may train it; `split` and `purpose` exist to make the constraint possible."""

    __tablename__ = "lesson"
    __table_args__ = (
        ForeignKeyConstraint(["rollout_id", "split", "purpose"], ["rollout.id", "rollout.split", "rollout.purpose"]),
        CheckConstraint("split = 'train' AND purpose = 'train'", name="train_only"),
        CheckConstraint("status <> 'claimed' OR (owner IS NOT NULL AND lease_until IS NOT NULL)", name="claim"),
        UniqueConstraint("rollout_id", "ordinal"),
        _one_of("status", LessonStatus),
        Index("ix_lesson_work", "lineage_id", "status", "group_id"),
        Index("ix_lesson_group_id", "group_id"),
    )

    id: Mapped[UUID] = _id()
    lineage_id: Mapped[UUID] = _lineage()
    rollout_id: Mapped[UUID]
    split: Mapped[str]
    purpose: Mapped[str]
    group_id: Mapped[UUID] = mapped_column(ForeignKey("rollout_group.id"))
    ordinal: Mapped[int]
    late: Mapped[bool] = mapped_column(server_default="false")
    status: Mapped[str] = mapped_column(default=LessonStatus.OPEN.value)
    reason: Mapped[str | None]
    owner: Mapped[UUID | None]
    lease_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = _now()


class LessonAnswerRow(Base):
    """Which answers a lesson may use."""

    __tablename__ = "lesson_answer"
    __table_args__ = (Index("ix_lesson_answer_answer_id", "answer_id"),)

    lesson_id: Mapped[UUID] = mapped_column(ForeignKey("lesson.id"), primary_key=True)
    answer_id: Mapped[UUID] = mapped_column(ForeignKey("answer.id"), primary_key=True)


class UpdateRow(Base):
    """One optimizer step of the ledger."""

    __tablename__ = "update"
    __table_args__ = (
        _one_of("status", UpdateStatus),
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

    id: Mapped[UUID] = _id()
    lineage_id: Mapped[UUID] = _lineage()
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
    started_at: Mapped[datetime] = _now()
    applied_at: Mapped[datetime | None]
    effects_planned: Mapped[bool] = mapped_column(server_default="false")


class UpdateLessonRow(Base):
    """What one lesson gave to one update. The partial unique index is the guarantee: one counting update a lesson."""

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
        _one_of("status", PolicyStatus),
        Index("uq_policy_version_serving", "lineage_id", unique=True, postgresql_where=text("status = 'serving'")),
        CheckConstraint("number = 0 OR artifact_sha256 IS NOT NULL", name="has_weights"),
    )

    id: Mapped[UUID] = _id()
    lineage_id: Mapped[UUID] = _lineage()
    number: Mapped[int]
    name: Mapped[str]
    parent_id: Mapped[UUID | None] = mapped_column(ForeignKey("policy_version.id"))
    status: Mapped[str] = mapped_column(default=PolicyStatus.CANDIDATE.value)
    reason: Mapped[str | None]
    artifact_sha256: Mapped[str | None]
    update_number: Mapped[int] = mapped_column(server_default="0")
    gate: Mapped[JsonObject | None] = mapped_column(JSONB(none_as_null=True))
    created_at: Mapped[datetime] = _now()
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

    id: Mapped[UUID] = _id()
    lineage_id: Mapped[UUID] = _lineage()
    version_id: Mapped[UUID] = mapped_column(ForeignKey("policy_version.id"))
    version_update: Mapped[int]
    after_update: Mapped[int]
    checkpoint_sha256: Mapped[str]
    fresh_optimizer: Mapped[bool]
    num_refused: Mapped[int]
    reason: Mapped[str | None]
    created_at: Mapped[datetime] = _now()


class ProcessRow(Base):
    """The last word of a running process: what it does and its counters (seconds in the model, waiting, ...)."""

    __tablename__ = "process"

    name: Mapped[str] = mapped_column(primary_key=True)
    pid: Mapped[int] = mapped_column(BigInteger)
    activity: Mapped[str]
    counters: Mapped[JsonObject]
    started_at: Mapped[datetime] = _now()
    beat_at: Mapped[datetime] = _now()


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
    """What one statement added to a tally, or took away; triggers write it, the maintenance task folds it in."""

    __tablename__ = "tally_change"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    lineage_id: Mapped[UUID]
    noun: Mapped[str]
    kind: Mapped[str]
    word: Mapped[str]
    num: Mapped[int] = mapped_column(BigInteger)


class LoopRow(Base):
    """How far a lineage's loop may go: running or paused, and the bounds the sampler keeps."""

    __tablename__ = "loop"

    lineage_id: Mapped[UUID] = mapped_column(ForeignKey("lineage.id"), primary_key=True)
    sampling: Mapped[bool] = mapped_column(server_default="false")
    training: Mapped[bool] = mapped_column(server_default="true")
    max_updates: Mapped[int | None]
    blocked_by: Mapped[str | None]
    """What keeps the sampler from drawing though it is on, as the last sweep found it: too little room on a disk."""


class RetentionRow(Base):
    """How far a walk through old rows has come, so that each sweep reads on where the last one ended."""

    __tablename__ = "retention"

    name: Mapped[str] = mapped_column(primary_key=True)
    mark: Mapped[UUID]
    num_deleted: Mapped[int] = mapped_column(BigInteger, server_default="0")
    walked_at: Mapped[datetime] = _now()


class StatusChangeRow(Base):
    """Every allowed status change, filled by migrations from the contracts; triggers look changes up here."""

    __tablename__ = "status_change"

    noun: Mapped[str] = mapped_column(primary_key=True)
    old: Mapped[str] = mapped_column(primary_key=True)
    new: Mapped[str] = mapped_column(primary_key=True)


def _words(changes: StatusChanges[S]) -> dict[str, frozenset[str]]:
    return {old.value: frozenset(new.value for new in news) for old, news in changes.items()}


STATUS_CHANGES: dict[str, dict[str, frozenset[str]]] = {
    "rollout_group": _words(GROUP_CHANGES),
    "rollout": _words(ROLLOUT_CHANGES),
    "expert": _words(EXPERT_CHANGES),
    "consultation": _words(CONSULTATION_CHANGES),
    "answer": _words(ANSWER_CHANGES),
    "correction": _words(CORRECTION_CHANGES),
    "correction_effect": _words(EFFECT_CHANGES),
    "lesson": _words(LESSON_CHANGES),
    "update": _words(UPDATE_CHANGES),
    "policy_version": _words(POLICY_CHANGES),
    "evaluation": _words(EVALUATION_CHANGES),
}
"""Per table with a status: the allowed changes, as the database has them."""
