"""What experts say about the steps of a rollout, and what the student pays for it at each step.

A term is one expert distribution with its weights. Its cost at a step is the cross-entropy of the student's full
softmax to it; every kind of distribution has one function here. Works on the N action tokens of a micro-batch: they
are picked out once, so padding and tool turns cost no memory and can poison nothing.

Not covered: making the distributions (the teacher, the experts), weighting experts, and what costs are good for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MASS_TOLERANCE = 0.01  # stored top-K logprobs are f16: each probability may be off by 0.4 %


@dataclass(frozen=True, eq=False)
class FullVocabulary:
    """The expert's log-probability of every token. Shape: logprobs [B, T, V]."""

    logprobs: Tensor


@dataclass(frozen=True, eq=False)
class TopK:
    """The expert's K likeliest tokens and the mass of all others.

    Shapes: ids, logprobs [B, T, K]; tail_logprobs [B, T]. An entry with logprob -inf is padding, its id ignored.
    """

    ids: Tensor
    logprobs: Tensor
    tail_logprobs: Tensor


@dataclass(frozen=True, eq=False)
class Samples:
    """Up to M next tokens drawn from the expert at each step. Shapes: token_ids [B, T, M], valid [B, T, M] bool."""

    token_ids: Tensor
    valid: Tensor


@dataclass(frozen=True, eq=False)
class Label:
    """The one token a person put in place of the rollout's. Shape: token_ids [B, T]."""

    token_ids: Tensor


ExpertDistribution = FullVocabulary | TopK | Samples | Label


@dataclass(frozen=True, eq=False)
class WholeTerm:
    """An expert that speaks on every action token of a rollout.

    Shape: weights [B], its trust per rollout relative to the other terms; 0 where it has nothing to say.
    """

    name: str
    expert: ExpertDistribution
    weights: Tensor


@dataclass(frozen=True, eq=False)
class PartialTerm:
    """An expert that speaks on some action tokens: spans, samples at some prefixes, labels. Local term only.

    Shape: weights [B, T], 0 where it says nothing. share: its part of the loss beside the whole-coverage terms.
    num_tokens: the tokens such terms cover over the whole update, which its costs are averaged over.
    """

    name: str
    expert: ExpertDistribution
    weights: Tensor
    share: float
    num_tokens: int


@dataclass(frozen=True, eq=False)
class DrawnTerm:
    """An expert asked at prefixes that were drawn at random, each with a recorded probability.

    Local as a partial term is; in the future term a drawn cost is divided by its probability, which makes it unbiased.

    Shapes: weights [B] as in WholeTerm; drawn [B, T] bool; probability [B, T], read where drawn.
    """

    name: str
    expert: ExpertDistribution
    weights: Tensor
    drawn: Tensor
    probability: Tensor
    share: float
    num_tokens: int


Term = WholeTerm | PartialTerm | DrawnTerm


@dataclass(frozen=True, eq=False)
class Student:
    """The student on the N action tokens of a micro-batch, row by row.

    Shapes: rows, steps [N] (where each token is in [B, T]); scores [N, V] (logits at the sampling temperature);
    log_total [N] (their logsumexp); action_logprobs [N]. All but the indices carry the gradient.
    """

    rows: Tensor
    steps: Tensor
    scores: Tensor
    log_total: Tensor
    action_logprobs: Tensor

    def pick(self, values: Tensor) -> Tensor:
        """The action tokens' entries of a [B, T, ...] tensor, or of a [B] one."""
        return values[self.rows] if values.dim() == 1 else values[self.rows, self.steps]

    def spread(self, values: Tensor, shape: torch.Size) -> Tensor:
        """[N] values put back in their places of a [B, T] tensor of zeros."""
        return values.new_zeros(shape).index_put((self.rows, self.steps), values)

    def refuse(self, bad: Tensor, problem: str) -> None:
        """Raises ValueError naming the row and step of the first action token where `bad` [N] is True."""
        if bad.any():
            first = int(bad.nonzero()[0])
            raise ValueError(f"row {int(self.rows[first])}, step {int(self.steps[first])}: {problem}")


