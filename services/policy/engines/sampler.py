"""Rows being drawn from one version's weights: prompts are admitted, each step gives every row a token, rows end.

Used by the engine's worker alone, in one thread. Not covered: whose turn it is, and which weights are active.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from services.policy.engines.base import TokenCounts
from services.policy.engines.decode import DecodeRows, draw_tokens
from services.policy.engines.work import SampleUnit
from services.policy.model.modeling import Prefill, count_common, prefill_prompt, project
from services.policy.text.ends import StopFinder


class PromptCache:
    """Prompts that one version's weights have read, for prompts that start alike. Sizes in tokens."""

    def __init__(self, model: PreTrainedModel, max_tokens: int, tally: TokenCounts) -> None:
        self._model = model
        self._max_tokens = max_tokens
        self._tally = tally
        self._prefixes: OrderedDict[tuple[int, ...], Prefill] = OrderedDict()

    def read(self, prompt: list[int]) -> Prefill:
        """The prompt's keys and values; the part shared with an earlier prompt is not computed again."""
        known = max(self._prefixes.values(), key=lambda p: count_common(p.token_ids, prompt), default=None)
        prefill = prefill_prompt(self._model, torch.tensor(prompt, device=self._model.device), known)
        reused = min(count_common(known.token_ids, prompt), len(prompt) - (known is not prefill)) if known else 0
        self._tally.prefilled += len(prompt) - reused
        self._tally.reused += reused
        self._prefixes[prefill.token_ids] = prefill
        self._prefixes.move_to_end(prefill.token_ids)
        while sum(map(len, self._prefixes)) > self._max_tokens and len(self._prefixes) > 1:
            self._prefixes.popitem(last=False)
        return prefill


@dataclass
class _Row:
    unit: SampleUnit
    number: int
    uniforms: list[float]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class Sampler:
    """Up to `max_rows` answers in flight."""

    def __init__(self, model: PreTrainedModel, max_rows: int, ends: StopFinder, tally: TokenCounts) -> None:
        self._model = model
        self._ends = ends
        self._tally = tally
        self._batch = DecodeRows(model, max_rows)
        self._rows: list[_Row] = []

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def has_room(self) -> bool:
        """Whether another row can be begun."""
        return self._batch.num_free > 0

    @property
    def units(self) -> list[SampleUnit]:
        """The prompt of each row being answered."""
        return [row.unit for row in self._rows]

    def admit(self, unit: SampleUnit, prefill: Prefill) -> None:
        """Begin as many of the unit's waiting answers as there is room for; each gets its first token."""
        request = unit.job.request
        count = min(unit.num_waiting, self._batch.num_free)
        self._batch.add(prefill, count, request.max_new_tokens)
        first, seed = len(self._rows), request.prompts[unit.index].seed
        for number in range(unit.num_admitted, unit.num_admitted + count):
            self._rows.append(_Row(unit, number, draw_uniforms(seed, number, request.max_new_tokens)))
        unit.num_admitted += count
        self._draw_next(prefill.last_hidden[0].expand(count, -1), first)

    def step(self) -> None:
        """One more token for every row; rows that end leave."""
        self._draw_next(self._batch.step([row.ids[-1] for row in self._rows]), first=0)

    def drop_cancelled(self) -> None:
        """Drop the rows whose client has hung up."""
        for number in range(len(self._rows) - 1, -1, -1):
            if self._rows[number].unit.job.future.cancelled():
                self._remove(number)

    def _draw_next(self, hidden: Tensor, first: int) -> None:
        """Draw one token for each row from number `first` on. Shapes: hidden [rows, H]."""
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
        self._tally.sampled += len(rows)
        for number in range(len(self._rows) - 1, first - 1, -1):
            row = self._rows[number]
            request = row.unit.job.request
            reason = self._ends.find(row.ids, request.stop, request.max_new_tokens)
            if reason is not None:
                sample = self._ends.make_sample(row.ids, row.logprobs, reason)
                self._remove(number)  # first: who has the answer may look at what is still being drawn
                row.unit.job.finish(row.unit.index, row.number, sample)

    def _remove(self, number: int) -> None:
        self._batch.remove(number)
        last = self._rows.pop()
        if number < len(self._rows):
            self._rows[number] = last


def draw_uniforms(seed: int, row: int, count: int) -> list[float]:
    """`count` numbers in [0, 1) that depend on (seed, row) only."""
    digest = hashlib.sha256(f"{seed}:{row}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(count, generator=generator, dtype=torch.float32).tolist()
