"""The embedded engine: samples and scores with one transformers model in one worker thread.

Requests become units (a prompt to sample from, a micro-batch to score) that wait in order of arrival. Each turn of
the worker admits prompts while there are free rows, runs a micro-batch of scoring now and then, and decodes one token
for every row. One version's weights are active at a time, its adapter merged into them; when the oldest waiting unit
wants another version nothing more is admitted, the rows in flight finish, and the weights change. A request keeps the
version that its name meant when it was accepted.

Refuses versions that no probe has proved. Not covered: several devices; surviving an error of the model itself: the
worker then fails everything and `is_alive` turns false.
"""

import hashlib
import itertools
import math
import re
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from services.contracts.base import check_change
from services.contracts.tasks import Message
from services.errors import Conflict, InvalidInput, NotFound, ServiceUnavailable
from services.policy.artifacts import ArtifactStore
from services.policy.contract import (
    BASE_VERSION,
    CLOSING_FENCE,
    VERSION_CHANGES,
    Counters,
    FinishReason,
    PolicyInfo,
    ProbeResult,
    ProveRequest,
    Sample,
    SampledPrompt,
    SampleRequest,
    SampleResponse,
    ScoredItem,
    ScoreItem,
    ScoreRequest,
    ScoreResponse,
    Version,
    VersionCreate,
    VersionStatus,
)
from services.policy.decode import ATTENTION, DecodeRows, check_decoding, draw_tokens
from services.policy.modeling import (
    LoadedPolicy,
    LoraDelta,
    Prefill,
    TokenScores,
    count_common,
    decode_ids,
    encode_text,
    prefill_prompt,
    project,
    read_deltas,
    render_prompt,
    score_responses,
)
from services.policy.packed import PackedModel

STEPS_PER_SCORE: Final = 4
"""Decoding steps between two micro-batches of scoring while both wait."""

_CLOSED_FENCE: Final = re.compile(r"(?:\A|\n)[ \t]*```.*?\n```", re.DOTALL)


class VersionNotFound(NotFound):
    """No version of this name is loaded."""

    title = "Version not found"
    hint = "GET /v1/policy lists the versions; load the adapter again with POST /v1/versions."


class VersionConflict(Conflict):
    """The name belongs to other weights, or the version is in use."""

    title = "Version conflict"


class VersionNotProved(Conflict):
    """No probe has shown yet that this version computes the trainer's logprobs."""

    title = "Version not proved"
    hint = "POST /v1/versions/{name}/prove first."


class PromptRefused(InvalidInput):
    """The prompt or response cannot be processed: too long, or ids outside the vocabulary."""

    title = "Prompt refused"


class PolicyBusy(ServiceUnavailable):
    """Too much work is waiting already."""

    title = "Policy busy"


class EngineStopped(ServiceUnavailable):
    """The engine is shutting down or has failed; nothing is accepted any more."""

    title = "Engine stopped"


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


@dataclass
class _SampleJob:
    request: SampleRequest
    version: str
    prompts: list[list[int]]
    future: "Future[SampleResponse]"
    samples: list[list[Sample | None]]
    num_missing: int


@dataclass
class _SampleUnit:
    order: int
    job: _SampleJob
    index: int
    num_admitted: int = 0

    @property
    def version(self) -> str:
        return self.job.version


@dataclass
class _ScoreJob:
    request: ScoreRequest
    version: str
    future: "Future[ScoreResponse]"
    items: list[ScoredItem | None]
    num_missing: int


@dataclass
class _ScoreUnit:
    order: int
    job: _ScoreJob
    prompt: list[int]
    indices: list[int]

    @property
    def version(self) -> str:
        return self.job.version


@dataclass
class _Row:
    unit: _SampleUnit
    number: int
    uniforms: list[float]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


@dataclass
class _HeldVersion:
    view: Version
    deltas: dict[str, LoraDelta]


