"""The student read tile by tile: no [N, V] tensor is ever held, neither of the student nor of the teacher.

Of the vocabulary, the losses only need averages. With output weights W [V, H], score(a) = <W_a, x>:

    log_total        = log sum_a exp <W_a, x>         its gradient in x is the mean row  m = sum_a softmax(a) W_a
    expected score   = sum_a expert(a) <W_a, x>       = <x, m_E>, m_E the expert's own mean row; the gradient is m_E
    entropy          = log_total - <x, m>

so one pass over W with running sums, like attention with W as keys and values, gives value and gradient of the default
objective together; the backward pass is a product of [N, H] tensors. The same pass over the teacher's hidden states
gives m_E. Where W is trained as well, its gradient takes a second pass. Reverse KL has a pass of its own, over student
and teacher at once; the student's likeliest tokens are sorted out tile by tile, and a pass for each of the two that
leaves them out sums up the others.

Memory beside [N, H]: one tile. Everything is computed in float32 at least, whatever W is stored in.

Not covered: an output layer with a bias, or one that scales or caps its logits.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from services.policy.model.linear import multiply
from trainer.losses.student import (
    NUM_CHOICES,
    Choices,
    Expectation,
    Rollouts,
    Student,
    find_places,
    require_student,
)
from trainer.losses.terms import FullVocabulary, HiddenStates, require_shape

TILE_ROWS = 1024  # of W at a time: with TOKENS of them 1 MB of scores, which stays in the cache of a core
TOKENS = 256
GPU_TILE_ROWS = 8192  # 128 MB of scores: enough work for a launch
GPU_TOKENS = 4096
WIDE_TILE_ROWS = 4096  # where the likeliest tokens of each tile are sorted out
GATHERED = 2**19  # numbers of W's rows gathered at a time
GPU_GATHERED = 2**26


class FusedStudent(Student):
    """The reading that holds [N, H] tensors alone. Equals `ScoredStudent` on the projected states."""

    def __init__(self, hidden: Tensor, weight: Tensor, rollouts: Rollouts) -> None:
        """Shapes: hidden [B, T, H], the states that predict the rollouts' tokens; weight [V, H] of the output layer.

        Raises ValueError as `find_places` and `require_student` do, and if the shapes do not fit.
        """
        require_shape("hidden", hidden, (*rollouts.token_ids.shape, *weight.shape[1:]))
        self.places = find_places(rollouts)
        self.vocabulary = weight.shape[0]
        states = _raise(self.places.pick(hidden))
        if (rollouts.temperature != 1).any():
            states = states / self.places.pick(rollouts.temperature)[:, None].to(states.dtype)
        self._states, self._weight = states, weight
        self.ids = self.places.pick(rollouts.token_ids)
        self.log_total, self._mean = _log_total(states, weight)
        require_student(self.places, self.ids, self.vocabulary, self.log_total)
        self.action_logprobs = self.scores_at(self.ids[:, None])[:, 0] - self.log_total

    def entropy(self) -> Tensor:
        return (self.log_total.detach() - (self._states.detach() * self._mean).sum(-1)).clamp(min=0)

    def scores_at(self, ids: Tensor) -> Tensor:
        scores: Tensor = _ScoresAt.apply(self._states, self._weight, ids)  # type: ignore[no-untyped-call]
        return scores

    def log_rest(self, at: Tensor, ids: Tensor, listed: Tensor) -> Tensor:
        # -1 is no token's id and hides none
        return _log_total(self._states[at], self._weight, torch.where(listed, ids, -1))[0]

    def expect(self, expert: FullVocabulary | HiddenStates, present: Tensor) -> Expectation:
        at = present.nonzero()[:, 0]
        theirs, states = self._read(expert, at), self._states[at]
        with torch.no_grad():
            best = _Best(theirs, min(NUM_CHOICES, self.vocabulary))
            log_total, mean = _scan(theirs, self._weight, None, best)
            chosen = _gather(theirs, self._weight, self.ids[at, None])[:, 0] - log_total
            entropy = (log_total - (theirs * mean).sum(-1)).clamp(min=0)
            mass = torch.where(log_total.isfinite(), 1, torch.nan).to(log_total)
            expected = (states * mean).sum(-1)
        score: Tensor = _Averaged.apply(  # type: ignore[no-untyped-call]
            states, self._weight, theirs, None, expected, log_total, mean
        )
        nothing = torch.zeros_like(self.log_total).detach()
        shape = (len(nothing), best.ids.shape[1])
        choices = Choices(
            best.ids.new_zeros(shape).index_put((at,), best.ids),
            nothing.new_zeros(shape).index_put((at,), (best.scores - log_total[:, None]).exp()),
        )
        placed = [nothing.index_put((at,), value) for value in (score, mass, entropy, chosen)]
        return Expectation(placed[0], placed[1], placed[2], placed[3], choices)

    def reverse_kl(self, expert: FullVocabulary | HiddenStates, at: Tensor) -> tuple[Tensor, Tensor]:
        theirs, log_total = self._read(expert, at), self.log_total.detach()[at]
        values, expert_total = _ReverseKL.apply(  # type: ignore[no-untyped-call]
            self._states[at], self._weight, theirs, log_total, self._mean[at]
        )
        return values, _gather(theirs, self._weight, self.ids[at, None])[:, 0] - expert_total

    def coarsen(self, expert: FullVocabulary | HiddenStates, at: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {top_k}")
        theirs, states = self._read(expert, at), self._states[at]
        with torch.no_grad():
            ids = _find_likeliest(states, self._weight, min(top_k, self.vocabulary))
            scores = _gather(theirs, self._weight, ids)
            if ids.shape[1] < self.vocabulary:
                scores = torch.cat([scores, _sum_without(theirs, self._weight, ids)[:, None]], 1)
            expert_total = scores.logsumexp(-1)
            chosen = _gather(theirs, self._weight, self.ids[at, None])[:, 0] - expert_total
        own: Tensor = _ScoresAt.apply(states, self._weight, ids)  # type: ignore[no-untyped-call]
        if ids.shape[1] < self.vocabulary:
            rest, _ = _log_total(states, self._weight, ids)
            own = torch.cat([own, rest[:, None]], 1)
        return own - self.log_total[at, None], scores - expert_total[:, None], chosen

    def _read(self, expert: FullVocabulary | HiddenStates, at: Tensor) -> Tensor:
        """The expert's tempered states at some action tokens, [M, H]."""
        if isinstance(expert, FullVocabulary):
            raise ValueError("an expert over the whole vocabulary needs a ScoredStudent, which holds one too")
        require_shape("the expert's hidden", expert.hidden, (*self.places.shape, self._weight.shape[1]))
        return _raise(self.places.pick(expert.hidden.detach())[at]).to(self._states.dtype) / expert.temperature


