"""Rollouts sampled elsewhere, from the request to the commit.

Rollouts that arrive together are looked up in one transaction, tokenised in two calls, and stored in a second
transaction. A refused rollout gets its own problem and does not affect the others.
"""

import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Final
from uuid import UUID

import psycopg
import structlog
from fastapi import Depends, Request
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from services.acts.callers import Caller, NotAllowed
from services.api.auth import KeyMissing, KeyUnknown, act_from, authenticate
from services.api.space import OutOfSpace, SpaceGuard
from services.api.tokens import Reader, Tokens
from services.contracts.base import JsonObject
from services.contracts.persons import Right
from services.contracts.rollouts import BatchedRollout, Rollout, RolloutCreate
from services.jobs import dispatch
from services.policy.client import PolicyUnavailable
from services.runtime.errors import InvalidInput, PreceptorError, ServiceUnavailable
from services.runtime.settings import Settings
from services.store.core import audit, idempotency
from services.store.core.transaction import Store
from services.store.loop import ingest, lineages
from services.store.loop.ingest import Draft, Outcome, Replayed
from services.store.loop.tasks import KnownTask, TaskNotFound
from services.store.tables.base import LineageRow

MAX_HELD_ROWS: Final = 6_000
MAX_HELD_BYTES: Final = 128 * 1024 * 1024

log = structlog.get_logger(__name__)


class IngestBusy(ServiceUnavailable):
    """The queue of rollouts to store is full; this request was not stored."""

    title = "Too many rollouts at once"
    retry_after_seconds = 1


class KeyTwice(idempotency.IdempotencyKeyReused):
    """Two rows of one batch carry the same key."""


@dataclass(frozen=True, eq=False)
class Sender:
    """Who sends one request: the API key they show, and their address."""

    key: str | None
    address: str | None


@dataclass(frozen=True)
class Row:
    """A rollout of a request, with its own idempotency key."""

    sender: Sender
    rollout: RolloutCreate
    key: str | None


@dataclass(frozen=True)
class _KnownRow:
    """A row of a known caller: the row's number and the request its key stands for."""

    number: int
    row: Row
    caller: Caller
    once: idempotency.Request | None

    @property
    def label(self) -> tuple[Sender, str] | None:
        """The group that the row shares with others of its request."""
        rollout = self.row.rollout
        named = rollout.group if isinstance(rollout, BatchedRollout) else None
        return None if named is None else (self.row.sender, named)


