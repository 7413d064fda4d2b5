"""The engine that asks a vLLM server: it draws and scores there, and keeps the contract's promises here.

An adapter's name at the server is its sha256, so that no name there ever means two weights, whatever the versions are
called, and vLLM's prefix cache, which is keyed by the name, never mixes two. The base is asked for as an adapter too,
one that changes nothing (base_adapter.py).

The server is not trusted to hold the right weights. Before it serves any answer the base's logprobs are compared with
those that this process computed once from the model's folder (base_probe.py). Whenever the server was away or an
adapter is gone, that probe and every proved version's own are repeated before the next answer; meanwhile all requests
are refused as unavailable. Drawing and scoring themselves are in vllm_work.py.

Not covered: several servers behind one address; a server that swaps its weights while it answers.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import structlog

from services.policy.artifacts import ArtifactDamaged, ArtifactNotFound, ArtifactStore
from services.policy.contract import (
    BASE_VERSION,
    Counters,
    PolicyInfo,
    ProbeResult,
    ProveRequest,
    Sample,
    SampledPrompt,
    SampleRequest,
    SampleResponse,
    ScoredItem,
    ScoreRequest,
    ScoreResponse,
    Version,
    VersionCreate,
)
from services.policy.engines.base import EngineStopped, PolicyBusy
from services.policy.engines.base_adapter import store_base_adapter
from services.policy.engines.base_probe import BaseProbe
from services.policy.engines.text import TextEngine
from services.policy.engines.versions import HeldVersion, VersionTable
from services.policy.engines.vllm_client import ServedModel, VllmClient, VllmModelMissing, VllmRefused, VllmUnavailable
from services.policy.engines.vllm_work import VllmWork, gather, require_temperature
from services.policy.engines.work import ask_for_scores
from services.policy.model.adapters import read_deltas
from services.policy.model.modeling import LoadedPolicy
from services.policy.text.ends import StopFinder
from services.policy.text.prompts import PromptReader
from services.runtime.errors import PreceptorError

WATCH_SECONDS: Final = 2.0
"""Interval between two checks of the server's adapters; it takes many times as long to start."""

SCORES_AT_ONCE: Final = 16
"""Items being scored at the same time: the server reads each from its start, and answers grow behind them."""

R = TypeVar("R")

log = structlog.get_logger("policy")


@dataclass(frozen=True)
class VllmSettings:
    """Limits, and where the server sees the artifacts folder. Rows are samples being drawn; lengths in tokens."""

    max_rows: int = 64
    max_context: int = 4096
    max_waiting_rows: int = 4096
    server_artifacts: Path | None = None
    """The artifacts folder's path at the server; the same as here where absent."""


@dataclass
class _Adapter:
    """A version's weights at the server (for the base an adapter of zeros), and the latest proof, to repeat it."""

    sha256: str
    proof: ProveRequest | None = None


@dataclass(eq=False)
class _Job:
    """A request that was accepted, and how far it is."""

    version: str
    num_rows: int
    draws: bool
    num_active: int = 0
    num_done: int = 0

    @property
    def num_waiting(self) -> int:
        """Rows that have not been begun."""
        return self.num_rows - self.num_active - self.num_done


