"""The student as the losses see it: numbers per action token, never its logits.

Every loss is a function of a few scalars at each of the N action tokens of a micro-batch: the log-probability of the
sampled token, the cross-entropy to an expert. A `Student` gives them, with their gradients. There are two: the plain
one here, which holds the scores [N, V] of the whole vocabulary, and `fused.FusedStudent`, which never does. Action
tokens are picked out once, so padding and tool turns cost no memory and cannot affect a result.

Not covered: the losses made of these numbers.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.losses.divergences import coarsen, kl
from trainer.losses.terms import FullVocabulary, HiddenStates, require_shape


@dataclass(frozen=True, eq=False)
class Rollouts:
    """Sampled rollouts, padded to one length.

    Shapes: token_ids [B, T]; action_mask [B, T] bool, False for tool turns and padding; temperature [B] of the
    sampler; sampler_logprobs [B, T], read where `credited`; credited [B] bool: False where the sampler's logprobs are
    unknown or top-p/top-k cut its distribution, and such a rollout trains the local term alone; emphasis [B]: the
    factor on all that a rollout adds to the loss, 1 unless questions are weighted.
    """

    token_ids: Tensor
    action_mask: Tensor
    temperature: Tensor
    sampler_logprobs: Tensor
    credited: Tensor
    emphasis: Tensor


@dataclass(frozen=True, eq=False)
class Places:
    """Where the N action tokens are in [B, T], row by row. Shapes: rows, steps [N]; shape is (B, T)."""

    rows: Tensor
    steps: Tensor
    shape: torch.Size

    def pick(self, values: Tensor) -> Tensor:
        """The action tokens' entries of a [B, T, ...] tensor, or of a [B] one."""
        return values[self.rows] if values.dim() == 1 else values[self.rows, self.steps]

    def spread(self, values: Tensor) -> Tensor:
        """[N, ...] values put back in their places of a [B, T, ...] tensor of zeros."""
        return values.new_zeros((*self.shape, *values.shape[1:])).index_put((self.rows, self.steps), values)

    def refuse(self, bad: Tensor, problem: str) -> None:
        """Raises ValueError naming the row and step of the first action token where `bad` [N] is True."""
        if bad.any():
            first = int(bad.nonzero()[0])
            raise ValueError(f"row {int(self.rows[first])}, step {int(self.steps[first])}: {problem}")


NUM_CHOICES = 5  # of an expert's tokens are kept for people to see


@dataclass(frozen=True, eq=False)
class Choices:
    """The tokens an expert finds likeliest, highest first. Shapes: ids, probs [..., K], detached; 0 where it is absent.

    K is NUM_CHOICES, or the size of a smaller vocabulary.
    """

    ids: Tensor
    probs: Tensor


@dataclass(frozen=True, eq=False)
class Expectation:
    """The student's scores under a full-vocabulary expert. Shapes: [N], 0 where the expert is absent.

    score: the expert's expectation of the student's score, sum_a expert(a) score(a); it alone carries a gradient.
    mass: the expert's probabilities' sum, 1 but for rounding. entropy: its own. action_logprobs: of the sampled token.
    choices: [N, K].
    """

    score: Tensor
    mass: Tensor
    entropy: Tensor
    action_logprobs: Tensor
    choices: Choices