class Ingest:
    """Stores rollouts that were sampled elsewhere. Safe to share between threads."""

    def __init__(self, store: Store, settings: Settings, reader: Reader, space: SpaceGuard) -> None:
        self._store = store
        self._settings = settings
        self._reader = reader
        self._space = space
        self._lock = threading.Lock()
        self._held_rows = 0
        self._held_bytes = 0

    @contextmanager
    def hold(self, num_rows: int, num_bytes: int) -> Iterator[None]:
        """Count a request's rows among those in memory until the block ends. Errors: IngestBusy (503)."""
        with self._lock:
            rows, size = self._held_rows + num_rows, self._held_bytes + num_bytes
            if self._held_rows and (rows > MAX_HELD_ROWS or size > MAX_HELD_BYTES):
                raise IngestBusy(f"{self._held_rows:,} rollouts are already queued")
            self._held_rows, self._held_bytes = rows, size
        try:
            yield
        finally:
            with self._lock:
                self._held_rows -= num_rows
                self._held_bytes -= num_bytes

    def store(self, rows: Sequence[Row]) -> list[Outcome]:
        """The outcome of each row, after the commit. A row's problem is its outcome; see `find_refusal`.

        Errors: StoreUnavailable (503); DBAPIError, psycopg.Error if the database refuses a row that passed every check.
        """
        try:
            return self._store_once(rows)
        except (DBAPIError, psycopg.Error) as refusal:  # perhaps a remembered task is there no more
            log.warning("rollouts are stored again", rows=len(rows), reason=type(refusal).__name__)
            self._reader.forget({row.rollout.task_id for row in rows})
            return self._store_once(rows)

    def _store_once(self, rows: Sequence[Row]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        with self._store.transaction() as session:
            lineage = lineages.get(session, self._settings.lineage)
            known = list(self._identify(session, rows, outcomes))
            joined = _replay(session, known, outcomes)
            todo = self._check(session, lineage, [one for one in known if one.number not in outcomes], outcomes)
        read = self._read(todo, outcomes)
        if read:
            self._write(lineage, read, joined, outcomes)
        return [outcomes[number] for number in range(len(rows))]

    def _identify(self, session: Session, rows: Sequence[Row], outcomes: dict[int, Outcome]) -> Iterator[_KnownRow]:
        """The rows of callers who may send rollouts; the others are settled."""
        callers = {key: self._find_caller(session, key) for key in {row.sender.key for row in rows}}
        seen: set[str] = set()
        for number, row in enumerate(rows):
            caller = callers[row.sender.key]
            if isinstance(caller, PreceptorError):
                outcomes[number] = caller
            elif row.key is not None and row.key in seen:
                outcomes[number] = KeyTwice(f"the key {row.key!r} is on more than one row")
            else:
                seen.update(() if row.key is None else (row.key,))
                yield _KnownRow(number, row, caller, _claim(caller, row))

    def _find_caller(self, session: Session, key: str | None) -> Caller | PreceptorError:
        try:
            caller = authenticate(session, key, self._settings)
            caller.must(Right.SEND)
        except (KeyMissing, KeyUnknown, NotAllowed) as refusal:
            return refusal
        return caller

    def _check(
        self, session: Session, lineage: LineageRow, known: Sequence[_KnownRow], outcomes: dict[int, Outcome]
    ) -> list[tuple[_KnownRow, KnownTask]]:
        """The rows that can be used here, with their tasks; the others are settled."""
        found = self._reader.find_tasks(session, lineage.id, {one.row.rollout.task_id for one in known})
        named = {version for one in known if (version := one.row.rollout.policy_version) is not None}
        versions = ingest.find_versions(session, lineage.id, named)
        todo = []
        for one in known:
            task = found.get(one.row.rollout.task_id)
            if task is None:
                outcomes[one.number] = TaskNotFound(f"no task {one.row.rollout.task_id}")
                continue
            try:
                ingest.check(lineage, task, one.row.rollout, versions)
            except InvalidInput as problem:
                outcomes[one.number] = problem
            else:
                todo.append((one, task))
        return todo

    def _read(
        self, todo: Sequence[tuple[_KnownRow, KnownTask]], outcomes: dict[int, Outcome]
    ) -> list[tuple[_KnownRow, KnownTask, Tokens]]:
        """The rows as the policy's tokenizer reads them; those it refuses are settled, all of them while it is away."""
        try:
            if todo:
                self._space.check()
            found = self._reader.read([(task, one.row.rollout) for one, task in todo])
        except (PolicyUnavailable, OutOfSpace) as away:
            outcomes |= {one.number: away for one, _ in todo}
            return []
        read = []
        for (one, task), tokens in zip(todo, found, strict=True):
            if isinstance(tokens, PreceptorError):
                outcomes[one.number] = tokens
            else:
                read.append((one, task, tokens))
        return read

    def _write(
        self,
        lineage: LineageRow,
        read: Sequence[tuple[_KnownRow, KnownTask, Tokens]],
        joined: Mapping[tuple[Sender, str], UUID],
        outcomes: dict[int, Outcome],
    ) -> None:
        with self._store.transaction() as session:
            arrived = ingest.store(session, lineage, [_draft(*one, joined) for one in read])
            settled = list(zip((one for one, _, _ in read), arrived.outcomes, strict=True))
            stored = [(one, rollout) for one, rollout in settled if isinstance(rollout, Rollout)]
            audit.record_all(session, _describe_acts(stored))
        outcomes |= {one.number: outcome for one, outcome in settled}
        log.info("rollouts taken in", rollout_id=[str(rollout.id) for _, rollout in stored])
        dispatch.consultations(arrived.opened)


def find_refusal(outcomes: Iterable[Outcome]) -> PreceptorError | None:
    """The problem of a whole request, if its rows met one: its sender, or a process or disk that it needs."""
    of_requests = (KeyMissing, KeyUnknown, NotAllowed, ServiceUnavailable, OutOfSpace)
    return next((outcome for outcome in outcomes if isinstance(outcome, of_requests)), None)


def _replay(
    session: Session, known: Sequence[_KnownRow], outcomes: dict[int, Outcome]
) -> dict[tuple[Sender, str], UUID]:
    """Settle rows that were stored before; returns the groups they are in, by label."""
    stored = ingest.find_stored(session, [one.once for one in known if one.once is not None])
    joined: dict[tuple[Sender, str], UUID] = {}
    for one in known:
        if one.once is None or (before := stored.get(one.once)) is None:
            continue
        outcomes[one.number] = before
        if isinstance(before, Replayed) and one.label is not None:
            joined[one.label] = before.rollout.group_id
    return joined


def _claim(caller: Caller, row: Row) -> idempotency.Request | None:
    """The request that the row's key stands for: this content, by whichever route it comes."""
    if row.key is None:
        return None
    content = row.rollout.model_dump_json(exclude={"key"}, exclude_none=True)
    return idempotency.Request(str(caller.id), row.key, ingest.ROUTE, hashlib.sha256(content.encode()).hexdigest())


def _draft(one: _KnownRow, task: KnownTask, tokens: Tokens, joined: Mapping[tuple[Sender, str], UUID]) -> Draft:
    rollout, label = one.row.rollout, one.label
    group_id = rollout.group_id if label is None else joined.get(label)
    return Draft(
        rollout=rollout,
        task=task,
        prompt_token_ids=tokens.prompt_token_ids,
        token_ids=tokens.token_ids,
        text=tokens.text,
        turns=tokens.turns,
        answer_start=tokens.answer_start,
        group_id=group_id,
        label=label if group_id is None else None,
        once=one.once,
    )


def _describe_acts(stored: Iterable[tuple[_KnownRow, Rollout]]) -> list[audit.AuditRecord]:
    """One entry of the audit trail per request: a rollout by its id, several by the first and the last."""
    by_sender: dict[Sender, list[UUID]] = {}
    actors: dict[Sender, audit.Actor] = {}
    for one, rollout in stored:
        sender = one.row.sender
        by_sender.setdefault(sender, []).append(rollout.id)
        actors[sender] = act_from(one.caller, sender.address)
    return [_describe_act(actors[sender], ids) for sender, ids in by_sender.items()]


def _describe_act(actor: audit.Actor, ids: Sequence[UUID]) -> audit.AuditRecord:
    if len(ids) == 1:
        return audit.AuditRecord(actor, "rollouts.add", "rollout", ids[0], {})
    detail: JsonObject = {"num_rollouts": len(ids), "first_id": str(ids[0]), "last_id": str(ids[-1])}
    return audit.AuditRecord(actor, "rollouts.add", "rollout", None, detail)


async def _get_ingest(request: Request) -> Ingest:
    ingest_of_app: Ingest = request.app.state.ingest
    return ingest_of_app


IngestDep = Annotated[Ingest, Depends(_get_ingest)]
