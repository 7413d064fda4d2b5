"""Consultations in progress in one worker process: a bounded number per expert, each recorded when it is answered.

No thread waits for an expert, and no consultation waits for the answer to another: each has its own timeout, counted
from its claim, and frees its place when it ends. Consultations without a place wait in their expert's queue and are
claimed when their turn comes, so no lease runs out in a queue. The sweep resends those lost with the process.

Everything except the threads that read and write rows runs on the process's event loop.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, ParamSpec, TypeVar
from uuid import UUID

import structlog
from opentelemetry.trace import Status, StatusCode

from services.contracts.consultations import InvalidAnswer
from services.experts.protocol.client import ExpertClient, ExpertUnavailable
from services.jobs import dispatch
from services.jobs.metrics import WorkerMeter, name_outcome
from services.runtime.settings import Settings
from services.runtime.tracing import Tracing, place_of, within
from services.store.core.transaction import Store, StoreUnavailable
from services.store.loop import consultations, settling
from services.store.loop.consultations import ClaimedConsultation, Place
from services.store.loop.settling import Outcome

MOST_AT_ONCE: Final = 128
"""Limit per expert and process, even if the expert allows more: each is a connection."""

RECORDING_THREADS: Final = 4
"""Threads that claim consultations and record answers."""

HINT_SECONDS: Final = 0.1
"""Answers that come this close together wake the trainer once."""

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass
class _Line:
    """The consultations that wait for one expert, and the number in progress."""

    num_places: int
    num_asked: int = 0
    waiting: deque[UUID] = field(default_factory=deque)


class Asker:
    """Sends the submitted consultations; runs on one event loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        store: Store,
        client: ExpertClient,
        settings: Settings,
        meter: WorkerMeter,
        tracing: Tracing,
    ) -> None:
        self._loop = loop
        self._store = store
        self._client = client
        self._settings = settings
        self._meter = meter
        self._tracing = tracing
        self._threads = ThreadPoolExecutor(RECORDING_THREADS, "consultations")
        self._lines: dict[UUID, _Line] = {}
        self._known: set[UUID] = set()
        self._under_way: set[asyncio.Task[None]] = set()
        self._hinting = False

    def submit(self, consultation_ids: Sequence[UUID]) -> None:
        """Submit these consultations; returns at once. Safe from any thread."""
        self._loop.call_soon_threadsafe(self._add, list(consultation_ids))

    def drain(self, seconds: float) -> bool:
        """Wait until no consultation is in progress; False after so many seconds. Safe from any thread."""
        return asyncio.run_coroutine_threadsafe(self._drain(seconds), self._loop).result()

    def close(self) -> None:
        """Drop the consultations in progress; their leases run out, and they are sent again."""
        asyncio.run_coroutine_threadsafe(self._cancel(), self._loop).result()
        self._threads.shutdown()

    async def _drain(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while self._under_way and time.monotonic() < until:
            await asyncio.wait(set(self._under_way), timeout=until - time.monotonic())
        return not self._under_way

    async def _cancel(self) -> None:
        tasks = set(self._under_way)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a consultation was dropped, to be asked again", reason=repr(error), exc_info=error)

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._loop.run_in_executor(self._threads, lambda: work(*args, **kwargs))

    # --- queues ---

    def _add(self, ids: list[UUID]) -> None:
        new = [one for one in ids if one not in self._known]
        if new:
            self._known.update(new)
            self._start(self._queue_up(new))

    async def _queue_up(self, ids: list[UUID]) -> None:
        places: list[Place] = []
        try:
            places = await self._in_thread(self._find_places, ids)
        except StoreUnavailable as error:
            log.warning("consultations not looked up", reason=error.detail)
        finally:
            self._known.difference_update(set(ids) - {place.consultation_id for place in places})
        for place in places:
            line = self._lines.setdefault(place.expert_id, _Line(place.max_concurrency))
            line.num_places = min(place.max_concurrency, MOST_AT_ONCE)
            line.waiting.append(place.consultation_id)
        for expert_id in {place.expert_id for place in places}:
            self._move_on(self._lines[expert_id])

    def _move_on(self, line: _Line) -> None:
        num_free = min(line.num_places - line.num_asked, len(line.waiting))
        ids = [line.waiting.popleft() for _ in range(num_free)]
        if ids:
            line.num_asked += len(ids)
            self._start(self._claim_and_ask(line, ids))

    async def _claim_and_ask(self, line: _Line, ids: list[UUID]) -> None:
        claimed: list[ClaimedConsultation] = []
        try:
            claimed = await self._in_thread(self._claim, ids)
        except StoreUnavailable as error:
            log.warning("consultations not claimed", reason=error.detail)
        finally:
            self._known.difference_update(ids)  # from here on the rows record that they are sent
            line.num_asked -= len(ids) - len(claimed)
        if claimed:
            self._client.set_clock(claimed[0].claimed_at)
        for consultation in claimed:
            self._start(self._ask_and_record(line, consultation))
        self._move_on(line)

    async def _ask_and_record(self, line: _Line, consultation: ClaimedConsultation) -> None:
        try:
            reply = await self._ask(consultation)
            opened = await self._in_thread(self._record, consultation, reply)
        except StoreUnavailable as error:  # the lease runs out, and the consultation is asked again
            log.warning("answer not written down", **_name(consultation), reason=error.detail)
            return
        finally:
            line.num_asked -= 1
            self._move_on(line)
        if opened:
            await self._in_thread(dispatch.consultations, opened)
        if not self._hinting:
            self._hinting = True
            self._start(self._hint())

    async def _hint(self) -> None:
        try:
            await asyncio.sleep(HINT_SECONDS)
        finally:
            self._hinting = False
        await self._in_thread(dispatch.lessons)

    # --- one consultation ---

    async def _ask(self, consultation: ClaimedConsultation) -> Outcome | ExpertUnavailable:
        began = time.perf_counter()
        reply: Outcome | ExpertUnavailable
        with self._tracing.tracer.start_as_current_span(
            "consultation",
            within(place_of(consultation.group_id, consultation.rollout_id)),
            attributes={
                "preceptor.consultation": str(consultation.consultation_id),
                "preceptor.rollout": str(consultation.rollout_id),
                "preceptor.expert": consultation.expert_name,
                "preceptor.attempt": consultation.attempt,
            },
        ) as span:
            try:
                reply = await self._client.consult(
                    consultation.endpoint,
                    consultation.request,
                    secret=consultation.signing_secret,
                    timeout=consultation.timeout_seconds,
                )
            except ExpertUnavailable as error:
                reply = error
                span.set_status(Status(StatusCode.ERROR, str(error)))
            span.set_attribute("preceptor.outcome", name_outcome(reply))
        self._meter.asked(consultation.expert_name, reply, time.perf_counter() - began)
        return reply

    # --- in a thread ---

    def _find_places(self, ids: list[UUID]) -> list[Place]:
        with self._store.transaction() as session:
            return consultations.find_places(session, ids)

    def _claim(self, ids: list[UUID]) -> list[ClaimedConsultation]:
        with self._store.transaction() as session:
            return consultations.claim(session, ids, lease_seconds=self._settings.consultation_lease_seconds)

    def _record(self, consultation: ClaimedConsultation, reply: Outcome | ExpertUnavailable) -> list[UUID]:
        """Record how a consultation ended; returns the consultations that it opened."""
        with self._store.transaction() as session:
            if not isinstance(reply, ExpertUnavailable):
                opened = settling.settle(session, consultation, reply)
                log.info("consultation settled", **_name(consultation), outcome=_say(reply))
                return opened
            log.warning("expert unavailable", **_name(consultation), attempt=consultation.attempt, reason=str(reply))
            settling.release(
                session,
                consultation,
                str(reply),
                retry_after=reply.retry_after,
                max_attempts=self._settings.max_attempts,
                quarantine_after=self._settings.quarantine_after_failures,
            )
            return []


def _name(consultation: ClaimedConsultation) -> dict[str, str]:
    """The fields that identify a consultation in the log."""
    return {
        "consultation_id": str(consultation.consultation_id),
        "rollout_id": str(consultation.rollout_id),
        "expert": consultation.expert_name,
    }


def _say(outcome: Outcome) -> str:
    return f"invalid: {outcome.reason}" if isinstance(outcome, InvalidAnswer) else outcome.outcome