class Student(ABC):
    """The student at the N action tokens of a micro-batch, at the temperature the rollouts were sampled with.

    Shapes: ids, log_total, action_logprobs [N]; log_total is the logsumexp of the scores over the vocabulary.
    """

    places: Places
    vocabulary: int
    ids: Tensor
    log_total: Tensor
    action_logprobs: Tensor

    @abstractmethod
    def entropy(self) -> Tensor:
        """The student's own, [N], detached."""

    @abstractmethod
    def scores_at(self, ids: Tensor) -> Tensor:
        """The scores of given tokens, which must be in the vocabulary. Shapes: ids, result [N, K]."""

    @abstractmethod
    def log_rest(self, at: Tensor, ids: Tensor, listed: Tensor) -> Tensor:
        """The logsumexp over the tokens that are not listed. Shapes: at [M] of N, ids and listed (bool) [M, K].

        Summed over those tokens themselves: one minus the listed mass loses every digit of a small rest.
        """

    @abstractmethod
    def expect(self, expert: FullVocabulary | HiddenStates, present: Tensor) -> Expectation:
        """The scores' expectation under a full-vocabulary expert, where it is present [N]."""

    @abstractmethod
    def reverse_kl(self, expert: FullVocabulary | HiddenStates, at: Tensor) -> tuple[Tensor, Tensor]:
        """KL(student || expert), and the expert's logprobs of the sampled tokens (detached).

        Shapes: at [M] of N, where the expert is present; results [M].
        """

    @abstractmethod
    def coarsen(self, expert: FullVocabulary | HiddenStates, at: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of the student's likeliest tokens and of all the others together: its own, and the
        expert's; and the expert's of the sampled tokens. The expert's are detached.

        Shapes: at [M] of N, where the expert is present; results [M, top_k + 1] twice, [M]. Raises ValueError if top_k
        is below 1.
        """


def find_places(rollouts: Rollouts) -> Places:
    """Where the action tokens are. Raises ValueError if there is none, a shape or a number does not fit."""
    num_rows, length = rollouts.token_ids.shape
    require_shape("action_mask", rollouts.action_mask, (num_rows, length))
    require_shape("temperature", rollouts.temperature, (num_rows,))
    require_shape("sampler_logprobs", rollouts.sampler_logprobs, (num_rows, length))
    require_shape("credited", rollouts.credited, (num_rows,))
    require_shape("emphasis", rollouts.emphasis, (num_rows,))
    rows, steps = rollouts.action_mask.nonzero(as_tuple=True)
    if len(rows) == 0:
        raise ValueError("no action token in the batch")
    if not (rollouts.temperature > 0).all():
        raise ValueError(f"row {int((~(rollouts.temperature > 0)).nonzero()[0])}: temperature must be above 0")
    places = Places(rows, steps, rollouts.action_mask.shape)
    unknown = ~(rollouts.emphasis.isfinite() & (rollouts.emphasis >= 0))
    places.refuse(places.pick(unknown), "its emphasis is negative, NaN or infinite")
    return places


def require_student(places: Places, ids: Tensor, vocabulary: int, log_total: Tensor) -> None:
    """Raises ValueError naming the row of an action token with NaN or infinite logits or an id that does not exist."""
    places.refuse(~log_total.isfinite(), "the student's logits are NaN or infinite")
    places.refuse((ids < 0) | (ids >= vocabulary), f"token id outside the vocabulary of {vocabulary}")


class ScoredStudent(Student):
    """The plain reading: the scores [N, V] of every token of the vocabulary are held. The reference of the other."""

    def __init__(self, logits: Tensor, rollouts: Rollouts) -> None:
        """logits [B, T, V]: the scores that the rollouts' tokens were drawn from. Half precision is raised to float32.

        Makes one copy of the action tokens' logits, no other [N, V]. Raises ValueError as `find_places` and
        `require_student` do, and if the logits do not fit the rollouts.
        """
        if logits.dim() != 3:
            raise ValueError(f"logits have shape {tuple(logits.shape)}, not [B, T, V]")
        require_shape("token_ids", rollouts.token_ids, logits.shape[:2])
        self.places = find_places(rollouts)
        self.vocabulary = logits.shape[2]
        scores = self.places.pick(logits)
        if scores.dtype in (torch.bfloat16, torch.float16):
            scores = scores.float()
        if (rollouts.temperature != 1).any():
            scores = scores / self.places.pick(rollouts.temperature)[:, None].to(scores.dtype)
        self.scores = scores
        self.ids = self.places.pick(rollouts.token_ids)
        self.log_total = scores.logsumexp(-1)
        require_student(self.places, self.ids, self.vocabulary, self.log_total)
        self.action_logprobs = scores.gather(1, self.ids[:, None])[:, 0] - self.log_total

    def entropy(self) -> Tensor:
        logprobs = self.scores.detach() - self.log_total.detach()[:, None]
        entropy: Tensor = torch.special.entr(logprobs.exp_()).sum(-1)
        return entropy

    def scores_at(self, ids: Tensor) -> Tensor:
        return self.scores.gather(1, ids)

    def log_rest(self, at: Tensor, ids: Tensor, listed: Tensor) -> Tensor:
        return self.scores[at].scatter_add(1, ids, _hide(listed, self.scores)).logsumexp(-1)

    def expect(self, expert: FullVocabulary | HiddenStates, present: Tensor) -> Expectation:
        # -<p, log_softmax> without making it: of the [N, V] tensors only the expert's probabilities outlive this
        logprobs = self._read(expert)
        action_logprobs = torch.where(present, logprobs.gather(1, self.ids[:, None])[:, 0], 0)
        best, ids = logprobs.topk(min(NUM_CHOICES, self.vocabulary))
        probs = logprobs.exp_()
        probs.masked_fill_(~present[:, None], 0)
        return Expectation(
            # a product and a sum, not a matrix product: its plain accumulation is 30 times less exact over 50,000
            score=(probs * self.scores).sum(-1),
            mass=probs.sum(-1),
            entropy=torch.special.entr(probs).sum(-1),
            action_logprobs=action_logprobs,
            choices=Choices(ids * present[:, None], torch.where(present[:, None], best.exp(), 0)),
        )

    def reverse_kl(self, expert: FullVocabulary | HiddenStates, at: Tensor) -> tuple[Tensor, Tensor]:
        logprobs = self._read(expert)[at]
        own = self.scores[at] - self.log_total[at, None]
        return kl(own, logprobs), logprobs.gather(1, self.ids[at, None])[:, 0]

    def coarsen(self, expert: FullVocabulary | HiddenStates, at: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
        logprobs = self._read(expert)[at]
        return *coarsen(self.scores[at], logprobs, top_k), logprobs.gather(1, self.ids[at, None])[:, 0]

    def _read(self, expert: FullVocabulary | HiddenStates) -> Tensor:
        """A copy of the expert's logprobs at the action tokens, [N, V]."""
        if isinstance(expert, HiddenStates):
            raise ValueError("an expert without an output layer needs a FusedStudent, which has one")
        require_shape("the expert's logprobs", expert.logprobs, (*self.places.shape, self.vocabulary))
        return self.places.pick(expert.logprobs.detach()).to(self.scores.dtype)


def _hide(listed: Tensor, like: Tensor) -> Tensor:
    return torch.where(listed, -torch.inf, 0.0).to(like)
