"""Rollouts sampled elsewhere, many in one transaction: looked up, checked, given a group and stored.

A refused one does not affect the others.
"""

import json
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session, defer

from services.contracts.ids import new_id
from services.contracts.rollouts import GroupStatus, Purpose, Rollout, RolloutCreate, RolloutStatus
from services.contracts.tasks import Message, Split
from services.runtime.errors import InvalidInput, PreceptorError
from services.store.core import copying, idempotency
from services.store.loop import rollouts
from services.store.loop.rollouts import NewRollout, RolloutNotFound
from services.store.loop.tasks import KnownTask
from services.store.tables.base import LineageRow
from services.store.tables.ledger import PolicyVersionRow
from services.store.tables.loop import GroupRow, RolloutRow

ROUTE: Final = "POST /v1/rollouts"
"""Where the key of a rollout belongs, whichever of the two routes it came by."""


class NotTrainable(InvalidInput):
    """Only rollouts of train tasks may be drawn for training."""


class OutsideVocabulary(InvalidInput):
    """A token id is not in the lineage's vocabulary."""


class NoSuchVersion(InvalidInput):
    """The rollout names a policy version that this lineage never had."""

    hint = "Name one of GET /v1/policies, or leave policy_version out for a rollout of another policy."


class TokenizerDiffers(InvalidInput):
    """The token ids were made by another tokenizer; re-tokenising would change the sampled tokens."""

    hint = "Send the text instead: it is tokenised once at ingest and trains the local term only."


class NotItsGroup(InvalidInput):
    """The group is not one that this rollout could join."""

    title = "Not a group of such rollouts"
    hint = "Leave group_id out for the first rollout and use the group_id it gets for its siblings."


@dataclass(frozen=True)
class Draft:
    """A rollout that passed `check`, as the policy's tokenizer reads it.

    text is the answer, which begins at the token `answer_start`, after `turns`. Drafts with the same `label` form one
    new group; `group_id` names an existing one. Never both.
    """

    rollout: RolloutCreate
    task: KnownTask
    prompt_token_ids: Sequence[int]
    token_ids: Sequence[int]
    text: str
    turns: Sequence[Message] = ()
    answer_start: int = 0
    group_id: UUID | None = None
    label: Hashable = None
    once: idempotency.Request | None = None


@dataclass(frozen=True)
class Replayed:
    """A rollout that an earlier request with the same key stored, as it was then."""

    rollout: Rollout


Outcome = Rollout | Replayed | PreceptorError


@dataclass(frozen=True)
class Arrived:
    """The outcome of each draft, and the consultations to be sent after the commit."""

    outcomes: list[Outcome]
    opened: list[UUID]


def find_versions(session: Session, lineage_id: UUID, names: Collection[str]) -> set[str]:
    """Those of these names that policy versions of the lineage have."""
    query = select(PolicyVersionRow.name).where(
        PolicyVersionRow.lineage_id == lineage_id, PolicyVersionRow.name == func.any(list(names))
    )
    return set(session.scalars(query)) if names else set()


def find_stored(
    session: Session, requests: Sequence[idempotency.Request]
) -> dict[idempotency.Request, Replayed | PreceptorError]:
    """Stored answers of requests already seen."""
    answers = idempotency.find_all(session, requests)
    ids = {
        request: UUID(json.loads(found.body)["id"])
        for request, found in answers.items()
        if isinstance(found, idempotency.Stored)
    }
    hidden = (RolloutRow.prompt_token_ids, RolloutRow.sampler_logprobs, RolloutRow.action_mask)
    query = select(RolloutRow).where(RolloutRow.id.in_(ids.values())).options(*map(defer, hidden))
    rows = {row.id: row for row in session.scalars(query)} if ids else {}
    stored: dict[idempotency.Request, Replayed | PreceptorError] = {}
    for request, found in answers.items():
        if isinstance(found, PreceptorError):
            stored[request] = found
        elif (row := rows.get(ids[request])) is None:
            stored[request] = RolloutNotFound(f"rollout {ids[request]} was stored, and has been deleted since")
        else:
            stored[request] = Replayed(_view_as_stored(row))
    return stored


def _view_as_stored(row: RolloutRow) -> Rollout:
    """The rollout as its sender was answered: one set aside at once has both times from one transaction."""
    view = Rollout.model_validate(row)
    if row.settled_at == row.created_at:
        return view
    return view.model_copy(update={"status": RolloutStatus.OPEN, "reason": None, "score": None, "settled_at": None})


def check(lineage: LineageRow, task: KnownTask, rollout: RolloutCreate, versions: Collection[str]) -> None:
    """Pass when a rollout sampled elsewhere can be used here.

    Errors: NotTrainable, NoSuchVersion, TokenizerDiffers, OutsideVocabulary (422 each).
    """
    if rollout.purpose is Purpose.TRAIN and task.split != Split.TRAIN.value:
        raise NotTrainable(
            f"task {task.id} is of the split {task.split!r}; only `train` tasks train",
            hint="Send it with purpose `evaluation`, or use a train task.",
        )
    if rollout.policy_version is not None and rollout.policy_version not in versions:
        raise NoSuchVersion(f"no policy version is named {rollout.policy_version!r}")
    if rollout.token_ids is None:
        return
    if rollout.tokenizer_hash != lineage.tokenizer_hash:
        raise TokenizerDiffers(
            f"the rollout's tokenizer is {str(rollout.tokenizer_hash)[:12]}…, the policy's is "
            f"{lineage.tokenizer_hash[:12]}…"
        )
    if (largest := max(rollout.token_ids)) >= lineage.vocab_size:
        raise OutsideVocabulary(f"token id {largest} is outside the vocabulary of {lineage.vocab_size}")


