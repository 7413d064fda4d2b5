"""An update: one optimizer step, as a row of the ledger."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from services.contracts.base import Contract, JsonObject, StatusChanges, View
from services.contracts.sources import ContextSource
from services.contracts.templates import Template


class UpdateStatus(StrEnum):
    """`started` before the step, `applied` by the one commit that makes it count."""

    STARTED = "started"
    APPLIED = "applied"
    ABANDONED = "abandoned"
    UNDONE = "undone"


UPDATE_CHANGES: StatusChanges[UpdateStatus] = {
    UpdateStatus.STARTED: frozenset({UpdateStatus.APPLIED, UpdateStatus.ABANDONED}),
    UpdateStatus.APPLIED: frozenset({UpdateStatus.UNDONE}),
}


class TermKind(StrEnum):
    """Where the expert distribution of a term came from; `score`: there was none, a score alone moved the tokens."""

    CONDITIONED = "conditioned"
    TOPK = "topk"
    SAMPLES = "samples"
    LABEL = "label"
    IMITATION = "imitation"
    SCORE = "score"


class Speaker(Contract):
    """An expert whose words stand in a term: its registration, its version then, and the answer that said them.

    shown_to: the answer whose expert was shown these words; None where they made the term themselves, or were shown to
    the teacher that drew the rollout.
    """

    answer_id: UUID
    expert_id: UUID
    expert: str
    expert_version: str
    shown_to: UUID | None = None


class TermRecord(Contract):
    """One expert distribution that shaped one rollout in one update: its sources, context and share.

    share: its part of all terms' parts of the loss, 0..1, each without its sign and with what earlier tokens are
    charged for it; cost: nats a token; context_sha256: the exact text the teacher was shown; source, template: of that
    context; answers: every answer that made it, those that its experts were shown too, and those shown to the teacher
    that drew the rollout; speakers: who gave them; weight: the trust in them, or a score's advantage.
    """

    kind: TermKind
    answers: list[UUID]
    weight: float
    share: float
    cost: float | None = None
    num_tokens: int = 0
    context_sha256: str | None = None
    teacher_sha256: str | None = None
    sources: list[str] = []
    source: ContextSource | None = None
    template: Template | None = None
    speakers: list[Speaker] = []


class UpdateLesson(View):
    """The part of one lesson in an update. shown_after: what the teacher was shown that drew its rollout; null where
    the policy drew it."""

    lesson_id: UUID
    rollout_id: UUID
    group_id: UUID
    baseline_group: str | None
    terms: list[TermRecord]
    future_nonzero: bool
    staleness: int | None
    shown_after: ContextSource | None = None


class Update(View):
    """A stored update. `metrics` are the loss terms and diagnostics by name (nats where they are costs).

    parent_sha256: the checkpoint it began from, that of the update before; fell_back_to: the policy version whose
    checkpoint it is instead, after training had fallen back to it.
    """

    id: UUID
    lineage_id: UUID
    number: int
    status: UpdateStatus
    reason: str | None
    objective: str
    settings: JsonObject
    metrics: JsonObject
    parent_sha256: str | None
    fell_back_to: str | None
    checkpoint_sha256: str | None
    batch_sha256: str
    started_at: datetime
    applied_at: datetime | None


class UpdateDetail(Update):
    """An update with the lessons it used."""

    lessons: list[UpdateLesson]
