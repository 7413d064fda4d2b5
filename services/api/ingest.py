"""Group commit: requests that bring rollouts at the same time share one transaction, and each gets its own answer.

A request waits in line; a lane takes all that wait, checks who sent them, has them tokenised in two calls to the
policy, stores them in one transaction and answers after the commit. A request is never split over two transactions: it
is stored with its good rows, or nothing of it is. What the database refuses without a check having foreseen it sends
every request of the lane through a transaction of its own, so that only the culprit fails.

A lane is a thread's work that ends when the line is empty. Another one opens when many wait while the first is at work,
so that waiting for the policy or the disk keeps no one from working.
"""

import asyncio
import hashlib
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Final
from uuid import UUID

import psycopg
import structlog
from fastapi import Depends
from fastapi import Request as HTTPRequest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from services.api.auth import Caller, Right, act_from, authenticate, require_key
from services.api.space import OutOfSpace, SpaceGuard
from services.api.tokens import Reader, Tokens
from services.contracts.base import JsonObject
from services.contracts.rollouts import BatchedRollout, Rollout, RolloutCreate
from services.jobs import dispatch
from services.policy.client import PolicyUnavailable
from services.runtime.errors import PreceptorError, ServiceUnavailable
from services.runtime.settings import Settings
from services.store.core import audit, idempotency
from services.store.core.transaction import Store
from services.store.loop import ingest, lineages
from services.store.loop.ingest import Draft, KnownTask, Outcome, Replayed
from services.store.loop.tasks import TaskNotFound
from services.store.tables.base import LineageRow

MAX_LANES: Final = 4
NEW_LANE_ROWS: Final = 128
"""So many rows must wait for another lane to open: fewer share the next transaction."""
MAX_LANE_ROWS: Final = 512
"""A lane takes requests until it has so many rows."""
MAX_WAITING_ROWS: Final = 4_000
MAX_WAITING_BYTES: Final = 64 * 1024 * 1024

log = structlog.get_logger(__name__)


class IngestBusy(ServiceUnavailable):
    """More rollouts wait to be stored than this process will hold; nothing of this request was stored."""

    title = "Too many rollouts at once"
    retry_after_seconds = 1


class KeyTwice(idempotency.IdempotencyKeyReused):
    """Two rows of one batch carry the same key."""


@dataclass(frozen=True)
class Row:
    """A rollout of a request, with its own idempotency key."""

    rollout: RolloutCreate
    key: str | None


@dataclass(frozen=True)
class Sender:
    """Who brings rollouts: the key they show, and from where."""

    key: str | None
    address: str | None


@dataclass
class _Request:
    """What one call brought, what became of its rows, and where the answer goes."""

    sender: Sender
    rows: Sequence[Row]
    num_bytes: int
    answer: "asyncio.Future[list[Outcome]]"
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    failure: Exception | None = None
    caller: Caller | None = None

    def fail(self, reason: Exception) -> None:
        """Nothing of the request is stored, for this reason."""
        self.failure = reason

    def begin(self) -> None:
        """Forget an earlier try."""
        self.outcomes = {}
        self.failure = None

    def give(self) -> None:
        """Answer whoever waits; in the loop they wait in."""
        if self.answer.done():  # they hung up
            return
        if self.failure is not None:
            self.answer.set_exception(self.failure)
        else:
            self.answer.set_result([self.outcomes[number] for number in range(len(self.rows))])


@dataclass(frozen=True)
class _Place:
    """One row of one request of a lane."""

    request: _Request
    number: int
    once: idempotency.Request | None

    @property
    def rollout(self) -> RolloutCreate:
        return self.request.rows[self.number].rollout

    @property
    def label(self) -> tuple[int, str] | None:
        """The group that the row shares with others of its request."""
        rollout = self.rollout
        named = rollout.group if isinstance(rollout, BatchedRollout) else None
        return None if named is None else (id(self.request), named)

    def settle(self, outcome: Outcome) -> None:
        self.request.outcomes[self.number] = outcome


@dataclass(frozen=True)
class _Prepared:
    """What a lane found out before it asks the policy."""

    lineage: LineageRow
    todo: list[tuple[_Place, KnownTask]]
    joined: dict[tuple[int, str], UUID]
    """Groups of which earlier requests with the same keys stored a part."""


