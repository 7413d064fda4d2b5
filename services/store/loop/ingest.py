"""Rollouts sampled elsewhere, many in one transaction: looked up, checked, and stored by COPY with their questions.

One that cannot be accepted does not keep the others out. What is stored is what `rollouts` would store one by one:
a group each (or one more of a group), the rollout, a pending question to every matching expert; one about which nobody
is asked is set aside at once.
"""

import json
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session, defer

from services.contracts.consultations import ConsultationStatus
from services.contracts.experts import Ask, Descriptor
from services.contracts.ids import new_id
from services.contracts.rollouts import GroupStatus, Purpose, Rollout, RolloutCreate, RolloutStatus
from services.contracts.tasks import Message, Split
from services.runtime.errors import InvalidInput, PreceptorError
from services.store.core import copying, idempotency
from services.store.loop import consultations
from services.store.loop.consultations import DEADLINE, Subject
from services.store.loop.rollouts import RolloutNotFound, say_unanswered
from services.store.tables.base import LineageRow
from services.store.tables.ledger import PolicyVersionRow
from services.store.tables.loop import ExpertRow, GroupRow, RolloutRow, TaskRow

ROUTE: Final = "POST /v1/rollouts"
"""Where the key of a rollout belongs, whichever of the two routes it came by."""

_GROUP: Final = (
    *("id", "lineage_id", "task_id", "split", "purpose", "policy_version", "size", "sampling", "external", "status"),
    "created_at",
)
_ROLLOUT: Final = (
    *("id", "lineage_id", "task_id", "split", "purpose", "group_id", "index_in_group", "status", "reason"),
    *("policy_version", "prompt_token_ids", "token_ids", "sampler_logprobs", "action_mask", "tokenizer_hash"),
    *("tokenized_at_ingest", "sampling", "text", "turns", "answer_start", "finish_reason"),
    *("created_at", "settled_at"),
)
_CONSULTATION: Final = (
    *("id", "lineage_id", "rollout_id", "expert_id", "expert_version", "stage", "ask", "status", "deadline"),
    *("not_before", "sent_at", "created_at"),
)


class NotTrainable(InvalidInput):
    """Only rollouts of train tasks may be drawn for training."""


class OutsideVocabulary(InvalidInput):
    """A token id is not in the lineage's vocabulary."""


class NoSuchVersion(InvalidInput):
    """The rollout names a policy version that this lineage never had."""

    hint = "Name one of GET /v1/policies, or leave policy_version out for a rollout of another policy."


class TokenizerDiffers(InvalidInput):
    """The token ids were made by another tokenizer; re-tokenising them would change what was sampled."""

    hint = "Send the text instead: it is tokenised once at ingest and trains the local term only."


class NotItsGroup(InvalidInput):
    """The group is not one that this rollout could join."""

    title = "Not a group of such rollouts"
    hint = "Leave group_id out for the first rollout and use the group_id it gets for its siblings."


