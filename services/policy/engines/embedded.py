"""The embedded engine: samples and scores with one transformers model in one worker thread.

Requests become units (a prompt to sample from, a micro-batch to score) that wait in order of arrival. Each turn of
the worker admits prompts while there are free rows, runs a micro-batch of scoring now and then, and decodes one token
for every row. One version's weights are active at a time, its adapter merged into them; when the oldest waiting unit
wants another version no more are admitted, the rows in flight finish, and the weights change. A probe is short and
comes between: its version's weights are active for it alone, while the rows in flight wait. A request keeps the
version that its name meant when it was accepted.

Refuses versions that no probe has proved. Not covered: several devices; surviving an error of the model itself: the
worker then fails all requests and `is_alive` turns false.
"""

import itertools
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from services.policy.artifacts import ArtifactStore
from services.policy.contract import (
    BASE_VERSION,
    Counters,
    PolicyInfo,
    ProveRequest,
    SampleRequest,
    SampleResponse,
    ScoredItem,
    ScoreRequest,
    ScoreResponse,
    Version,
    VersionCreate,
)
from services.policy.engines.base import EngineStopped, PolicyBusy, TokenCounts
from services.policy.engines.decode import ATTENTION, check_decoding
from services.policy.engines.packed import PackedModel
from services.policy.engines.sampler import PromptCache, Sampler
from services.policy.engines.text import TextEngine
from services.policy.engines.versions import HeldVersion, VersionTable
from services.policy.engines.work import (
    ProveJob,
    SampleJob,
    SampleUnit,
    ScoreJob,
    ScoreUnit,
    ask_for_scores,
    compare_probe,
    split_by_tokens,
)
from services.policy.model.adapters import LoraDelta, read_deltas
from services.policy.model.modeling import LoadedPolicy, TokenScores, score_responses
from services.policy.text.ends import StopFinder
from services.policy.text.prompts import PromptReader

STEPS_PER_SCORE: Final = 4
"""Decoding steps between two micro-batches of scoring while both wait."""


@dataclass(frozen=True)
class EngineSettings:
    """Limits. Rows are samples being drawn; lengths in tokens."""

    max_rows: int = 64
    max_context: int = 4096
    max_waiting_rows: int = 4096
    score_tokens: int = 1024
    """Response tokens, padding included, that are scored in one micro-batch."""
    prefix_tokens: int = 6144
    """Prompt tokens whose keys and values are remembered for prompts that start alike."""