class Ingest:
    """The line of requests that wait to be stored, and the lanes that store them. Any event loop may call `add`."""

    def __init__(self, store: Store, settings: Settings, reader: Reader, space: SpaceGuard) -> None:
        self._store = store
        self._space = space
        self._settings = settings
        self._reader = reader
        self._lock = threading.Lock()
        self._line: deque[_Request] = deque()
        self._num_lanes = 0
        self._waiting_rows = 0
        self._waiting_bytes = 0
        self._lineage: LineageRow | None = None
        self._versions: frozenset[str] = frozenset()  # those known; a name is never given back
        self._threads = ThreadPoolExecutor(MAX_LANES, "ingest")

    def close(self) -> None:
        """Store what waits, and end."""
        self._threads.shutdown(wait=True)

    async def add(self, sender: Sender, rows: Sequence[Row], num_bytes: int) -> list[Outcome]:
        """What became of each row, after the commit.

        Errors: KeyMissing, KeyUnknown (401), NotAllowed (403), IngestBusy, StoreUnavailable, PolicyUnavailable (503),
        OutOfSpace (507): nothing of the request was stored. The problem of a row is its outcome.
        """
        require_key(sender.key, self._settings)
        request = _Request(sender, rows, num_bytes, asyncio.get_running_loop().create_future())
        with self._lock:
            if self._waiting_rows and (
                self._waiting_rows + len(rows) > MAX_WAITING_ROWS or self._waiting_bytes + num_bytes > MAX_WAITING_BYTES
            ):
                raise IngestBusy(f"{self._waiting_rows:,} rollouts wait to be stored")
            self._line.append(request)
            self._waiting_rows += len(rows)
            self._waiting_bytes += num_bytes
            if not self._num_lanes or (self._num_lanes < MAX_LANES and self._waiting_rows >= NEW_LANE_ROWS):
                self._num_lanes += 1
                self._threads.submit(self._drain)
        return await request.answer

    def _drain(self) -> None:
        while requests := self._take():
            opened: list[UUID] = []
            try:
                opened = self._store_all(requests, last_try=False)
            except Exception as fault:  # noqa: BLE001  # whoever waits must hear of it; the api renders it as a 500
                for request in requests:
                    request.fail(fault)
            try:
                _give_all(requests)
                dispatch.consultations(opened)
            except Exception:  # a lane that ended here would leave the line to nobody
                log.exception("rollouts were stored, but what follows failed", requests=len(requests))

    def _take(self) -> list[_Request]:
        """The requests that wait, at most a lane's worth; with none left the lane is closed."""
        taken: list[_Request] = []
        num_rows = 0
        with self._lock:
            while self._line and num_rows < MAX_LANE_ROWS:
                request = self._line.popleft()
                taken.append(request)
                num_rows += len(request.rows)
                self._waiting_bytes -= request.num_bytes
            self._waiting_rows -= num_rows
            if not taken:
                self._num_lanes -= 1
        return taken

    def _store_all(self, requests: Sequence[_Request], *, last_try: bool) -> list[UUID]:
        """Store the requests' rows and settle each; returns the questions to be sent."""
        for request in requests:
            request.begin()
        opened: list[UUID] = []
        for group in _part_by_key(requests):
            try:
                opened += self._store_group(group)
            except ServiceUnavailable as away:
                for request in group:
                    request.fail(away)
            except (DBAPIError, psycopg.Error) as refusal:
                self._reader.forget({row.rollout.task_id for request in group for row in request.rows})
                if last_try:
                    for request in group:
                        request.fail(refusal)
                    continue
                log.warning("rollouts go one by one", requests=len(group), reason=type(refusal).__name__)
                for request in group:
                    opened += self._store_all([request], last_try=True)
        return opened

    def _store_group(self, requests: Sequence[_Request]) -> list[UUID]:
        with self._store.transaction() as session:
            prepared = self._prepare(session, requests)
        drafts = self._read(prepared)
        if not drafts:
            return []
        with self._store.transaction() as session:
            arrived = ingest.store(session, prepared.lineage, [draft for _, draft in drafts])
            made = zip((place for place, _ in drafts), arrived.outcomes, strict=True)
            audit.record_all(session, _describe_acts((place, one) for place, one in made if isinstance(one, Rollout)))
        taken = [str(outcome.id) for outcome in arrived.outcomes if isinstance(outcome, Rollout)]
        log.info("rollouts taken in", rollout_id=taken)
        for (place, _), outcome in zip(drafts, arrived.outcomes, strict=True):
            place.settle(outcome)
        return arrived.opened

    def _prepare(self, session: Session, requests: Sequence[_Request]) -> _Prepared:
        """Who sent them, what was answered before, which tasks they are of, and what is wrong with them."""
        lineage = self._lineage = self._lineage or lineages.get(session, self._settings.lineage)
        places = list(self._identify(session, requests))
        stored = ingest.find_stored(session, [place.once for place in places if place.once is not None])
        tasks = self._reader.find_tasks(session, lineage.id, {place.rollout.task_id for place in places})
        named = {version for place in places if (version := place.rollout.policy_version) is not None}
        if not named <= self._versions:
            self._versions = self._versions | ingest.find_versions(session, lineage.id, named - self._versions)
        joined: dict[tuple[int, str], UUID] = {}
        todo = []
        for place in places:
            before = None if place.once is None else stored.get(place.once)
            task = tasks.get(place.rollout.task_id)
            if before is not None:
                place.settle(before)
                if isinstance(before, Replayed) and place.label is not None:
                    joined[place.label] = before.rollout.group_id
            elif task is None:
                place.settle(TaskNotFound(f"no task {place.rollout.task_id}"))
            else:
                try:
                    ingest.check(lineage, task, place.rollout, self._versions)
                except PreceptorError as problem:
                    place.settle(problem)
                else:
                    todo.append((place, task))
        return _Prepared(lineage, todo, joined)

    def _identify(self, session: Session, requests: Sequence[_Request]) -> Iterator[_Place]:
        callers: dict[str | None, Caller | PreceptorError] = {}
        for request in requests:
            key = request.sender.key
            if key not in callers:
                try:
                    found = authenticate(session, key, self._settings)
                    found.must(Right.SEND)
                    callers[key] = found
                except PreceptorError as refusal:
                    callers[key] = refusal
            caller = callers[key]
            if isinstance(caller, PreceptorError):
                request.fail(caller)
                continue
            request.caller = caller
            seen: set[str] = set()
            for number, row in enumerate(request.rows):
                place = _Place(request, number, _claim(caller, row))
                if row.key is not None and row.key in seen:
                    place.settle(KeyTwice(f"the key {row.key!r} is on more than one row"))
                    continue
                if row.key is not None:
                    seen.add(row.key)
                yield place

    def _read(self, prepared: _Prepared) -> list[tuple[_Place, Draft]]:
        """The rows with what the policy's tokenizer makes of them; those it refuses are settled.

        Where the policy is away, or a disk nearly full, requests with rows to be read fail.
        """
        todo = prepared.todo
        try:
            if todo:
                self._space.check()
            found = self._reader.read([(task, place.rollout) for place, task in todo])
        except (PolicyUnavailable, OutOfSpace) as away:
            for place, _ in todo:
                place.request.fail(away)
            return []
        drafts = []
        for (place, task), tokens in zip(todo, found, strict=True):
            if isinstance(tokens, PreceptorError):
                place.settle(tokens)
            else:
                drafts.append((place, _draft(place, task, tokens, prepared.joined)))
        return drafts