def _raise(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def _log_total(states: Tensor, weight: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The logsumexp of the scores [N] with its gradient, and the mean row [N, H], detached."""
    with torch.no_grad():
        found, mean = _scan(states, weight, hidden)
    log_total: Tensor = _Averaged.apply(  # type: ignore[no-untyped-call]
        states, weight, states.detach(), hidden, found, found, mean
    )
    return log_total, mean


class _Context(Protocol):
    """The context that torch hands to both passes of a function."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...

    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...


# --- one pass over the output layer ---


def _chunks(states: Tensor) -> Iterator[slice]:
    size = TOKENS if states.device.type == "cpu" else GPU_TOKENS
    return (slice(start, start + size) for start in range(0, len(states), size))


def _tiles(weight: Tensor, dtype: torch.dtype, rows: int | None = None) -> Iterator[tuple[int, Tensor]]:
    """W by so many rows, each with the number of its first row, raised to the precision that is computed in."""
    size = rows or (TILE_ROWS if weight.device.type == "cpu" else GPU_TILE_ROWS)
    for start in range(0, len(weight), size):
        yield start, weight[start : start + size].to(dtype)


def _hide(scores: Tensor, start: int, hidden: Tensor | None) -> None:
    """-inf for the hidden tokens [C, K] of a tile's scores [C, R], in place."""
    if hidden is not None:
        place = hidden - start
        inside = (place >= 0) & (place < scores.shape[1])
        bound = torch.where(inside, -torch.inf, torch.inf).to(scores)
        scores.scatter_reduce_(1, place.clamp(0, scores.shape[1] - 1), bound, "amin")


class _Best:
    """The highest scores of a pass and their tokens, highest first. Shapes: scores, ids [N, count]."""

    def __init__(self, states: Tensor, count: int) -> None:
        self.scores = states.new_full((len(states), count), -torch.inf)
        self.ids = torch.zeros_like(self.scores, dtype=torch.long)

    def look(self, chunk: slice, scores: Tensor, highest: Tensor, start: int) -> None:
        """Take the scores [C, R] of a tile into account, `highest` [C, 1] of each row.

        Most tiles change nothing for most rows; their highest score shows that without sorting.
        """
        known, names = self.scores[chunk], self.ids[chunk]
        rows = (highest[:, 0] > known[:, -1]).nonzero()[:, 0]
        if len(rows) == 0:
            return
        high, at = scores[rows].topk(min(known.shape[1], scores.shape[1]))
        known[rows], order = torch.cat([known[rows], high], 1).topk(known.shape[1])
        names[rows] = torch.cat([names[rows], at + start], 1).gather(1, order)


def _scan(states: Tensor, weight: Tensor, hidden: Tensor | None, best: _Best | None = None) -> tuple[Tensor, Tensor]:
    """logsumexp of the scores [N] and the softmax's mean row of W [N, H]; hidden [N, K]: tokens that are left out."""
    log_total, mean = states.new_empty(len(states)), torch.empty_like(states)
    for chunk in _chunks(states):
        own = states[chunk]
        left_out = None if hidden is None else hidden[chunk]
        peak = own.new_full((len(own), 1), -torch.inf)
        total, rows = torch.zeros_like(peak), torch.zeros_like(own)
        for start, tile in _tiles(weight, own.dtype):
            scores = multiply(own, tile)
            _hide(scores, start, left_out)
            highest = scores.amax(-1, keepdim=True)
            if best is not None:
                best.look(chunk, scores, highest, start)
            higher = torch.maximum(peak, highest)
            level = torch.where(higher.isneginf(), 0, higher)  # everything so far was left out
            shrink = (peak - level).exp_()
            scores.sub_(level).exp_()
            total.mul_(shrink).add_(scores.sum(-1, keepdim=True))
            rows.mul_(shrink).add_(multiply(scores, tile.T))
            peak = higher
        log_total[chunk] = (peak + total.log())[:, 0]
        mean[chunk] = rows / total
    return log_total, mean


def _spread_back(
    states: Tensor, charge: Tensor, weight: Tensor, theirs: Tensor, log_total: Tensor, hidden: Tensor | None
) -> Tensor:
    """The second pass: sum_n charge_n softmax(theirs_n) states_n^T, [V, H]; log_total is that of `theirs`."""
    gradient = states.new_zeros(weight.shape)
    for chunk in _chunks(states):
        weighted = states[chunk] * charge[chunk, None]
        left_out = None if hidden is None else hidden[chunk]
        for start, tile in _tiles(weight, states.dtype):
            scores = multiply(theirs[chunk], tile)
            _hide(scores, start, left_out)
            gradient[start : start + len(tile)].addmm_(scores.sub_(log_total[chunk, None]).exp_().T, weighted)
    return gradient.to(weight.dtype)


class _Averaged(torch.autograd.Function):
    """A value whose gradient in the states is the mean row of W under softmax(theirs), both found by a scan.

    hidden: tokens the softmax leaves out; log_total, mean: the scan's, of `theirs`.
    """

    @staticmethod
    def forward(
        ctx: _Context,
        states: Tensor,
        weight: Tensor,
        theirs: Tensor,
        hidden: Tensor | None,
        value: Tensor,
        log_total: Tensor,
        mean: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(states, weight, theirs, hidden, log_total, mean)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, charge: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, theirs, hidden, log_total, mean = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            charge[:, None] * mean if wanted[0] else None,
            _spread_back(states, charge, weight, theirs, log_total, hidden) if wanted[1] else None,
            None,
            None,
            None,
            None,
            None,
        )


# --- the scores of a few tokens ---


def _gather(states: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """<W_id, state> for ids [N, K]."""
    scores = states.new_empty(ids.shape)
    for chunk in _gathered_chunks(weight, ids):
        rows = weight[ids[chunk]].to(states.dtype)
        scores[chunk] = torch.bmm(rows, states[chunk, :, None])[:, :, 0]
    return scores


def _gathered_chunks(weight: Tensor, ids: Tensor) -> Iterator[slice]:
    numbers = GATHERED if weight.device.type == "cpu" else GPU_GATHERED
    size = max(1, numbers // max(1, ids.shape[1] * weight.shape[1]))
    return (slice(start, start + size) for start in range(0, len(ids), size))


class _ScoresAt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, states: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(states, weight, ids)
        return _gather(states, weight, ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, charge: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, ids = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        to_states = torch.empty_like(states) if wanted[0] else None
        to_weight = states.new_zeros(weight.shape) if wanted[1] else None
        for chunk in _gathered_chunks(weight, ids):
            if to_states is not None:
                rows = weight[ids[chunk]].to(states.dtype)
                to_states[chunk] = torch.bmm(charge[chunk, None, :], rows)[:, 0]
            if to_weight is not None:
                spread = charge[chunk, :, None] * states[chunk, None, :]
                to_weight.index_add_(0, ids[chunk].flatten(), spread.flatten(0, 1))
        return to_states, None if to_weight is None else to_weight.to(weight.dtype), None


# --- divergences ---


class _ReverseKL(torch.autograd.Function):
    """KL(student || expert) = sum_a p(a) d(a) - log_total + the expert's, d(a) = <W_a, x - x_E>, at known log_total.

    Its gradient in a score is p(a) (d(a) - sum p d). Gives also the expert's log_total, not differentiable.
    """

    @staticmethod
    def forward(
        ctx: _Context, states: Tensor, weight: Tensor, theirs: Tensor, log_total: Tensor, mean: Tensor
    ) -> tuple[Tensor, Tensor]:
        excess, expert_total = torch.empty_like(log_total), torch.empty_like(log_total)
        slopes = torch.empty_like(states)
        for chunk in _chunks(states):
            own, other = states[chunk], theirs[chunk]
            peak = own.new_full((len(own), 1), -torch.inf)
            total, weighted, rows = torch.zeros_like(peak), torch.zeros_like(peak), torch.zeros_like(own)
            for _, tile in _tiles(weight, own.dtype):
                scores, expert = multiply(own, tile), multiply(other, tile)
                higher = torch.maximum(peak, expert.amax(-1, keepdim=True))
                total.mul_((peak - higher).exp_()).add_((expert - higher).exp_().sum(-1, keepdim=True))
                peak = higher
                ahead = torch.sub(scores, expert, out=expert)
                ahead.mul_(scores.sub_(log_total[chunk, None]).exp_())
                weighted.add_(ahead.sum(-1, keepdim=True))
                rows.add_(multiply(ahead, tile.T))
            excess[chunk] = weighted[:, 0]
            expert_total[chunk] = (peak + total.log())[:, 0]
            slopes[chunk] = rows - weighted * mean[chunk]
        ctx.save_for_backward(states, weight, theirs, log_total, excess, slopes)
        ctx.mark_non_differentiable(expert_total)
        return excess - log_total + expert_total, expert_total

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, charge: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, theirs, log_total, excess, slopes = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        gradient = None
        if wanted[1]:
            gradient = states.new_zeros(weight.shape)
            for chunk in _chunks(states):
                for start, tile in _tiles(weight, states.dtype):
                    scores, expert = multiply(states[chunk], tile), multiply(theirs[chunk], tile)
                    ahead = scores - expert - excess[chunk, None]
                    ahead.mul_(scores.sub_(log_total[chunk, None]).exp_()).mul_(charge[chunk, None])
                    gradient[start : start + len(tile)].addmm_(ahead.T, states[chunk])
            gradient = gradient.to(weight.dtype)
        return charge[:, None] * slopes if wanted[0] else None, gradient, None, None, None


# --- the likeliest tokens ---


def _find_likeliest(states: Tensor, weight: Tensor, count: int) -> Tensor:
    """The ids of the `count` highest scores [N, count], highest first."""
    ids = torch.empty((len(states), count), dtype=torch.long, device=states.device)
    for chunk in _chunks(states):
        own = states[chunk]
        best, names = own.new_empty((len(own), 0)), ids.new_empty((len(own), 0))
        for start, tile in _tiles(weight, own.dtype, WIDE_TILE_ROWS):
            scores = multiply(own, tile)
            high, at = scores.topk(min(count, scores.shape[1]))
            best, names = torch.cat([best, high], 1), torch.cat([names, at + start], 1)
            best, order = best.topk(min(count, best.shape[1]))
            names = names.gather(1, order)
        ids[chunk] = names
    return ids


def _sum_without(states: Tensor, weight: Tensor, hidden: Tensor) -> Tensor:
    """logsumexp [N] of the scores of all tokens but the hidden ones [N, K]."""
    log_rest = states.new_full((len(states),), -torch.inf)
    for chunk in _chunks(states):
        for start, tile in _tiles(weight, states.dtype):
            scores = multiply(states[chunk], tile)
            _hide(scores, start, hidden[chunk])
            log_rest[chunk] = torch.logaddexp(log_rest[chunk], scores.logsumexp(-1))
    return log_rest