class EmbeddedEngine(TextEngine):
    """Samples, scores and changes versions behind the policy's HTTP interface. Methods are safe from any thread."""

    def __init__(
        self, policy: LoadedPolicy, artifacts: ArtifactStore, settings: EngineSettings | None = None, name: str = ""
    ) -> None:
        self._policy = policy
        self._model = policy.model
        self._artifacts = artifacts
        self._settings = settings or EngineSettings()
        self._name = name or type(policy.model).__name__
        self._max_context = min(self._settings.max_context, policy.max_positions)
        self._model.set_attn_implementation(ATTENTION)
        self._packed = PackedModel(self._model)
        check_decoding(self._model)
        self._reader = PromptReader(policy, self._max_context)
        self._versions: VersionTable[dict[str, LoraDelta]] = VersionTable({})
        self._active = BASE_VERSION
        self._sample_units: deque[SampleUnit] = deque()
        self._score_units: deque[ScoreUnit] = deque()
        self._probes: deque[ProveJob] = deque()
        self._orders = itertools.count()
        self._tally = TokenCounts()
        self._ends = StopFinder(policy.eos_token_ids, self._reader.detokenize)
        self._sampler = self._make_sampler(self._settings.max_rows)
        self._prompts = self._make_prompt_cache()
        self._steps_since_score = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._failure: str | None = None
        self._started_at = time.monotonic()
        self._busy_seconds = 0.0
        self._thread = threading.Thread(target=self._work, name="policy-engine", daemon=True)
        self._thread.start()

    # --- requests ---

    @property
    def is_alive(self) -> bool:
        """Whether the worker runs; false after an error of the model or after `close`."""
        return self._thread.is_alive() and not self._stopping

    @property
    def failure(self) -> str | None:
        """The error that ended the worker, if any."""
        return self._failure

    def wait(self) -> None:
        """Return when the worker has ended."""
        self._thread.join()

    def close(self) -> None:
        """Stop the worker after its present turn; waiting requests fail with EngineStopped (503)."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    def info(self) -> PolicyInfo:
        """The served model and versions, and the counters."""
        with self._changed:
            counters = Counters(
                uptime_seconds=time.monotonic() - self._started_at,
                busy_seconds=self._busy_seconds,
                tokens_sampled=self._tally.sampled,
                tokens_scored=self._tally.scored,
                tokens_prefilled=self._tally.prefilled,
                tokens_reused=self._tally.reused,
                active_rows=len(self._sampler),
                waiting_rows=self._count_waiting_rows(),
                waiting_score_rows=sum(len(unit.indices) for unit in self._score_units),
            )
            return self._describe(str(self._model.device), str(self._model.dtype).removeprefix("torch."), counters)

    def sample(self, request: SampleRequest) -> "Future[SampleResponse]":
        """Accept prompts; the future holds the answers, and cancelling it drops the work.

        Raises VersionNotFound (404), VersionNotProved (409), PromptRefused (422), PolicyBusy or EngineStopped (503).
        """
        prompts = self._reader.read_prompts(request)
        with self._changed:
            held = self._find_usable(request.version)
            self._require_room(sum(prompt.n for prompt in request.prompts))
            job, units = self._make_sample_job(request, held.view.name, prompts)
            self._sample_units.extend(units)
            self._changed.notify_all()
        return job.future

    def score(self, request: ScoreRequest) -> "Future[ScoreResponse]":
        """Accept responses to score; as `sample`."""
        by_prompt = self._group_items(request)
        with self._changed:
            held = self._find_usable(request.version)
            self._require_room(len(request.items))
            job, units = self._make_score_job(request, held.view.name, by_prompt)
            self._score_units.extend(units)
            self._changed.notify_all()
        return job.future

    def load_version(self, request: VersionCreate) -> Version:
        """Read an adapter into memory under a name; a no-op if the name has these weights already.

        Raises ArtifactNotFound (404), ArtifactDamaged or VersionConflict (409), AdapterRefused (422).
        """
        with self._changed:
            if (loaded := self._versions.find_loaded(request)) is not None:
                return loaded
        folder = self._artifacts.adapter(request.sha256)
        deltas = read_deltas(folder, self._model, self._policy.names)
        with self._changed:
            return self._versions.add(request, deltas)

    def prove_version(self, name: str, request: ProveRequest) -> Version:
        """Compare the version's logprobs with the expected ones; once they agree, draw the requested answers from it.

        It does not wait for answers in flight: they wait for it. Raises VersionNotFound (404), PromptRefused (422),
        EngineStopped (503).
        """
        scoring = ask_for_scores(name, request)
        by_prompt = self._group_items(scoring)
        prompts = [] if request.draw is None else self._reader.read_prompts(request.draw)
        with self._changed:
            self._require_running()
            self._versions.find(name)
            scores, score_units = self._make_score_job(scoring, name, by_prompt)
            drawn: tuple[SampleJob | None, list[SampleUnit]] = (None, [])
            if request.draw is not None:
                drawn = self._make_sample_job(request.draw, name, prompts)
            job = ProveJob(name, request, scores, score_units, *drawn)
            self._probes.append(job)
            self._changed.notify_all()
        result = job.future.result()
        with self._changed:
            return self._versions.record_probe(name, result)

    def serve_version(self, name: str) -> Version:
        """Make a proved version the one that requests without a version get.

        Raises VersionNotFound (404), VersionNotProved (409).
        """
        with self._changed:
            return self._versions.serve(name)

    def delete_version(self, name: str) -> None:
        """Forget a version. Raises VersionNotFound (404), VersionConflict (409) if it is in use or the base."""
        with self._changed:
            in_use = {unit.version for unit in self._sampler.units} | {probe.version for probe in self._probes}
            in_use |= {unit.version for unit in self._sample_units} | {unit.version for unit in self._score_units}
            self._versions.remove(name, in_use)

    # --- accepting work ---

    def _require_running(self) -> None:
        if self._stopping or self._failure is not None:
            raise EngineStopped(self._failure or "the engine is shutting down")

    def _find_usable(self, name: str | None) -> HeldVersion[dict[str, LoraDelta]]:
        self._require_running()
        return self._versions.find_usable(name)

    def _count_waiting_rows(self) -> int:
        return sum(unit.num_waiting for unit in self._sample_units)

    def _require_room(self, num_rows: int) -> None:
        waiting = self._count_waiting_rows() + sum(len(unit.indices) for unit in self._score_units)
        if waiting and waiting + num_rows > self._settings.max_waiting_rows:
            raise PolicyBusy(f"{waiting} rows wait already; at most {self._settings.max_waiting_rows} may")

    def _group_items(self, request: ScoreRequest) -> dict[tuple[int, ...], list[int]]:
        """Which items share a prompt, by its ids."""
        by_prompt: dict[tuple[int, ...], list[int]] = {}
        for index, ids in enumerate(self._reader.read_items(request)):
            by_prompt.setdefault(tuple(ids), []).append(index)
        return by_prompt

    def _make_sample_job(
        self, request: SampleRequest, version: str, prompts: list[list[int]]
    ) -> tuple[SampleJob, list[SampleUnit]]:
        job = SampleJob(request, version, prompts, self._policy.tokenizer_hash)
        return job, [SampleUnit(next(self._orders), job, index) for index in range(len(prompts))]

    def _make_score_job(
        self, request: ScoreRequest, version: str, by_prompt: dict[tuple[int, ...], list[int]]
    ) -> tuple[ScoreJob, list[ScoreUnit]]:
        job = ScoreJob(request, version, self._policy.tokenizer_hash)
        units = [
            ScoreUnit(next(self._orders), job, list(prompt), part)
            for prompt, indices in by_prompt.items()
            for part in split_by_tokens(indices, request.items, self._settings.score_tokens)
        ]
        return job, units

    def _make_sampler(self, max_rows: int) -> Sampler:
        return Sampler(self._model, max_rows, self._ends, self._tally)

    def _make_prompt_cache(self) -> PromptCache:
        return PromptCache(self._model, self._settings.prefix_tokens, self._tally)

    # --- the worker ---

    def _work(self) -> None:
        try:
            while self._wait_for_work():
                started = time.monotonic()
                with torch.inference_mode():
                    self._take_turn()
                self._busy_seconds += time.monotonic() - started
        except Exception as error:
            self._failure = f"the engine failed: {type(error).__name__}: {error}"
            raise
        finally:
            self._fail_everything(EngineStopped(self._failure or "the engine is shutting down"))

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopping or len(self._sampler) or self._sample_units or self._score_units or self._probes
            )
            return not self._stopping

    def _fail_everything(self, error: EngineStopped) -> None:
        with self._changed:
            self._stopping = True
            jobs: dict[int, SampleJob | ScoreJob | ProveJob] = {id(unit.job): unit.job for unit in self._sample_units}
            jobs |= {id(unit.job): unit.job for unit in self._score_units}
            jobs |= {id(unit.job): unit.job for unit in self._sampler.units}
            jobs |= {id(probe): probe for probe in self._probes}
            self._sample_units.clear()
            self._score_units.clear()
            self._probes.clear()
        for job in jobs.values():
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(error)

    def _take_turn(self) -> None:
        self._drop_cancelled()
        self._prove_next()
        oldest = self._find_oldest()
        if not len(self._sampler):
            if oldest is None:
                return
            self._activate(oldest.version)
        # While the oldest unit wants other weights no other is admitted, so that its turn comes.
        if oldest is not None and oldest.version == self._active:
            self._admit_prompts()
            self._steps_since_score += 1
            if not len(self._sampler) or self._steps_since_score >= STEPS_PER_SCORE:
                self._score_next()
        if len(self._sampler):
            self._sampler.step()

    def _find_oldest(self) -> SampleUnit | ScoreUnit | None:
        with self._changed:
            heads: list[SampleUnit | ScoreUnit] = [*itertools.islice(self._sample_units, 1)]
            heads += itertools.islice(self._score_units, 1)
        return min(heads, key=lambda unit: unit.order, default=None)

    def _drop_cancelled(self) -> None:
        self._sampler.drop_cancelled()
        with self._changed:
            for units in (self._sample_units, self._score_units):
                while units and units[0].job.future.cancelled():
                    units.popleft()

    def _activate(self, version: str) -> None:
        if version == self._active:
            return
        with self._changed:
            deltas = self._versions.find(version).weights
        self._packed.merge(deltas)
        self._active = version
        self._prompts = self._make_prompt_cache()

    def _admit_prompts(self) -> None:
        while self._sampler.has_room:
            with self._changed:
                if not self._sample_units or self._sample_units[0].version != self._active:
                    return
                unit = self._sample_units[0]
            self._sampler.admit(unit, self._prompts.read(unit.job.prompts[unit.index]))
            if unit.num_waiting == 0:
                with self._changed:
                    self._sample_units.popleft()

    def _score_next(self) -> None:
        with self._changed:
            if not self._score_units or self._score_units[0].version != self._active:
                return
            unit = self._score_units[0]
        self._score(unit)
        self._steps_since_score = 0
        with self._changed:
            self._score_units.popleft()

    def _score(self, unit: ScoreUnit) -> None:
        request = unit.job.request
        responses = [request.items[index].response_token_ids for index in unit.indices]
        ids, mask = pad_right(responses, self._model.device)
        prefill = self._prompts.read(unit.prompt)
        scores = score_responses(self._model, prefill, ids, mask, request.temperature, request.top_k)
        self._tally.scored += sum(map(len, responses))
        for row, (index, response) in enumerate(zip(unit.indices, responses, strict=True)):
            unit.job.finish(index, _make_scored_item(scores, row, len(response), request.top_k))

    def _prove_next(self) -> None:
        """A version's probe, between two steps: rows in flight keep their keys and values and wait for it."""
        with self._changed:
            if not self._probes:
                return
            job = self._probes[0]
        active, prompts = self._active, self._prompts
        self._activate(job.version)
        for score_unit in job.score_units:
            self._score(score_unit)
        result = compare_probe(job.request, job.scores.future.result().items)
        if job.samples is not None and result.passed:
            sampler = self._make_sampler(sum(unit.num_waiting for unit in job.sample_units))
            for unit in job.sample_units:
                sampler.admit(unit, self._prompts.read(job.samples.prompts[unit.index]))
            while len(sampler):
                if self._stopping:
                    return  # it still waits, and fails with everything else
                sampler.step()
            drawn = [sample for prompt in job.samples.future.result().prompts for sample in prompt.samples]
            result = result.model_copy(update={"drawn_lengths": [len(sample.token_ids) for sample in drawn]})
        if len(self._sampler):  # rows in flight keep their version from being deleted; without them it may be gone
            self._activate(active)
            self._prompts = prompts
        with self._changed:
            self._probes.popleft()
        job.future.set_result(result)


def _make_scored_item(scores: TokenScores, row: int, length: int, top_k: int) -> ScoredItem:
    logprobs = scores.logprobs[row, :length].tolist()
    if top_k == 0:
        return ScoredItem(logprobs=logprobs)
    return ScoredItem(
        logprobs=logprobs,
        top_token_ids=scores.top_ids[row, :length].tolist(),
        top_logprobs=scores.top_logprobs[row, :length].tolist(),
        tail_logmass=scores.tail_logmass[row, :length].tolist(),
    )


def pad_right(responses: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids padded with 0 on the right and the mask of those that exist, both [B, T]."""
    width = max(map(len, responses))
    ids = torch.tensor([[*response, *[0] * (width - len(response))] for response in responses], device=device)
    lengths = torch.tensor([len(response) for response in responses], device=device)
    return ids, torch.arange(width, device=device)[None] < lengths[:, None]
