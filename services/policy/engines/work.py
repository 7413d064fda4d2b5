"""The engine's queue: requests are split into units, and joined again when all of them are done.

A unit is the worker's smallest piece of work: a prompt to sample from, a micro-batch of responses to score.
"""

import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from services.policy.contract import (
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
)


class SampleJob:
    """A request to sample and the answers it has so far."""

    def __init__(self, request: SampleRequest, version: str, prompts: list[list[int]], tokenizer_hash: str) -> None:
        self.request = request
        self.version = version
        self.prompts = prompts
        self.future: Future[SampleResponse] = Future()
        self._tokenizer_hash = tokenizer_hash
        self._samples: list[list[Sample | None]] = [[None] * prompt.n for prompt in request.prompts]
        self._num_missing = sum(prompt.n for prompt in request.prompts)

    def finish(self, prompt: int, row: int, sample: Sample) -> None:
        """One answer; the future is set with the last."""
        self._samples[prompt][row] = sample
        self._num_missing -= 1
        if self._num_missing == 0 and self.future.set_running_or_notify_cancel():
            prompts = [
                SampledPrompt(id=prompt.id, prompt_token_ids=ids, samples=[s for s in samples if s is not None])
                for prompt, ids, samples in zip(self.request.prompts, self.prompts, self._samples, strict=True)
            ]
            self.future.set_result(
                SampleResponse(version=self.version, tokenizer_hash=self._tokenizer_hash, prompts=prompts)
            )


@dataclass
class SampleUnit:
    """A prompt of a job. order: of arrival, among all units."""

    order: int
    job: SampleJob
    index: int
    num_admitted: int = 0

    @property
    def version(self) -> str:
        """By whose weights."""
        return self.job.version

    @property
    def num_waiting(self) -> int:
        """Answers that have not been begun."""
        return self.job.request.prompts[self.index].n - self.num_admitted


class ScoreJob:
    """A request to score and the scores it has so far."""

    def __init__(self, request: ScoreRequest, version: str, tokenizer_hash: str) -> None:
        self.request = request
        self.version = version
        self.future: Future[ScoreResponse] = Future()
        self._tokenizer_hash = tokenizer_hash
        self._items: list[ScoredItem | None] = [None] * len(request.items)
        self._num_missing = len(request.items)

    def finish(self, index: int, item: ScoredItem) -> None:
        """One response's scores; the future is set with the last."""
        self._items[index] = item
        self._num_missing -= 1
        if self._num_missing == 0 and self.future.set_running_or_notify_cancel():
            items = [item for item in self._items if item is not None]
            self.future.set_result(
                ScoreResponse(version=self.version, tokenizer_hash=self._tokenizer_hash, items=items)
            )


@dataclass
class ScoreUnit:
    """Responses of a job that share a prompt."""

    order: int
    job: ScoreJob
    prompt: list[int]
    indices: list[int]

    @property
    def version(self) -> str:
        """By whose weights."""
        return self.job.version


@dataclass(frozen=True, eq=False)
class ProveJob:
    """A probe of one version: responses it must score as the trainer did, and a draw once it has."""

    version: str
    request: ProveRequest
    scores: ScoreJob
    score_units: list[ScoreUnit]
    samples: SampleJob | None
    sample_units: list[SampleUnit]
    future: "Future[ProbeResult]" = field(default_factory=Future)


def compare_probe(request: ProveRequest, scored: Sequence[ScoredItem]) -> ProbeResult:
    """The scores of a probe's items beside those expected of them."""
    differences = [
        abs(ours - expected)
        for item, own in zip(request.items, scored, strict=True)
        for ours, expected in zip(own.logprobs, item.logprobs, strict=True)
    ]
    worst = max(differences)
    return ProbeResult(
        passed=worst <= request.tolerance,
        max_difference=worst,
        mean_difference=math.fsum(differences) / len(differences),
        num_tokens=len(differences),
        tolerance=request.tolerance,
    )


def ask_for_scores(name: str, request: ProveRequest) -> ScoreRequest:
    """The responses a version must score to be proved."""
    items = [
        ScoreItem(prompt_token_ids=item.prompt_token_ids, response_token_ids=item.response_token_ids)
        for item in request.items
    ]
    return ScoreRequest(version=name, temperature=request.temperature, items=items)


def split_by_tokens(indices: Sequence[int], items: Sequence[ScoreItem], limit: int) -> list[list[int]]:
    """Indices in parts of similar length, none with more than `limit` tokens when padded (one item may exceed it)."""
    parts: list[list[int]] = []
    for index in sorted(indices, key=lambda i: len(items[i].response_token_ids)):
        length = len(items[index].response_token_ids)
        if parts and (len(parts[-1]) + 1) * length <= limit:
            parts[-1].append(index)
        else:
            parts.append([index])
    return parts