def store(session: Session, lineage: LineageRow, drafts: Sequence[Draft]) -> Arrived:
    """Store the drafts with their groups, keys and first consultations.

    Errors: StoreUnavailable (503); psycopg.Error or DBAPIError where the database refuses what no check foresaw.
    """
    return _Batch(session, lineage, drafts).store()


class _Batch:
    """One call of `store`, step by step. Locks are taken in an order: groups by id, then keys."""

    def __init__(self, session: Session, lineage: LineageRow, drafts: Sequence[Draft]) -> None:
        self._session = session
        self._lineage = lineage
        self._drafts = drafts
        self._ids = [new_id() for _ in drafts]
        self._outcomes: dict[int, Outcome] = {}
        self._joined: dict[UUID, GroupRow] = {}
        self._opened: dict[UUID, Draft] = {}
        self._sizes: dict[UUID, int] = {}

    def store(self) -> Arrived:
        self._lock_groups()
        self._take_keys()
        new = self._place()
        for group_id, group in self._joined.items():
            group.size = self._sizes[group_id]
        copying.copy(self._session, GroupRow, [self._group_row(*opened) for opened in self._opened.items()])
        stored = rollouts.store(self._session, self._lineage.id, list(new.values()))
        self._outcomes |= dict(zip(new, stored.rollouts, strict=True))
        return Arrived([self._outcomes[number] for number in range(len(self._drafts))], stored.opened)

    def _lock_groups(self) -> None:
        """Lock the groups that drafts name, and refuse drafts that cannot join theirs."""
        named = {draft.group_id for draft in self._drafts if draft.group_id is not None}
        query = select(GroupRow).where(GroupRow.id.in_(named)).order_by(GroupRow.id).with_for_update()
        self._joined = {row.id: row for row in self._session.scalars(query)} if named else {}
        self._sizes = {row.id: row.size for row in self._joined.values()}
        for number, draft in enumerate(self._drafts):
            if draft.group_id is None:
                continue
            row = self._joined.get(draft.group_id)
            wanted = (True, draft.task.id, draft.rollout.purpose.value)
            if row is None or (row.external, row.task_id, row.purpose) != wanted:
                self._outcomes[number] = NotItsGroup(
                    f"group {draft.group_id} is not a group of external rollouts of this task and purpose"
                )

    def _take_keys(self) -> None:
        """Keep the keys of the drafts; one whose key another request took meanwhile gets that request's answer."""
        wanted = {
            draft.once: idempotency.Stored(201, json.dumps({"id": str(self._ids[number])}))
            for number, draft in enumerate(self._drafts)
            if draft.once is not None and number not in self._outcomes
        }
        lost = set(wanted) - idempotency.keep_all(self._session, wanted)
        stored = find_stored(self._session, list(lost))
        for number, draft in enumerate(self._drafts):
            if draft.once in stored:
                self._outcomes[number] = stored[draft.once]

    def _place(self) -> dict[int, NewRollout]:
        """Give every rollout its group and its place in it."""
        labelled: dict[Hashable, UUID] = {}
        placed: dict[int, NewRollout] = {}
        for number, draft in enumerate(self._drafts):
            if number in self._outcomes:
                continue
            group_id = draft.group_id or (None if draft.label is None else labelled.get(draft.label))
            if group_id is None:
                group_id = labelled[draft.label or number] = new_id()
                self._opened[group_id] = draft
                self._sizes[group_id] = 0
            first = self._opened.get(group_id, draft)
            if (first.task.id, first.rollout.purpose) != (draft.task.id, draft.rollout.purpose):
                self._outcomes[number] = NotItsGroup(
                    "its group in this batch is of another task or purpose", hint="Siblings answer one task."
                )
                continue
            placed[number] = self._new(draft, self._ids[number], group_id)
            self._sizes[group_id] += 1
        return placed

    def _new(self, draft: Draft, rollout_id: UUID, group_id: UUID) -> NewRollout:
        sent = draft.rollout
        return NewRollout(
            id=rollout_id,
            task=draft.task,
            purpose=sent.purpose.value,
            group_id=group_id,
            index_in_group=self._sizes[group_id],
            policy_version=sent.policy_version,
            prompt_token_ids=draft.prompt_token_ids,
            token_ids=draft.token_ids,
            sampler_logprobs=sent.known_logprobs,
            action_mask=sent.action_mask,
            tokenizer_hash=self._lineage.tokenizer_hash,
            tokenized_at_ingest=sent.token_ids is None,
            sampling=None if sent.sampling is None else sent.sampling.model_dump(mode="json"),
            text=draft.text,
            turns=draft.turns,
            answer_start=draft.answer_start,
            finish_reason="external",
        )

    def _group_row(self, group_id: UUID, draft: Draft) -> dict[str, object]:
        sampling = draft.rollout.sampling
        return {
            "id": group_id,
            "lineage_id": self._lineage.id,
            "task_id": draft.task.id,
            "split": draft.task.split,
            "purpose": draft.rollout.purpose.value,
            "policy_version": draft.rollout.policy_version,
            "size": self._sizes[group_id],
            "sampling": {} if sampling is None else sampling.model_dump(mode="json"),
            "external": True,
            "status": GroupStatus.SAMPLED.value,
        }
