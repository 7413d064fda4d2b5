"""The student's cost at each action token under one expert distribution: one function per kind of distribution.

The cost is the cross-entropy of the student's full softmax to the distribution; for the objectives we compare with it
is another divergence from a full-vocabulary expert. Works on the N action tokens of a micro-batch.

Not covered: weighting experts, and turning costs into a loss (`distil`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.losses.divergences import Divergence
from trainer.losses.student import Choices, Student
from trainer.losses.terms import FullVocabulary, HiddenStates, Samples, Term, TopK, WholeTerm, require_shape

MASS_TOLERANCE = 0.01  # stored top-K logprobs are f16: each probability may be off by 0.4 %

CostOf = Callable[[Student, Term, Tensor], "StepCost"]
"""The cost of a term where it is present [N]."""


@dataclass(frozen=True, eq=False)
class StepCost:
    """The cost of one term at each action token. Shapes: [N], 0 where the term is absent.

    cost carries the gradient; a cross-entropy unless an objective has another. entropy is the expert's own, detached:
    0 for samples, whose entropy is unknown, and where the cost is no cross-entropy. action_logprobs: the expert's of
    the sampled token, detached; None for an expert without a full distribution. choices: those of an expert over the
    whole vocabulary; None for the others, stored as they came, and where the cost is no cross-entropy.
    """

    cost: Tensor
    entropy: Tensor
    action_logprobs: Tensor | None
    choices: Choices | None = None


def cross_entropy_cost(student: Student, term: Term, present: Tensor) -> StepCost:
    """H(expert, student) and the expert's entropy at each action token where `present`.

    Shape: present [N] bool. Raises ValueError naming the row for an expert distribution that does not fit the
    rollouts, is NaN or unnormalised, has ids outside the vocabulary, or puts mass where the student has none.
    """
    found = _cross_entropy(student, term, present)
    student.places.refuse(present & ~found.cost.isfinite(), f"{term.name}: the cross-entropy is NaN or infinite")
    return found


def _cross_entropy(student: Student, term: Term, present: Tensor) -> StepCost:
    name, expert, shape = term.name, term.expert, student.places.shape
    if isinstance(expert, FullVocabulary | HiddenStates):
        _require_fit(student, name, expert)
        return _full_cost(student, name, expert, present)
    if isinstance(expert, TopK):
        require_shape(f"{name}: ids", expert.ids, (*shape, *expert.ids.shape[-1:]))
        require_shape(f"{name}: logprobs", expert.logprobs, expert.ids.shape)
        require_shape(f"{name}: tail_logprobs", expert.tail_logprobs, shape)
        return _top_k_cost(student, name, expert, present)
    if isinstance(expert, Samples):
        require_shape(f"{name}: token_ids", expert.token_ids, (*shape, *expert.token_ids.shape[-1:]))
        require_shape(f"{name}: valid", expert.valid, expert.token_ids.shape)
        return _sample_cost(student, name, expert.token_ids, expert.valid, present)
    require_shape(f"{name}: token_ids", expert.token_ids, shape)
    only = expert.token_ids[:, :, None]
    return _sample_cost(student, name, only, torch.ones_like(only, dtype=torch.bool), present)


def coarse_cost(divergence: Divergence, top_k: int) -> CostOf:
    """A divergence on the student's `top_k` likeliest tokens and a bucket for the others as the cost.

    For terms with the expert's whole distribution on whole rollouts. The function it returns raises ValueError for a
    term of another kind, where the divergence is NaN or infinite, and as `cross_entropy_cost` does.
    """

    def cost_of(student: Student, term: Term, present: Tensor) -> StepCost:
        at = present.nonzero()[:, 0]
        own, theirs, chosen = student.coarsen(_whole_expert(student, term, present), at, top_k)
        return _place(student, term, at, divergence(own, theirs), chosen)

    return cost_of


def reverse_kl_cost(student: Student, term: Term, present: Tensor) -> StepCost:
    """KL(student || expert) over the whole vocabulary. Terms and errors as for `coarse_cost`."""
    at = present.nonzero()[:, 0]
    return _place(student, term, at, *student.reverse_kl(_whole_expert(student, term, present), at))


def _whole_expert(student: Student, term: Term, present: Tensor) -> FullVocabulary | HiddenStates:
    if not (isinstance(term, WholeTerm) and isinstance(term.expert, FullVocabulary | HiddenStates)):
        raise ValueError(f"{term.name}: this objective needs the expert's full distribution on whole rollouts")
    _require_fit(student, term.name, term.expert)
    if isinstance(term.expert, FullVocabulary):  # states have yet to go through a softmax, which normalises
        mass = student.places.pick(term.expert.logprobs.detach()).to(student.log_total.dtype).exp().sum(-1)
        _refuse_mass(student, term.name, mass, present)
    return term.expert


def _place(student: Student, term: Term, at: Tensor, values: Tensor, action_logprobs: Tensor) -> StepCost:
    """Values at [M] of the N action tokens, 0 elsewhere."""
    nothing = torch.zeros_like(student.log_total).detach()
    cost = nothing.index_put((at,), values)
    student.places.refuse(~cost.isfinite(), f"{term.name}: the divergence is NaN or infinite")
    return StepCost(cost, nothing, nothing.index_put((at,), action_logprobs))


def _require_fit(student: Student, name: str, expert: FullVocabulary | HiddenStates) -> None:
    if isinstance(expert, FullVocabulary):
        require_shape(f"{name}: logprobs", expert.logprobs, (*student.places.shape, student.vocabulary))
    else:
        require_shape(f"{name}: hidden", expert.hidden, (*student.places.shape, *expert.hidden.shape[-1:]))
        if not expert.temperature > 0:
            raise ValueError(f"{name}: temperature must be above 0, not {expert.temperature}")


def _full_cost(student: Student, name: str, expert: FullVocabulary | HiddenStates, present: Tensor) -> StepCost:
    expected = student.expect(expert, present)
    _refuse_mass(student, name, expected.mass, present)
    # times the mass, which is 1 but for rounding: without it the cost would depend on the level of the logits
    cost = expected.mass * student.log_total - expected.score
    return StepCost(cost, expected.entropy, expected.action_logprobs, expected.choices)


def _top_k_cost(student: Student, name: str, expert: TopK, present: Tensor) -> StepCost:
    places = student.places
    logprobs = places.pick(expert.logprobs.detach()).to(student.log_total.dtype)
    listed = present[:, None] & ~logprobs.isneginf()
    ids = places.pick(expert.ids)
    places.refuse((listed & ((ids < 0) | (ids >= student.vocabulary))).any(-1), f"{name}: id outside the vocabulary")
    unique = torch.where(listed, ids, -1 - torch.arange(ids.shape[1], device=ids.device)).sort(-1).values
    places.refuse((unique[:, 1:] == unique[:, :-1]).any(-1), f"{name}: an id is listed twice")
    ids = torch.where(listed, ids, 0)
    probs = torch.where(listed, logprobs.exp(), 0)
    has_tail = present & (listed.sum(-1) < student.vocabulary)  # with every token listed there is no tail
    tail = torch.where(has_tail, places.pick(expert.tail_logprobs.detach()).to(probs.dtype).exp(), 0)
    _refuse_mass(student, name, probs.sum(-1) + tail, present)
    cost = -(probs * (student.scores_at(ids) - student.log_total[:, None])).sum(-1)
    some = (tail > 0).nonzero()[:, 0]
    if len(some):
        rest = student.log_rest(some, ids[some], listed[some])
        cost = cost.index_add(0, some, tail[some] * (student.log_total[some] - rest))
    return StepCost(cost, torch.special.entr(probs).sum(-1) + torch.special.entr(tail), None)


def _sample_cost(student: Student, name: str, token_ids: Tensor, valid: Tensor, present: Tensor) -> StepCost:
    places = student.places
    drawn = places.pick(valid) & present[:, None]
    counts = drawn.sum(-1)
    places.refuse(present & (counts == 0), f"{name}: no sample")
    ids = places.pick(token_ids)
    places.refuse((drawn & ((ids < 0) | (ids >= student.vocabulary))).any(-1), f"{name}: id outside the vocabulary")
    costs = student.log_total[:, None] - student.scores_at(torch.where(drawn, ids, 0))
    cost = (costs * drawn).sum(-1) / counts.clamp(min=1)
    return StepCost(cost, torch.zeros_like(cost).detach(), None)


def _refuse_mass(student: Student, name: str, mass: Tensor, present: Tensor) -> None:
    student.places.refuse(present & mass.isnan(), f"{name}: the expert's logprobs are NaN")
    off = (mass - 1).abs() > MASS_TOLERANCE
    student.places.refuse(present & off, f"{name}: the expert's probabilities do not sum to 1")