@dataclass(frozen=True)
class KnownTask:
    """What storing a rollout needs of its task; tasks are immutable, so that it may be remembered."""

    id: UUID
    split: str
    domain: str
    metadata_keys: frozenset[str]
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Draft:
    """A rollout that passed `check`, as the policy's tokenizer reads it.

    text is the answer, which begins at the token `answer_start`, after `turns`. Drafts with the same `label` form one
    new group; `group_id` names one that is there. Never both.
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
    """What became of each draft, and the questions to be sent after the commit."""

    outcomes: list[Outcome]
    opened: list[UUID]


def find_tasks(session: Session, lineage_id: UUID, ids: Collection[UUID]) -> dict[UUID, KnownTask]:
    """Those of these tasks that there are."""
    query = select(TaskRow).where(TaskRow.lineage_id == lineage_id, TaskRow.id == func.any(list(ids)))
    return {
        row.id: KnownTask(
            id=row.id,
            split=row.split,
            domain=row.domain,
            metadata_keys=frozenset(row.metadata_),
            messages=tuple(map(Message.model_validate, row.messages)),
        )
        for row in session.scalars(query)
    }


def find_versions(session: Session, lineage_id: UUID, names: Collection[str]) -> set[str]:
    """Those of these names that policy versions of the lineage have."""
    query = select(PolicyVersionRow.name).where(
        PolicyVersionRow.lineage_id == lineage_id, PolicyVersionRow.name == func.any(list(names))
    )
    return set(session.scalars(query))


def find_stored(
    session: Session, requests: Sequence[idempotency.Request]
) -> dict[idempotency.Request, Replayed | PreceptorError]:
    """What those of these requests are answered that were sent before."""
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
    """The rollout as its sender was answered: what was set aside at once has both times from one transaction."""
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
    """Store the drafts with their groups, keys and first questions.

    Errors: StoreUnavailable (503); psycopg.Error or DBAPIError where the database refuses what no check foresaw.
    """
    batch = _Batch(session, lineage, drafts)
    batch.refuse_strangers()
    batch.take_keys()
    batch.place()
    return batch.write()


@dataclass(frozen=True)
class _Placed:
    draft: Draft
    id: UUID
    group_id: UUID
    index: int


@dataclass(frozen=True)
class _Asker:
    """An expert of the first stage, with what its questions have in common."""

    row: ExpertRow
    descriptor: Descriptor

    def encode(self, kinds: Sequence[str], now: datetime) -> bytes:
        """The fields of a question that follow its rollout."""
        ask = Ask.model_validate({"kinds": kinds, "top_k": self.row.top_k, "temperature": self.row.temperature})
        return b"".join(
            [
                copying.uuid(self.row.id),
                copying.text(self.row.version),
                copying.integer(1),
                copying.jsonb(ask.model_dump_json().encode()),
                copying.text(ConsultationStatus.PENDING.value),
                copying.timestamp(now + DEADLINE),
                copying.timestamp(now),
                copying.timestamp(now),
                copying.timestamp(now),
            ]
        )


class _Batch:
    """One call of `store`, step by step. Locks are taken in an order: groups by id, then keys."""

    def __init__(self, session: Session, lineage: LineageRow, drafts: Sequence[Draft]) -> None:
        self._session = session
        self._lineage = lineage
        self._drafts = drafts
        self._outcomes: dict[int, Outcome] = {}
        self._ids = [new_id() for _ in drafts]
        self._sizes: dict[UUID, int] = {}
        self._new_groups: dict[UUID, Draft] = {}
        self._placed: dict[int, _Placed] = {}
        self._now: datetime = session.scalars(select(func.now())).one()

    def refuse_strangers(self) -> None:
        """Lock the groups that are named, and refuse what cannot join them."""
        named = {draft.group_id for draft in self._drafts if draft.group_id is not None}
        if not named:
            return
        query = select(GroupRow).where(GroupRow.id.in_(named)).order_by(GroupRow.id).with_for_update()
        groups = {row.id: row for row in self._session.scalars(query)}
        for number, draft in enumerate(self._drafts):
            if draft.group_id is None:
                continue
            row = groups.get(draft.group_id)
            mine = (True, draft.task.id, draft.rollout.purpose.value)
            if row is None or (row.external, row.task_id, row.purpose) != mine:
                self._outcomes[number] = NotItsGroup(
                    f"group {draft.group_id} is not a group of external rollouts of this task and purpose"
                )
            else:
                self._sizes[row.id] = row.size

    def take_keys(self) -> None:
        """Keep the keys of what will be stored; what another request stored meanwhile is that."""
        wanted = {
            draft.once: idempotency.Stored(201, json.dumps({"id": str(self._ids[number])}))
            for number, draft in enumerate(self._drafts)
            if draft.once is not None and number not in self._outcomes
        }
        lost = set(wanted) - idempotency.keep_all(self._session, wanted)
        if not lost:
            return
        stored = find_stored(self._session, list(lost))
        for number, draft in enumerate(self._drafts):
            if draft.once in lost:
                self._outcomes[number] = stored[draft.once]

    def place(self) -> None:
        """Give every rollout its group and its place in it."""
        labelled: dict[Hashable, UUID] = {}
        for number, draft in enumerate(self._drafts):
            if number in self._outcomes:
                continue
            group_id = draft.group_id if draft.label is None else labelled.get(draft.label)
            if group_id is None:
                group_id = new_id()
                self._new_groups[group_id] = draft
                self._sizes[group_id] = 0
                if draft.label is not None:
                    labelled[draft.label] = group_id
            first = self._new_groups.get(group_id, draft)
            if (first.task.id, first.rollout.purpose) != (draft.task.id, draft.rollout.purpose):
                self._outcomes[number] = NotItsGroup(
                    "its group in this batch is of another task or purpose", hint="Siblings answer one task."
                )
                continue
            self._placed[number] = _Placed(draft, self._ids[number], group_id, self._sizes[group_id])
            self._sizes[group_id] += 1

    def write(self) -> Arrived:
        """Copy the rows."""
        placed = list(self._placed.values())
        grown = Counter(one.group_id for one in placed if one.group_id not in self._new_groups)
        if grown:
            self._session.execute(
                text(
                    "UPDATE rollout_group g SET size = g.size + n FROM unnest(:ids, :ns) AS u (id, n) WHERE g.id = u.id"
                ),
                {"ids": list(grown), "ns": list(grown.values())},
            )
        if self._new_groups:
            copying.copy(self._session, "rollout_group", _GROUP, map(self._encode_group, self._new_groups))
        if placed:
            asked, questions, opened = self._ask(placed)
            rows, views = zip(*(self._encode_rollout(one, one.id in asked) for one in placed), strict=True)
            copying.copy(self._session, "rollout", _ROLLOUT, rows)
            if questions:
                copying.copy(self._session, "consultation", _CONSULTATION, questions)
            self._outcomes |= dict(zip(self._placed, views, strict=True))
        else:
            opened = []
        return Arrived([self._outcomes[number] for number in range(len(self._drafts))], opened)

    def _ask(self, placed: Sequence[_Placed]) -> tuple[set[UUID], list[bytes], list[UUID]]:
        """Whom the first questions are about, their rows and their ids."""
        askers = [
            _Asker(row, descriptor)
            for row in consultations.askable_experts(self._session, self._lineage.id)
            if not (descriptor := Descriptor.model_validate(row.descriptor)).needs_answers
        ]
        asked, rows, ids = set(), [], []
        lineage = copying.uuid(self._lineage.id)
        ends: dict[tuple[UUID, tuple[str, ...]], bytes] = {}
        for one in placed:
            task = one.draft.task
            subject = Subject(
                purpose=one.draft.rollout.purpose.value,
                split=task.split,
                group_id=one.group_id,
                index_in_group=one.index,
                domain=task.domain,
                metadata_keys=task.metadata_keys,
            )
            for asker in askers:
                kinds = tuple(consultations.choose_kinds(subject, asker.row, asker.descriptor))
                if not kinds:
                    continue
                end = ends.get((asker.row.id, kinds))
                if end is None:
                    end = ends[asker.row.id, kinds] = asker.encode(kinds, self._now)
                question = new_id()
                ids.append(question)
                rows.append(copying.uuid(question) + lineage + copying.uuid(one.id) + end)
                asked.add(one.id)
        return asked, rows, ids

    def _encode_group(self, group_id: UUID) -> bytes:
        draft = self._new_groups[group_id]
        sampling = draft.rollout.sampling
        return b"".join(
            [
                copying.uuid(group_id),
                copying.uuid(self._lineage.id),
                copying.uuid(draft.task.id),
                copying.text(draft.task.split),
                copying.text(draft.rollout.purpose.value),
                copying.text(draft.rollout.policy_version),
                copying.integer(self._sizes[group_id]),
                copying.jsonb(b"{}" if sampling is None else sampling.model_dump_json().encode()),
                copying.boolean(True),
                copying.text(GroupStatus.SAMPLED.value),
                copying.timestamp(self._now),
            ]
        )

    def _encode_rollout(self, one: _Placed, is_asked: bool) -> tuple[bytes, Rollout]:
        draft, rollout = one.draft, one.draft.rollout
        view = Rollout(
            id=one.id,
            lineage_id=self._lineage.id,
            task_id=draft.task.id,
            split=Split(draft.task.split),
            purpose=rollout.purpose,
            group_id=one.group_id,
            index_in_group=one.index,
            status=RolloutStatus.OPEN if is_asked else RolloutStatus.SET_ASIDE,
            reason=None if is_asked else say_unanswered(rollout.purpose.value, 0, 0),
            policy_version=rollout.policy_version,
            num_tokens=len(draft.token_ids),
            text=draft.text,
            finish_reason="external",
            tokenized_at_ingest=rollout.token_ids is None,
            score=None,
            created_at=self._now,
            settled_at=None if is_asked else self._now,
        )
        fields = [
            copying.uuid(view.id),
            copying.uuid(view.lineage_id),
            copying.uuid(view.task_id),
            copying.text(view.split.value),
            copying.text(view.purpose.value),
            copying.uuid(view.group_id),
            copying.integer(view.index_in_group),
            copying.text(view.status.value),
            copying.text(view.reason),
            copying.text(view.policy_version),
            copying.integers(draft.prompt_token_ids),
            copying.integers(draft.token_ids),
            copying.reals(rollout.known_logprobs),
            copying.booleans(rollout.action_mask or [True] * view.num_tokens),
            copying.text(self._lineage.tokenizer_hash),
            copying.boolean(view.tokenized_at_ingest),
            copying.NULL if rollout.sampling is None else copying.jsonb(rollout.sampling.model_dump_json().encode()),
            copying.text(view.text),
            _encode_turns(draft.turns),
            copying.integer(draft.answer_start),
            copying.text(view.finish_reason),
            copying.timestamp(view.created_at),
            copying.timestamp(view.settled_at),
        ]
        return b"".join(fields), view


def _encode_turns(turns: Sequence[Message]) -> bytes:
    if not turns:
        return copying.NULL
    return copying.jsonb(json.dumps([turn.model_dump(mode="json") for turn in turns]).encode())
