"""A rollout: one sampled answer to one prompt, token by token, and the group of siblings it was drawn with."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Self
from uuid import UUID

from pydantic import AliasChoices, Field, model_validator

from sandbox.http.problems import Problem
from services.contracts import foreign
from services.contracts.base import (
    Contract,
    Float,
    Int,
    JsonObject,
    Seed,
    Sha256,
    StatusChanges,
    TokenId,
    View,
)
from services.contracts.sources import ShownContext
from services.contracts.tasks import Message, Split

MAX_ROLLOUT_TOKENS = 32_768
MAX_ROLLOUT_CHARS = 1_000_000
MAX_BATCH_ROLLOUTS = 1_000


class Purpose(StrEnum):
    """The purpose a rollout was drawn for; only `train` becomes a lesson.

    `probe`: a measurement of what teaches. `scout`: drawn ahead of a task's train group, to hear what experts say about
    all its rollouts alike.
    """

    TRAIN = "train"
    EVALUATION = "evaluation"
    PROBE = "probe"
    SCOUT = "scout"
    CHAT = "chat"


class RolloutStatus(StrEnum):
    """`open` while experts are asked, `ready` when every consultation is settled, `set_aside` with a reason."""

    OPEN = "open"
    READY = "ready"
    SET_ASIDE = "set_aside"


ROLLOUT_CHANGES: StatusChanges[RolloutStatus] = {
    RolloutStatus.OPEN: frozenset({RolloutStatus.READY, RolloutStatus.SET_ASIDE}),
    RolloutStatus.READY: frozenset({RolloutStatus.SET_ASIDE}),
}


class GroupStatus(StrEnum):
    """A group is one prompt to be drawn `size` times: the durable row behind a sampling message."""

    PENDING = "pending"
    ASKED = "asked"
    SAMPLED = "sampled"
    DEAD = "dead"


GROUP_CHANGES: StatusChanges[GroupStatus] = {
    GroupStatus.PENDING: frozenset({GroupStatus.ASKED, GroupStatus.DEAD}),
    GroupStatus.ASKED: frozenset({GroupStatus.PENDING, GroupStatus.SAMPLED, GroupStatus.DEAD}),
    GroupStatus.DEAD: frozenset({GroupStatus.PENDING}),
}


_MAX_NEW_TOKENS: Final = ("max_new_tokens", "max_tokens", "max_completion_tokens")


class Sampling(Contract):
    """How tokens were drawn. Training defaults to temperature 1 over the full softmax (no top-p, no top-k).

    temperature 0: the likeliest token each time. Other systems' spellings are taken: `max_tokens` or
    `max_completion_tokens` for `max_new_tokens`, -1 for no `top_k`, one string for `stop`, null for a default, and
    settings of theirs that are off (`n` 1, `presence_penalty` 0).
    """

    temperature: Annotated[Float, Field(ge=0, le=10)] = 1.0
    top_p: Annotated[Float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[Int, Field(ge=0)] = 0
    max_new_tokens: Annotated[
        Int,
        Field(
            ge=1,
            le=MAX_ROLLOUT_TOKENS,
            validation_alias=AliasChoices(*_MAX_NEW_TOKENS),
        ),
    ] = 64
    stop: list[str] = []
    seed: Seed | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_other_spellings(cls, sent: Any) -> Any:
        if not isinstance(sent, dict):
            return sent
        read = foreign.without_defaults(sent)
        if read.get("top_k") == -1:
            read["top_k"] = 0
        if isinstance(read.get("stop"), str):
            read["stop"] = [read["stop"]]
        foreign.refuse_names(read, {*cls.model_fields, *_MAX_NEW_TOKENS}, of="sampling")
        return read


class RolloutCreate(Contract):
    """A rollout sampled elsewhere: token ids with the tokenizer's hash, or text that is tokenised once at ingest.

    Token ids may come with the sampler's logprobs (nats, one a token, at the sampling temperature) and an action mask
    (false where the policy did not choose the token, e.g. a tool's turn). Text has neither: only the local term trains.
    `policy_version` names one of the lineage's own versions, where it was sampled from one. The mask may be of 0 and 1;
    a logprob just above 0 (by rounding) is 0, and one of a token that the mask leaves out may be null.
    """

    task_id: UUID
    text: Annotated[str, Field(min_length=1, max_length=MAX_ROLLOUT_CHARS)] | None = None
    token_ids: Annotated[list[TokenId], Field(min_length=1, max_length=MAX_ROLLOUT_TOKENS)] | None = None
    tokenizer_hash: Sha256 | None = None
    sampler_logprobs: list[foreign.LogProb | None] | None = None
    action_mask: list[foreign.Flag] | None = None
    sampling: Sampling | None = None
    policy_version: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    group_id: UUID | None = None
    purpose: Purpose = Purpose.TRAIN

    @model_validator(mode="before")
    @classmethod
    def _only_known_names(cls, sent: Any) -> Any:
        foreign.refuse_names(sent, cls.model_fields, of="a rollout")
        return sent

    @model_validator(mode="after")
    def _text_or_tokens(self) -> Self:
        if (self.text is None) == (self.token_ids is None):
            raise ValueError("send either text or token_ids")
        if self.token_ids is None:
            if self.sampler_logprobs is not None or self.action_mask is not None:
                raise ValueError("sampler_logprobs and action_mask need token_ids: text has no token boundaries")
            if self.tokenizer_hash is not None:
                raise ValueError("tokenizer_hash belongs to token_ids: text is read with the policy's own tokenizer")
            return self
        if self.tokenizer_hash is None:
            raise ValueError("token_ids need tokenizer_hash, so that they are read with the tokenizer that made them")
        for name, values in (("sampler_logprobs", self.sampler_logprobs), ("action_mask", self.action_mask)):
            if values is not None and len(values) != len(self.token_ids):
                raise ValueError(f"{name} has {len(values)} entries for {len(self.token_ids)} token_ids")
        if self.action_mask is not None and not any(self.action_mask):
            raise ValueError("action_mask marks no token as an action")
        for place, logprob in enumerate(self.sampler_logprobs or ()):
            if logprob is None and (self.action_mask is None or self.action_mask[place]):
                raise ValueError(f"sampler_logprobs is null at {place}, where the policy chose the token")
        return self

    @property
    def known_logprobs(self) -> list[float] | None:
        """The sampler's logprobs; 0 where a token was not the policy's to choose and none was sent."""
        sent = self.sampler_logprobs
        return None if sent is None else [0.0 if logprob is None else logprob for logprob in sent]


class BatchedRollout(RolloutCreate):
    """A rollout of a batch.

    `key` does for the row what the header Idempotency-Key does for a request. Rows with the same `group` are siblings:
    they form one group, for which the api makes the id.
    """

    key: Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$")] | None = None
    group: Annotated[str, Field(min_length=1, max_length=200)] | None = None

    @model_validator(mode="after")
    def _one_group(self) -> Self:
        if self.group is not None and self.group_id is not None:
            raise ValueError("send either group, for a new group, or group_id, for one that is there")
        return self


class RolloutBatch(Contract):
    """Rollouts sampled elsewhere."""

    rollouts: Annotated[list[BatchedRollout], Field(min_length=1, max_length=MAX_BATCH_ROLLOUTS)]


class RowOutcome(StrEnum):
    """The outcome of a row: stored now, stored by an earlier request with its key, or refused."""

    CREATED = "created"
    EXISTING = "existing"
    REFUSED = "refused"


class BatchedOutcome(Contract):
    """The outcome of one row, counted from 1: the rollout's ids, or its problem."""

    row: int
    outcome: RowOutcome
    id: UUID | None = None
    group_id: UUID | None = None
    index_in_group: int | None = None
    status: RolloutStatus | None = None
    reason: str | None = None
    problem: Problem | None = None


class RolloutsStored(Contract):
    """The outcome of a batch, row by row."""

    num_created: int
    num_existing: int
    num_refused: int
    rollouts: list[BatchedOutcome]


class Rollout(View):
    """A stored rollout without its tokens; `GET /v1/rollouts/{id}` adds them.

    text: empty for callers who may not read the task's metadata, where the policy was shown some of it. shown: the
    teacher drew it, after a context that the policy does not see; it counts in no pass rate.
    """

    id: UUID
    lineage_id: UUID
    task_id: UUID
    split: Split
    purpose: Purpose
    group_id: UUID
    index_in_group: int
    status: RolloutStatus
    reason: str | None
    policy_version: str | None
    num_tokens: int
    text: str
    finish_reason: str
    tokenized_at_ingest: bool
    shown: bool = False
    score: float | None
    created_at: datetime
    settled_at: datetime | None


class RolloutDetail(Rollout):
    """A rollout with its tokens: everything it can be trained from.

    text is the policy's last turn, which begins at the token `answer_start`; turns, if any, come before it.
    prompt_token_ids: those that the policy reads before the answer, the plain prompt's; of a probe that a teacher drew,
    those it was drawn after. shown_after: what the teacher that drew it was shown. Where that may quote the task's
    metadata, prompt_token_ids are null and the answer's tokens and the context's messages empty, for somebody who may
    not read it.
    """

    prompt_token_ids: list[int] | None
    token_ids: list[int]
    sampler_logprobs: list[float] | None
    action_mask: list[bool]
    tokenizer_hash: str
    turns: list[Message] | None
    answer_start: int
    sampling: JsonObject | None
    shown_after: ShownContext | None = None
