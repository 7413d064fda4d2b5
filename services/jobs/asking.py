"""Questions under way from one worker process: so many to an expert at once, each written down as it is answered.

No thread waits for an expert, and no question for another one's answer: each has its own time, counted from when it was
claimed, and gives its place back when it is over. Questions that find no place wait in their expert's own line; they
are claimed when their turn comes, so no lease runs out in a line. What is lost with the process the sweep sends again.

Everything but the threads that read and write rows happens on the process's event loop.
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

from services.contracts.consultations import InvalidAnswer
from services.experts.protocol.client import ExpertClient, ExpertUnavailable
from services.jobs import dispatch
from services.jobs.metrics import WorkerMeter, name_outcome
from services.runtime.settings import Settings
from services.runtime.tracing import Kind, Span, Tracing, place_of
from services.store.core.transaction import Store, StoreUnavailable
from services.store.loop import consultations, settling
from services.store.loop.consultations import ClaimedConsultation, Place
from services.store.loop.settling import Outcome

MOST_AT_ONCE: Final = 128
"""To one expert from one process, whatever it says it can take: each is a connection."""

RECORDING_THREADS: Final = 4
"""That claim questions and write answers down."""

HINT_SECONDS: Final = 0.1
"""Answers that come this close together wake the trainer once."""

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass
class _Line:
    """What waits for one expert's turn, and how many questions it has now."""

    num_places: int
    num_asked: int = 0
    waiting: deque[UUID] = field(default_factory=deque)


class Asker:
    """Asks what is submitted; lives on one event loop."""

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
        """Ask these questions in their turn; returns at once. Safe from any thread."""
        self._loop.call_soon_threadsafe(self._add, list(consultation_ids))

    def drain(self, seconds: float) -> bool:
        """Wait until nothing is under way; False if something still is after so many seconds. Safe from any thread."""
        return asyncio.run_coroutine_threadsafe(self._drain(seconds), self._loop).result()

    def close(self) -> None:
        """Drop what is under way; its leases run out, and it is asked again."""
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
            log.error("a question was dropped, to be asked again", reason=repr(error), exc_info=error)

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._loop.run_in_executor(self._threads, lambda: work(*args, **kwargs))

    # --- lines ---

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
            log.warning("questions not looked up", reason=error.detail)
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
        questions: list[ClaimedConsultation] = []
        try:
            questions = await self._in_thread(self._claim, ids)
        except StoreUnavailable as error:
            log.warning("questions not claimed", reason=error.detail)
        finally:
            self._known.difference_update(ids)  # from here on the rows tell that they are asked
            line.num_asked -= len(ids) - len(questions)
        if questions:
            self._client.set_clock(questions[0].claimed_at)
        for question in questions:
            self._start(self._ask_and_record(line, question))
        self._move_on(line)

    async def _ask_and_record(self, line: _Line, question: ClaimedConsultation) -> None:
        try:
            reply = await self._ask(question)
            opened = await self._in_thread(self._record, question, reply)
        except StoreUnavailable as error:  # the lease runs out, and the question is asked again
            log.warning("answer not written down", **_name(question), reason=error.detail)
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

    # --- one question ---

    async def _ask(self, question: ClaimedConsultation) -> Outcome | ExpertUnavailable:
        began, began_at = time.perf_counter(), time.time_ns()
        asker = place_of(question.group_id, question.rollout_id)
        place = asker.make_child()
        reply: Outcome | ExpertUnavailable
        try:
            reply = await self._client.consult(
                question.endpoint,
                question.request,
                secret=question.signing_secret,
                timeout=question.timeout_seconds,
                traceparent=place.traceparent if self._tracing.is_on else None,
            )
        except ExpertUnavailable as error:
            reply = error
        self._meter.asked(question.expert_name, reply, time.perf_counter() - began)
        self._tracing.record(
            Span(
                name="consultation",
                place=place,
                parent=asker,
                began=began_at,
                ended=time.time_ns(),
                kind=Kind.CLIENT,
                attributes={
                    "preceptor.consultation": str(question.consultation_id),
                    "preceptor.rollout": str(question.rollout_id),
                    "preceptor.expert": question.expert_name,
                    "preceptor.attempt": question.attempt,
                    "preceptor.outcome": name_outcome(reply),
                },
                failed=str(reply) if isinstance(reply, ExpertUnavailable) else None,
            )
        )
        return reply

    # --- in a thread ---

    def _find_places(self, ids: list[UUID]) -> list[Place]:
        with self._store.transaction() as session:
            return consultations.find_places(session, ids)

    def _claim(self, ids: list[UUID]) -> list[ClaimedConsultation]:
        with self._store.transaction() as session:
            return consultations.claim(session, ids, lease_seconds=self._settings.consultation_lease_seconds)

    def _record(self, question: ClaimedConsultation, reply: Outcome | ExpertUnavailable) -> list[UUID]:
        """Write down how a question ended; the questions that opened because of it."""
        with self._store.transaction() as session:
            if not isinstance(reply, ExpertUnavailable):
                opened = settling.settle(session, question, reply)
                log.info("consultation settled", **_name(question), outcome=_say(reply))
                return opened
            log.warning("expert unavailable", **_name(question), attempt=question.attempt, reason=str(reply))
            settling.release(
                session,
                question,
                str(reply),
                retry_after=reply.retry_after,
                max_attempts=self._settings.max_attempts,
                quarantine_after=self._settings.quarantine_after_failures,
            )
            return []


def _name(question: ClaimedConsultation) -> dict[str, str]:
    """What is asked, of whom, as it is logged."""
    return {
        "consultation_id": str(question.consultation_id),
        "rollout_id": str(question.rollout_id),
        "expert": question.expert_name,
    }


def _say(outcome: Outcome) -> str:
    return f"invalid: {outcome.reason}" if isinstance(outcome, InvalidAnswer) else outcome.outcome