@dataclass(frozen=True, eq=False)
class StepCost:
    """What one term costs at each action token. Shapes: [N].

    cross_entropy carries the gradient. entropy is the expert's own, detached: 0 for samples, whose entropy is unknown.
    Both are 0 where the term is absent.
    """

    cross_entropy: Tensor
    entropy: Tensor


def require_shape(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    """Raises ValueError if the tensor has another shape."""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, not {tuple(shape)}")


def tempered_logprobs(logits: Tensor, temperature: float) -> Tensor:
    """The log-softmax of logits / temperature over the last dimension. Raises ValueError if temperature <= 0.

    For teachers run here; a top-K that arrives from elsewhere is truncated already and must not be re-tempered.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    return torch.log_softmax(logits / temperature, -1)


def agreeing_samples(continuation: Sequence[int], rollout: Sequence[int], step: int) -> list[int]:
    """The tokens of an expert's continuation that are samples at `step`, `step` + 1, ... of the rollout.

    The first always is; a later one only while all before it agree with the rollout, whose states the student visited.
    The continuation must continue rollout[:step] token for token. Raises ValueError if `step` is outside the rollout.
    """
    if not 0 <= step < len(rollout):
        raise ValueError(f"step {step} lies outside a rollout of {len(rollout)} tokens")
    pairs = list(zip(continuation, rollout[step:], strict=False))
    num_agreeing = next((index for index, (theirs, ours) in enumerate(pairs) if theirs != ours), len(pairs))
    return [theirs for theirs, _ in pairs[: num_agreeing + 1]]


def read_student(logits: Tensor, token_ids: Tensor, action_mask: Tensor, temperature: Tensor) -> Student:
    """The student's full softmax at the action tokens, at the temperature the rollouts were sampled with.

    Shapes: logits [B, T, V], the scores that token_ids [B, T] were drawn from; action_mask [B, T] bool;
    temperature [B]. Half precision is raised to float32. Makes one copy of the action tokens' logits, no other [N, V].
    Raises ValueError if no token is an action, or naming the row of an action with NaN or infinite logits or an id
    outside the vocabulary.
    """
    if logits.dim() != 3:
        raise ValueError(f"logits have shape {tuple(logits.shape)}, not [B, T, V]")
    num_rows, length, vocabulary = logits.shape
    require_shape("token_ids", token_ids, (num_rows, length))
    require_shape("action_mask", action_mask, (num_rows, length))
    require_shape("temperature", temperature, (num_rows,))
    rows, steps = action_mask.nonzero(as_tuple=True)
    if len(rows) == 0:
        raise ValueError("no action token in the batch")
    if not (temperature > 0).all():
        raise ValueError(f"row {int((~(temperature > 0)).nonzero()[0])}: temperature must be above 0")
    scores = logits[rows, steps]
    if scores.dtype in (torch.bfloat16, torch.float16):
        scores = scores.float()
    if (temperature != 1).any():
        scores = scores / temperature[rows, None].to(scores.dtype)
    log_total = scores.logsumexp(-1)
    ids = token_ids[rows, steps]
    student = Student(rows, steps, scores, log_total, action_logprobs=log_total)
    student.refuse(~log_total.isfinite(), "the student's logits are NaN or infinite")
    student.refuse((ids < 0) | (ids >= vocabulary), f"token id outside the vocabulary of {vocabulary}")
    return Student(rows, steps, scores, log_total, scores.gather(1, ids[:, None])[:, 0] - log_total)


def step_cost(student: Student, name: str, expert: ExpertDistribution, present: Tensor, shape: torch.Size) -> StepCost:
    """H(expert, student) and the expert's entropy at each action token; nothing is read where `present` is False.

    Shapes: present [N] bool; shape is (B, T). Raises ValueError naming the row for an expert distribution that
    does not fit the rollouts, is NaN or unnormalised, or has ids outside the vocabulary.
    """
    if isinstance(expert, FullVocabulary):
        require_shape(f"{name}: logprobs", expert.logprobs, (*shape, student.scores.shape[1]))
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


def _full_cost(student: Student, name: str, expert: FullVocabulary, present: Tensor) -> StepCost:
    # -<p, log_softmax> without making it: of the [N, V] tensors only the expert's probabilities outlive this function
    probs = student.pick(expert.logprobs.detach()).to(student.scores.dtype).exp_()
    probs.masked_fill_(~present[:, None], 0)
    mass = probs.sum(-1)  # 1 but for rounding; left as it is, the cost would depend on the level of the logits
    _refuse_mass(student, name, mass, present)
    # a product and a sum, not a matrix product: its plain accumulation is 30 times less exact over 50,000 tokens
    cross_entropy = mass * student.log_total - (probs * student.scores).sum(-1)
    return StepCost(cross_entropy, torch.special.entr(probs).sum(-1))


def _top_k_cost(student: Student, name: str, expert: TopK, present: Tensor) -> StepCost:
    vocabulary = student.scores.shape[1]
    logprobs = student.pick(expert.logprobs.detach()).to(student.scores.dtype)
    listed = present[:, None] & ~logprobs.isneginf()
    ids = student.pick(expert.ids)
    student.refuse((listed & ((ids < 0) | (ids >= vocabulary))).any(-1), f"{name}: id outside the vocabulary")
    unique = torch.where(listed, ids, -1 - torch.arange(ids.shape[1], device=ids.device)).sort(-1).values
    student.refuse((unique[:, 1:] == unique[:, :-1]).any(-1), f"{name}: an id is listed twice")
    ids = torch.where(listed, ids, 0)
    probs = torch.where(listed, logprobs.exp(), 0)
    has_tail = present & (listed.sum(-1) < vocabulary)  # with every token listed nothing is left for a tail
    tail = torch.where(has_tail, student.pick(expert.tail_logprobs.detach()).to(probs.dtype).exp(), 0)
    _refuse_mass(student, name, probs.sum(-1) + tail, present)
    cross_entropy = -(probs * (student.scores.gather(1, ids) - student.log_total[:, None])).sum(-1)
    some = (tail > 0).nonzero()[:, 0]
    if len(some):
        # summed over the other tokens themselves: one minus the listed mass loses every digit of a small tail
        unlisted = student.scores[some].scatter_add(1, ids[some], torch.where(listed[some], -torch.inf, 0.0).to(probs))
        cross_entropy = cross_entropy.index_add(
            0, some, tail[some] * (student.log_total[some] - unlisted.logsumexp(-1))
        )
    return StepCost(cross_entropy, torch.special.entr(probs).sum(-1) + torch.special.entr(tail))


def _sample_cost(student: Student, name: str, token_ids: Tensor, valid: Tensor, present: Tensor) -> StepCost:
    vocabulary = student.scores.shape[1]
    drawn = student.pick(valid) & present[:, None]
    counts = drawn.sum(-1)
    student.refuse(present & (counts == 0), f"{name}: no sample")
    ids = student.pick(token_ids)
    student.refuse((drawn & ((ids < 0) | (ids >= vocabulary))).any(-1), f"{name}: id outside the vocabulary")
    costs = student.log_total[:, None] - student.scores.gather(1, torch.where(drawn, ids, 0))
    cross_entropy = (costs * drawn).sum(-1) / counts.clamp(min=1)
    return StepCost(cross_entropy, torch.zeros_like(cross_entropy).detach())


def _refuse_mass(student: Student, name: str, mass: Tensor, present: Tensor) -> None:
    student.refuse(present & mass.isnan(), f"{name}: the expert's logprobs are NaN")
    off = (mass - 1).abs() > MASS_TOLERANCE
    student.refuse(present & off, f"{name}: the expert's probabilities do not sum to 1")