class EmbeddedEngine:
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
        base = Version(name=BASE_VERSION, sha256=None, status=VersionStatus.SERVING)
        self._versions = {BASE_VERSION: _HeldVersion(base, {})}
        self._names_used: dict[str, str] = {}
        self._serving = BASE_VERSION
        self._active = BASE_VERSION
        self._sample_units: deque[_SampleUnit] = deque()
        self._score_units: deque[_ScoreUnit] = deque()
        self._orders = itertools.count()
        self._batch = DecodeRows(self._model, self._settings.max_rows)
        self._rows: list[_Row] = []
        self._steps_since_score = 0
        self._prefixes: OrderedDict[tuple[int, ...], Prefill] = OrderedDict()
        self._pieces: dict[int, str] = {}
        self._tokenizer_lock = threading.Lock()
        self._changed = threading.Condition()
        self._stopping = False
        self._failure: str | None = None
        self._started_at = time.monotonic()
        self._busy_seconds = 0.0
        self._tokens_sampled = self._tokens_scored = self._tokens_prefilled = self._tokens_reused = 0
        self._thread = threading.Thread(target=self._work, name="policy-engine", daemon=True)
        self._thread.start()

    # --- what is asked of it ---

    @property
    def is_alive(self) -> bool:
        """Whether the worker runs; false after an error of the model or after `close`."""
        return self._thread.is_alive() and not self._stopping

    @property
    def failure(self) -> str | None:
        """What ended the worker, if it was an error."""
        return self._failure

    def wait(self) -> None:
        """Return when the worker has ended."""
        self._thread.join()

    def close(self) -> None:
        """Stop the worker after its present turn; what waits fails with EngineStopped (503)."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    def info(self) -> PolicyInfo:
        """What is served, and the counters."""
        with self._changed:
            counters = Counters(
                uptime_seconds=time.monotonic() - self._started_at,
                busy_seconds=self._busy_seconds,
                tokens_sampled=self._tokens_sampled,
                tokens_scored=self._tokens_scored,
                tokens_prefilled=self._tokens_prefilled,
                tokens_reused=self._tokens_reused,
                active_rows=len(self._rows),
                waiting_rows=self._count_waiting_rows(),
                waiting_score_rows=sum(len(unit.indices) for unit in self._score_units),
            )
            return PolicyInfo(
                model=self._name,
                base_sha256=self._policy.base_sha256,
                tokenizer_hash=self._policy.tokenizer_hash,
                vocab_size=self._policy.vocab_size,
                eos_token_ids=list(self._policy.eos_token_ids),
                max_context=self._max_context,
                device=str(self._model.device),
                dtype=str(self._model.dtype).removeprefix("torch."),
                serving=self._serving,
                versions=[held.view for held in self._versions.values()],
                counters=counters,
            )

    def tokenize(self, messages: Sequence[Message] | None, text: str | None) -> list[int]:
        """Token ids of messages, up to where the policy would answer, or else of text."""
        with self._tokenizer_lock:
            if messages is not None:
                return render_prompt(self._policy.tokenizer, messages)
            return encode_text(self._policy.tokenizer, text or "")

    def detokenize(self, token_ids: list[int]) -> str:
        """Text of token ids. Raises PromptRefused (422) for ids outside the vocabulary."""
        self._require_known_ids(token_ids, "token_ids")
        with self._tokenizer_lock:
            return decode_ids(self._policy.tokenizer, token_ids)

    def sample(self, request: SampleRequest) -> "Future[SampleResponse]":
        """Accept prompts; the future holds the answers, and cancelling it drops the work.

        Raises VersionNotFound (404), VersionNotProved (409), PromptRefused (422), PolicyBusy or EngineStopped (503).
        """
        prompts = [self._prepare_prompt(p.messages, p.token_ids, request.max_new_tokens) for p in request.prompts]
        num_rows = sum(prompt.n for prompt in request.prompts)
        with self._changed:
            held = self._find_usable(request.version)
            self._require_room(num_rows)
            job = _SampleJob(
                request=request,
                version=held.view.name,
                prompts=prompts,
                future=Future(),
                samples=[[None] * prompt.n for prompt in request.prompts],
                num_missing=num_rows,
            )
            self._sample_units.extend(_SampleUnit(next(self._orders), job, index) for index in range(len(prompts)))
            self._changed.notify_all()
        return job.future

    def score(self, request: ScoreRequest) -> "Future[ScoreResponse]":
        """Accept responses to score; as `sample`."""
        return self._accept_score(request, allow_unproved=False)

    def load_version(self, request: VersionCreate) -> Version:
        """Read an adapter into memory under a name; the same name with the same weights changes nothing.

        Raises ArtifactNotFound (404), ArtifactDamaged or VersionConflict (409), AdapterRefused (422).
        """
        with self._changed:
            if request.name == BASE_VERSION or self._names_used.get(request.name, request.sha256) != request.sha256:
                raise VersionConflict(f"the name {request.name!r} belongs to other weights")
            if request.name in self._versions:
                return self._versions[request.name].view
        folder = self._artifacts.adapter(request.sha256)
        deltas = read_deltas(folder, self._model, self._policy.base_sha256)
        with self._changed:
            view = Version(name=request.name, sha256=request.sha256, status=VersionStatus.LOADED)
            held = self._versions.setdefault(request.name, _HeldVersion(view, deltas))
            if held.view.sha256 != request.sha256:
                raise VersionConflict(f"the name {request.name!r} belongs to other weights")
            self._names_used[request.name] = request.sha256
            return held.view

    def prove_version(self, name: str, request: ProveRequest) -> Version:
        """Compare the version's logprobs with the expected ones, waiting for its turn.

        Raises VersionNotFound (404), PromptRefused (422), PolicyBusy or EngineStopped (503).
        """
        items = [
            ScoreItem(prompt_token_ids=item.prompt_token_ids, response_token_ids=item.response_token_ids)
            for item in request.items
        ]
        scores = self._accept_score(
            ScoreRequest(version=name, temperature=request.temperature, items=items), allow_unproved=True
        ).result()
        differences = [
            abs(ours - expected)
            for item, scored in zip(request.items, scores.items, strict=True)
            for ours, expected in zip(scored.logprobs, item.logprobs, strict=True)
        ]
        worst = max(differences)
        result = ProbeResult(
            passed=worst <= request.tolerance,
            max_difference=worst,
            mean_difference=math.fsum(differences) / len(differences),
            num_tokens=len(differences),
            tolerance=request.tolerance,
        )
        with self._changed:
            held = self._find(name)
            status = VersionStatus.PROVED if result.passed else VersionStatus.REFUSED
            if held.view.status is VersionStatus.SERVING:
                # A serving version is only measured again: taking it away here would leave nothing to serve.
                status = VersionStatus.SERVING
            else:
                check_change(VERSION_CHANGES, held.view.status, status)
            held.view = held.view.model_copy(update={"status": status, "probe": result})
            return held.view

    def serve_version(self, name: str) -> Version:
        """Make a proved version the one that requests without a version get.

        Raises VersionNotFound (404), VersionNotProved (409).
        """
        with self._changed:
            held = self._find(name)
            if name == self._serving:
                return held.view
            if held.view.status is not VersionStatus.PROVED:
                raise VersionNotProved(f"version {name!r} is {held.view.status.value}")
            before = self._versions[self._serving]
            before.view = before.view.model_copy(update={"status": VersionStatus.PROVED})
            held.view = held.view.model_copy(update={"status": VersionStatus.SERVING})
            self._serving = name
            return held.view

    def delete_version(self, name: str) -> None:
        """Forget a version. Raises VersionNotFound (404), VersionConflict (409) if it is in use or the base."""
        with self._changed:
            self._find(name)
            in_use = {BASE_VERSION, self._serving} | {row.unit.version for row in list(self._rows)}
            in_use |= {unit.version for unit in self._sample_units} | {unit.version for unit in self._score_units}
            if name in in_use:
                raise VersionConflict(f"version {name!r} is in use")
            del self._versions[name]

    # --- accepting work ---

    def _find(self, name: str) -> _HeldVersion:
        if name not in self._versions:
            raise VersionNotFound(f"no version {name!r} is loaded; the serving one is {self._serving!r}")
        return self._versions[name]

    def _find_usable(self, name: str | None, allow_unproved: bool = False) -> _HeldVersion:
        if self._stopping or self._failure is not None:
            raise EngineStopped(self._failure or "the engine is shutting down")
        held = self._find(name or self._serving)
        usable = held.view.status in (VersionStatus.PROVED, VersionStatus.SERVING)
        if not usable and not allow_unproved:
            raise VersionNotProved(f"version {held.view.name!r} is {held.view.status.value}")
        return held

    def _count_waiting_rows(self) -> int:
        return sum(unit.job.request.prompts[unit.index].n - unit.num_admitted for unit in self._sample_units)

    def _require_room(self, num_rows: int) -> None:
        waiting = self._count_waiting_rows() + sum(len(unit.indices) for unit in self._score_units)
        if waiting and waiting + num_rows > self._settings.max_waiting_rows:
            raise PolicyBusy(f"{waiting} rows wait already; at most {self._settings.max_waiting_rows} may")

    def _prepare_prompt(
        self, messages: Sequence[Message] | None, token_ids: list[int] | None, num_more_tokens: int
    ) -> list[int]:
        if messages is not None:
            ids = self.tokenize(messages, None)
        else:
            ids = list(token_ids or [])
            self._require_known_ids(ids, "the prompt")
        if len(ids) + num_more_tokens > self._max_context:
            raise PromptRefused(
                f"a prompt of {len(ids)} tokens and {num_more_tokens} more exceed the context of {self._max_context}"
            )
        return ids

    def _require_known_ids(self, token_ids: Sequence[int], what: str) -> None:
        largest = max(token_ids, default=0)
        if largest >= self._policy.vocab_size:
            raise PromptRefused(
                f"{what} holds the token id {largest}, outside the vocabulary of {self._policy.vocab_size}"
            )

    def _accept_score(self, request: ScoreRequest, allow_unproved: bool) -> "Future[ScoreResponse]":
        if request.top_k >= self._policy.vocab_size:
            raise PromptRefused(f"top_k must be below the vocabulary of {self._policy.vocab_size}")
        by_prompt: dict[tuple[int, ...], list[int]] = {}
        for index, item in enumerate(request.items):
            self._require_known_ids(item.response_token_ids, f"response {index}")
            ids = self._prepare_prompt(item.messages, item.prompt_token_ids, len(item.response_token_ids))
            by_prompt.setdefault(tuple(ids), []).append(index)
        with self._changed:
            held = self._find_usable(request.version, allow_unproved)
            self._require_room(len(request.items))
            job = _ScoreJob(
                request=request,
                version=held.view.name,
                future=Future(),
                items=[None] * len(request.items),
                num_missing=len(request.items),
            )
            for prompt, indices in by_prompt.items():
                for part in _split_by_tokens(indices, request.items, self._settings.score_tokens):
                    self._score_units.append(_ScoreUnit(next(self._orders), job, list(prompt), part))
            self._changed.notify_all()
        return job.future

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
            self._changed.wait_for(lambda: self._stopping or self._rows or self._sample_units or self._score_units)
            return not self._stopping

    def _fail_everything(self, error: EngineStopped) -> None:
        with self._changed:
            self._stopping = True
            jobs: dict[int, _SampleJob | _ScoreJob] = {id(unit.job): unit.job for unit in self._sample_units}
            jobs |= {id(unit.job): unit.job for unit in self._score_units}
            jobs |= {id(row.unit.job): row.unit.job for row in self._rows}
            self._sample_units.clear()
            self._score_units.clear()
            self._rows.clear()
        for job in jobs.values():
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(error)

    def _take_turn(self) -> None:
        self._drop_cancelled()
        oldest = self._find_oldest()
        if not self._rows:
            if oldest is None:
                return
            self._activate(oldest.version)
        # While the oldest unit wants other weights nothing is admitted, so that its turn comes.
        if oldest is not None and oldest.version == self._active:
            self._admit_prompts()
            self._steps_since_score += 1
            if not self._rows or self._steps_since_score >= STEPS_PER_SCORE:
                self._score_next()
        if self._rows:
            hidden = self._batch.step([row.ids[-1] for row in self._rows])
            self._draw_next(hidden, first=0)

    def _find_oldest(self) -> _SampleUnit | _ScoreUnit | None:
        with self._changed:
            heads: list[_SampleUnit | _ScoreUnit] = [*itertools.islice(self._sample_units, 1)]
            heads += itertools.islice(self._score_units, 1)
        return min(heads, key=lambda unit: unit.order, default=None)

    def _drop_cancelled(self) -> None:
        for number in range(len(self._rows) - 1, -1, -1):
            if self._rows[number].unit.job.future.cancelled():
                self._remove_row(number)
        with self._changed:
            for units in (self._sample_units, self._score_units):
                while units and units[0].job.future.cancelled():
                    units.popleft()

    def _activate(self, version: str) -> None:
        if version == self._active:
            return
        with self._changed:
            deltas = self._versions[version].deltas
        self._packed.merge(deltas)
        self._active = version
        self._prefixes.clear()

    def _read_prompt(self, prompt: list[int]) -> Prefill:
        known = max(self._prefixes.values(), key=lambda p: count_common(p.token_ids, prompt), default=None)
        prefill = prefill_prompt(self._model, torch.tensor(prompt, device=self._model.device), known)
        reused = min(count_common(known.token_ids, prompt), len(prompt) - (known is not prefill)) if known else 0
        self._tokens_prefilled += len(prompt) - reused
        self._tokens_reused += reused
        self._prefixes[prefill.token_ids] = prefill
        self._prefixes.move_to_end(prefill.token_ids)
        while sum(map(len, self._prefixes)) > self._settings.prefix_tokens and len(self._prefixes) > 1:
            self._prefixes.popitem(last=False)
        return prefill

    def _admit_prompts(self) -> None:
        while self._batch.num_free:
            with self._changed:
                if not self._sample_units or self._sample_units[0].version != self._active:
                    return
                unit = self._sample_units[0]
            request, prompt = unit.job.request, unit.job.request.prompts[unit.index]
            prefill = self._read_prompt(unit.job.prompts[unit.index])
            count = min(prompt.n - unit.num_admitted, self._batch.num_free)
            self._batch.add(prefill, count, request.max_new_tokens)
            first = len(self._rows)
            for number in range(unit.num_admitted, unit.num_admitted + count):
                uniforms = draw_uniforms(prompt.seed, number, request.max_new_tokens)
                self._rows.append(_Row(unit, number, uniforms))
            unit.num_admitted += count
            if unit.num_admitted == prompt.n:
                with self._changed:
                    self._sample_units.popleft()
            self._draw_next(prefill.last_hidden[0].expand(count, -1), first)

    def _draw_next(self, hidden: Tensor, first: int) -> None:
        """Draw one token for each row from number `first` on; rows that end leave. Shapes: hidden [rows, H]."""
        rows = self._rows[first:]
        requests = [row.unit.job.request for row in rows]
        device = hidden.device
        ids, logprobs = draw_tokens(
            project(self._model, hidden),
            temperature=torch.tensor([request.temperature for request in requests], device=device),
            top_k=torch.tensor([request.top_k for request in requests], device=device),
            top_p=torch.tensor([request.top_p for request in requests], device=device),
            uniforms=torch.tensor([row.uniforms[len(row.ids)] for row in rows], device=device),
        )
        for row, token_id, logprob in zip(rows, ids.tolist(), logprobs.tolist(), strict=True):
            row.ids.append(token_id)
            row.logprobs.append(logprob)
        self._tokens_sampled += len(rows)
        for number in range(len(self._rows) - 1, first - 1, -1):
            reason = self._find_finish_reason(self._rows[number])
            if reason is not None:
                self._finish_row(self._rows[number], reason)
                self._remove_row(number)

    def _find_finish_reason(self, row: _Row) -> FinishReason | None:
        request, latest = row.unit.job.request, row.ids[-1]
        if latest in self._policy.eos_token_ids:
            return FinishReason.STOP
        if request.stop and self._may_complete(latest, request.stop):
            text = self.detokenize(row.ids)
            if any(has_stopped(text, stop) for stop in request.stop):
                return FinishReason.STOP
        return FinishReason.LENGTH if len(row.ids) >= request.max_new_tokens else None

    def _may_complete(self, token_id: int, stops: list[str]) -> bool:
        """Whether a token can be the last of a stop string: a cheap look before the whole answer is decoded."""
        if token_id not in self._pieces:
            self._pieces[token_id] = self.detokenize([token_id])
        piece = self._pieces[token_id]
        # A piece of a character decodes to the replacement character; spaces may vanish in a token decoded alone.
        return "\ufffd" in piece or any(stop[-1] in piece or stop[-1].isspace() for stop in stops)

    def _finish_row(self, row: _Row, reason: FinishReason) -> None:
        job = row.unit.job
        ended = row.ids[-1] in self._policy.eos_token_ids
        job.samples[row.unit.index][row.number] = Sample(
            token_ids=row.ids,
            logprobs=row.logprobs,
            text=self.detokenize(row.ids[:-1] if ended else row.ids),
            finish_reason=reason,
        )
        job.num_missing -= 1
        if job.num_missing == 0 and job.future.set_running_or_notify_cancel():
            prompts = [
                SampledPrompt(id=prompt.id, prompt_token_ids=ids, samples=[s for s in samples if s is not None])
                for prompt, ids, samples in zip(job.request.prompts, job.prompts, job.samples, strict=True)
            ]
            job.future.set_result(
                SampleResponse(version=job.version, tokenizer_hash=self._policy.tokenizer_hash, prompts=prompts)
            )

    def _remove_row(self, number: int) -> None:
        self._batch.remove(number)
        last = self._rows.pop()
        if number < len(self._rows):
            self._rows[number] = last

    def _score_next(self) -> None:
        with self._changed:
            if not self._score_units or self._score_units[0].version != self._active:
                return
            unit = self._score_units[0]
        job = unit.job
        responses = [job.request.items[index].response_token_ids for index in unit.indices]
        ids, mask = pad_right(responses, self._model.device)
        prefill = self._read_prompt(unit.prompt)
        scores = score_responses(self._model, prefill, ids, mask, job.request.temperature, job.request.top_k)
        for row, (index, response) in enumerate(zip(unit.indices, responses, strict=True)):
            job.items[index] = _make_scored_item(scores, row, len(response), job.request.top_k)
        self._tokens_scored += sum(map(len, responses))
        self._steps_since_score = 0
        with self._changed:
            self._score_units.popleft()
        job.num_missing -= len(unit.indices)
        if job.num_missing == 0 and job.future.set_running_or_notify_cancel():
            items = [item for item in job.items if item is not None]
            job.future.set_result(
                ScoreResponse(version=job.version, tokenizer_hash=self._policy.tokenizer_hash, items=items)
            )


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


def _split_by_tokens(indices: Sequence[int], items: Sequence[ScoreItem], limit: int) -> list[list[int]]:
    """Indices in parts of similar length, none with more than `limit` tokens when padded (one item may exceed it)."""
    parts: list[list[int]] = []
    for index in sorted(indices, key=lambda i: len(items[i].response_token_ids)):
        length = len(items[index].response_token_ids)
        if parts and (len(parts[-1]) + 1) * length <= limit:
            parts[-1].append(index)
        else:
            parts.append([index])
    return parts


def pad_right(responses: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids padded with 0 on the right and the mask of those that exist, both [B, T]."""
    width = max(map(len, responses))
    ids = torch.tensor([[*response, *[0] * (width - len(response))] for response in responses], device=device)
    lengths = torch.tensor([len(response) for response in responses], device=device)
    return ids, torch.arange(width, device=device)[None] < lengths[:, None]


def draw_uniforms(seed: int, row: int, count: int) -> list[float]:
    """`count` numbers in [0, 1) that depend on (seed, row) only."""
    digest = hashlib.sha256(f"{seed}:{row}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(count, generator=generator, dtype=torch.float32).tolist()


def has_stopped(text: str, stop: str) -> bool:
    """Whether the answer so far contains the stop string; a closing fence counts only after an opening one."""
    if stop == CLOSING_FENCE:
        return _CLOSED_FENCE.search(text) is not None
    return stop in text