async def _get_ingest(request: HTTPRequest) -> Ingest:
    ingest_of_app: Ingest = request.app.state.ingest
    return ingest_of_app


IngestDep = Annotated[Ingest, Depends(_get_ingest)]


def _part_by_key(requests: Sequence[_Request]) -> list[list[_Request]]:
    """The requests in groups in which no key comes twice, so that the second of two finds the answer of the first."""
    groups: list[list[_Request]] = [[]]
    seen: set[tuple[str | None, str]] = set()
    for request in requests:
        keys = {(request.sender.key, row.key) for row in request.rows if row.key is not None}
        if keys & seen:
            groups.append([])
            seen = set()
        groups[-1].append(request)
        seen |= keys
    return groups


def _claim(caller: Caller, row: Row) -> idempotency.Request | None:
    """What the row's key stands for: this content, by whichever route it comes."""
    if row.key is None:
        return None
    content = row.rollout.model_dump_json(exclude={"key"}, exclude_none=True)
    return idempotency.Request(str(caller.id), row.key, ingest.ROUTE, hashlib.sha256(content.encode()).hexdigest())


def _describe_acts(made: Iterable[tuple[_Place, Rollout]]) -> list[audit.AuditRecord]:
    """One entry of the audit trail a request: a rollout by its id, several by the first and the last."""
    stored: dict[int, list[UUID]] = {}
    requests: dict[int, _Request] = {}
    for place, rollout in made:
        stored.setdefault(id(place.request), []).append(rollout.id)
        requests[id(place.request)] = place.request
    entries = []
    for number, ids in stored.items():
        request = requests[number]
        assert request.caller is not None, "a request whose rows were stored has a caller"
        several: JsonObject = {"num_rollouts": len(ids), "first_id": str(ids[0]), "last_id": str(ids[-1])}
        entries.append(
            audit.AuditRecord(
                actor=act_from(request.caller, request.sender.address),
                action="rollouts.add",
                noun="rollout",
                noun_id=ids[0] if len(ids) == 1 else None,
                detail=several if len(ids) > 1 else {},
            )
        )
    return entries


def _draft(place: _Place, task: KnownTask, tokens: Tokens, joined: dict[tuple[int, str], UUID]) -> Draft:
    label, rollout = place.label, place.rollout
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
        once=place.once,
    )


def _give_all(requests: Sequence[_Request]) -> None:
    """Answer every request in the loop it waits in, waking each loop once."""
    loops: dict[asyncio.AbstractEventLoop, list[_Request]] = {}
    for request in requests:
        loops.setdefault(request.answer.get_loop(), []).append(request)
    for loop, answered in loops.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_give, answered)


def _give(requests: Sequence[_Request]) -> None:
    for request in requests:
        request.give()