class VllmEngine(TextEngine):
    """Samples, scores and changes versions at a vLLM server. Methods are safe from any thread."""

    def __init__(
        self,
        policy: LoadedPolicy,
        probe: BaseProbe,
        artifacts: ArtifactStore,
        client: VllmClient,
        settings: VllmSettings | None = None,
        name: str = "",
    ) -> None:
        """Connect to a server and prove its base. policy: its model is only looked at for names and shapes.

        Raises VllmUnavailable if the server is away, VllmRefused if it cannot serve this policy as it was started.
        """
        self._policy = policy
        self._probe = probe
        self._artifacts = artifacts
        self._vllm = client
        self._settings = settings or VllmSettings()
        self._server_artifacts = self._settings.server_artifacts or artifacts.root.resolve()
        self._name = name or type(policy.model).__name__
        self._versions: VersionTable[_Adapter] = VersionTable(_Adapter(store_base_adapter(policy, artifacts)))
        self._lock = threading.Lock()
        self._jobs: set[_Job] = set()
        self._started_at = time.monotonic()
        self._busy_seconds = 0.0
        self._busy_since: float | None = None
        self._trouble: str | None = None
        self._stopping = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="policy-vllm", daemon=True)
        self._thread.start()
        self._slots = asyncio.Semaphore(self._settings.max_rows)
        self._score_slots = asyncio.Semaphore(SCORES_AT_ONCE)
        self._doubt = asyncio.Event()
        try:
            base, self._server_version = self._wait_for(self._connect())
            room = (base.max_model_len or policy.max_positions) - 1  # a score draws one superfluous token
            self._max_context = min(self._settings.max_context, policy.max_positions, room)
            self._reader = PromptReader(policy, self._max_context)
            self._work = VllmWork(client, policy, StopFinder(policy.eos_token_ids, self._reader.detokenize))
            self._wait_for(self._restore_base())
        except BaseException:
            self.close()
            raise
        self._watcher = asyncio.run_coroutine_threadsafe(self._watch(), self._loop)

    # --- requests ---

    @property
    def is_alive(self) -> bool:
        """Whether the server answers and holds the right weights."""
        return not self._stopping and self._trouble is None

    @property
    def failure(self) -> str | None:
        """Only `close` ends this engine: it waits for a server that is away."""
        return None

    def wait(self) -> None:
        """Return when the engine was closed."""
        self._thread.join()

    def close(self) -> None:
        """Drop the connections and the requests underway, which fail with EngineStopped (503). The server goes on."""
        with self._lock:
            if self._stopping:
                return
            self._stopping = True
        self._wait_for(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def info(self) -> PolicyInfo:
        """The served model and versions, and the counters."""
        with self._lock:
            now, tally = time.monotonic(), self._work.tally
            counters = Counters(
                uptime_seconds=now - self._started_at,
                busy_seconds=self._busy_seconds + (now - self._busy_since if self._busy_since is not None else 0.0),
                tokens_sampled=tally.sampled,
                tokens_scored=tally.scored,
                tokens_prefilled=tally.prefilled,
                tokens_reused=tally.reused,
                active_rows=sum(job.num_active for job in self._jobs if job.draws),
                waiting_rows=sum(job.num_waiting for job in self._jobs if job.draws),
                waiting_score_rows=sum(job.num_waiting for job in self._jobs if not job.draws),
            )
            return self._describe(f"vLLM {self._server_version}", self._probe.dtype, counters)

    def sample(self, request: SampleRequest) -> "Future[SampleResponse]":
        """Accept prompts; the future holds the answers, and cancelling it drops the work at the server.

        Raises VersionNotFound (404), VersionNotProved (409), PromptRefused or VllmRefused (422), PolicyBusy,
        VllmUnavailable or EngineStopped (503), some of them through the future.
        """
        prompts = self._reader.read_prompts(request)
        require_temperature(request.temperature)
        with self._lock:
            held = self._find_usable(request.version)
            job = self._accept(held, sum(prompt.n for prompt in request.prompts), draws=True)
            return self._start(lambda: self._sample(request, prompts, held, job), job)

    def score(self, request: ScoreRequest) -> "Future[ScoreResponse]":
        """Accept responses to score; as `sample`."""
        prompts = self._reader.read_items(request)
        with self._lock:
            held = self._find_usable(request.version)
            job = self._accept(held, len(request.items), draws=False)
            return self._start(lambda: self._score(request, prompts, held, job), job)

    def load_version(self, request: VersionCreate) -> Version:
        """Have the server load an adapter; a no-op if the name has these weights already.

        Raises ArtifactNotFound (404), ArtifactDamaged or VersionConflict (409), AdapterRefused or VllmRefused (422),
        VllmUnavailable (503).
        """
        with self._lock:
            self._require_running()
            if (loaded := self._versions.find_loaded(request)) is not None:
                return loaded
        self._wait_for(self._load(request.sha256))
        with self._lock:
            return self._versions.add(request, _Adapter(request.sha256))

    def prove_version(self, name: str, request: ProveRequest) -> Version:
        """Compare the version's logprobs with the expected ones; once they agree, draw the requested answers from it.

        It waits for no answer in flight. Raises VersionNotFound (404), PromptRefused (422), VllmUnavailable or
        EngineStopped (503).
        """
        self._reader.read_items(ask_for_scores(name, request))
        prompts = [] if request.draw is None else self._reader.read_prompts(request.draw)
        if request.draw is not None:
            require_temperature(request.draw.temperature)
        with self._lock:
            self._require_running()
            held = self._versions.find(name)
            job = _Job(name, len(request.items), draws=False)
            future = self._start(lambda: self._prove(request, prompts, held), job)
        result = future.result()
        with self._lock:
            if result.passed:
                held.weights.proof = request.model_copy(update={"draw": None})
            return self._versions.record_probe(name, result)

    def serve_version(self, name: str) -> Version:
        """Make a proved version the one that requests without a version get.

        Raises VersionNotFound (404), VersionNotProved (409).
        """
        with self._lock:
            return self._versions.serve(name)

    def delete_version(self, name: str) -> None:
        """Forget a version, at the server too. Raises VersionNotFound (404), VersionConflict (409) if it is in use."""
        with self._lock:
            gone = self._versions.remove(name, {job.version for job in self._jobs}).weights.sha256
            if gone in self._list_adapters():
                return
        try:
            self._wait_for(self._vllm.unload_adapter(gone))
        except VllmUnavailable as error:  # it is gone already, or will be when the server starts again
            log.warning("the adapter was not unloaded", sha256=gone, reason=error.detail)

    # --- accepting work ---

    def _require_running(self) -> None:
        if self._stopping:
            raise EngineStopped("the engine is shutting down")
        if self._trouble is not None:
            raise VllmUnavailable(self._trouble)

    def _find_usable(self, name: str | None) -> HeldVersion[_Adapter]:
        self._require_running()
        return self._versions.find_usable(name)

    def _list_adapters(self) -> set[str]:
        return {held.weights.sha256 for held in self._versions.held()}

    def _accept(self, held: HeldVersion[_Adapter], num_rows: int, *, draws: bool) -> _Job:
        waiting = sum(job.num_waiting for job in self._jobs)
        if waiting and waiting + num_rows > self._settings.max_waiting_rows:
            raise PolicyBusy(f"{waiting} rows wait already; at most {self._settings.max_waiting_rows} may")
        return _Job(held.view.name, num_rows, draws)

    def _start(self, work: Callable[[], Coroutine[None, None, R]], job: _Job) -> "Future[R]":
        """Begin a job on the loop; under the lock."""
        self._jobs.add(job)
        if self._busy_since is None:
            self._busy_since = time.monotonic()
        future = asyncio.run_coroutine_threadsafe(self._run(work), self._loop)
        # By way of the loop: a future that is done by now would call back at once, and the lock is held here.
        self._loop.call_soon_threadsafe(future.add_done_callback, lambda _: self._leave(job))
        return future

    def _leave(self, job: _Job) -> None:
        with self._lock:
            self._jobs.discard(job)
            if not self._jobs and self._busy_since is not None:
                self._busy_seconds += time.monotonic() - self._busy_since
                self._busy_since = None

    async def _run(self, work: Callable[[], Coroutine[None, None, R]]) -> R:
        try:
            return await work()
        except asyncio.CancelledError:
            if self._stopping:
                raise EngineStopped("the engine is shutting down") from None
            raise
        except VllmModelMissing as error:
            self._doubt.set()  # the watcher brings it back
            raise VllmUnavailable(f"an adapter is being loaded again: {error.detail}") from error

    def _wait_for(self, work: Coroutine[None, None, R]) -> R:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    # --- drawing and scoring, on the loop ---

    async def _sample(
        self, request: SampleRequest, prompts: list[list[int]], held: HeldVersion[_Adapter], job: _Job
    ) -> SampleResponse:
        async def draw(index: int, row: int) -> Sample:
            async with self._slots:
                job.num_active += 1
                try:
                    seed = request.prompts[index].seed
                    return await self._work.draw_row(held.weights.sha256, request, prompts[index], seed, row)
                finally:
                    job.num_active -= 1
                    job.num_done += 1

        rows = [(index, row) for index, prompt in enumerate(request.prompts) for row in range(prompt.n)]
        samples = iter(await gather([draw(index, row) for index, row in rows]))
        answered = [
            SampledPrompt(id=prompt.id, prompt_token_ids=ids, samples=[next(samples) for _ in range(prompt.n)])
            for prompt, ids in zip(request.prompts, prompts, strict=True)
        ]
        return SampleResponse(version=held.view.name, tokenizer_hash=self._policy.tokenizer_hash, prompts=answered)

    async def _score(
        self, request: ScoreRequest, prompts: list[list[int]], held: HeldVersion[_Adapter], job: _Job
    ) -> ScoreResponse:
        async def score(prompt: list[int], response: list[int]) -> ScoredItem:
            async with self._score_slots:
                job.num_active += 1
                try:
                    return await self._work.score_tokens(
                        held.weights.sha256, prompt, response, request.temperature, request.top_k
                    )
                finally:
                    job.num_active -= 1
                    job.num_done += 1

        items = zip(prompts, request.items, strict=True)
        scored = await gather([score(prompt, item.response_token_ids) for prompt, item in items])
        return ScoreResponse(version=held.view.name, tokenizer_hash=self._policy.tokenizer_hash, items=scored)

    async def _prove(
        self, request: ProveRequest, draw_prompts: list[list[int]], held: HeldVersion[_Adapter]
    ) -> ProbeResult:
        model, draw = held.weights.sha256, request.draw
        result = await self._work.compare(model, request)
        if draw is None or not result.passed:
            return result
        rows = [
            self._work.draw_row(model, draw, ids, prompt.seed, row)
            for prompt, ids in zip(draw.prompts, draw_prompts, strict=True)
            for row in range(prompt.n)
        ]
        return result.model_copy(update={"drawn_lengths": [len(one.token_ids) for one in await gather(rows)]})

    # --- the server ---

    async def _connect(self) -> tuple[ServedModel, str]:
        bases = [model for model in await self._vllm.list_models() if model.parent is None]
        if not bases:
            raise VllmUnavailable("the vLLM server serves no base model")
        return bases[0], await self._vllm.read_version()

    async def _restore_base(self) -> None:
        """Pass when the server computes this policy's base. Raises VllmUnavailable, VllmRefused."""
        sha256 = await asyncio.to_thread(store_base_adapter, self._policy, self._artifacts)
        await self._load(sha256)
        await self._work.check_base(sha256, self._probe)

    async def _load(self, sha256: str) -> None:
        folder = await asyncio.to_thread(self._artifacts.adapter, sha256)
        await asyncio.to_thread(read_deltas, folder, self._policy.model, self._policy.names)
        await self._vllm.load_adapter(sha256, str(self._server_artifacts / sha256))

    async def _watch(self) -> None:
        """Notice a server that was away or lost adapters, and trust it again once everything is proved anew."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._doubt.wait(), WATCH_SECONDS)
            self._doubt.clear()
            with self._lock:
                wanted = self._list_adapters()
            try:
                served = {model.id for model in await self._vllm.list_models()}
                if self._trouble is not None or not wanted <= served:
                    self._trouble = self._trouble or "the vLLM server lost adapters; they are being loaded again"
                    log.warning("making sure of the vLLM server again", reason=self._trouble)
                    await self._restore(served)
                    log.info("the vLLM server is trusted again")
                self._trouble = None
            except PreceptorError as error:
                if self._trouble != error.detail:
                    log.warning("the vLLM server is not used", reason=error.detail, hint=error.hint)
                self._trouble = error.detail

    async def _restore(self, served: set[str]) -> None:
        _, self._server_version = await self._connect()
        await self._restore_base()
        for held in self._versions.held():
            adapter, name = held.weights, held.view.name
            if name == BASE_VERSION:
                continue
            try:
                if adapter.sha256 not in served:
                    await self._load(adapter.sha256)
            except (ArtifactNotFound, ArtifactDamaged) as error:
                if name == self._versions.serving:
                    raise
                log.warning("a version is gone for good", version=name, reason=error.detail)
                with self._lock:
                    self._versions.remove(name, frozenset())
                continue
            if adapter.proof is not None:
                result = await self._work.compare(held.weights.sha256, adapter.proof)
                if not result.passed:
                    raise VllmRefused(f"{name} now computes other logprobs: {result.max_difference:.3g} nats apart")

    async def _stop(self) -> None:
        mine = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not mine]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._vllm.close()
