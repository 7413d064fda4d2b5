"""A student and an expert small enough to enumerate: one row of logits per prefix, every rollout listed.

What the losses estimate by sampling is summed exactly here, so the tests compare numbers, not averages.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trainer.losses.credit import CostKind, Credit, LeaveOneOut, Reach, Scale
from trainer.losses.distil import DistilLoss, distil_loss
from trainer.losses.student import Rollouts, ScoredStudent
from trainer.losses.terms import FullVocabulary, Term, WholeTerm

PROPOSITION_1 = Credit(
    weight=1.0,
    clip=math.inf,
    cost=CostKind.CROSS_ENTROPY,
    scale=Scale.NONE,
    reach=Reach.LATER,
    gamma=1.0,
    max_tokens=8,
)
DEFAULT = replace(PROPOSITION_1, cost=CostKind.KL, scale=Scale.MEAN_TO_GO)


def make_rollouts(token_ids: Tensor, action_mask: Tensor, logits: Tensor, temperature: float = 1.0) -> Rollouts:
    """On-policy rollouts: the sampler's log-probabilities are the student's own. logits [B, T, V]."""
    ids = token_ids.clamp(0, logits.shape[-1] - 1)
    logprobs = (logits.detach() / temperature).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    every_row = torch.ones(len(token_ids))
    temperatures = torch.full((len(token_ids),), temperature)
    return Rollouts(
        token_ids, action_mask, temperatures, sampler_logprobs=logprobs, credited=every_row == 1, emphasis=every_row
    )


def whole_term(expert_logprobs: Tensor, name: str = "teacher", weight: float = 1.0) -> WholeTerm:
    """A full-vocabulary expert [B, T, V] that speaks on every rollout."""
    return WholeTerm(name, FullVocabulary(expert_logprobs), torch.full((len(expert_logprobs),), weight))


def one_group(num_rows: int, length: int) -> LeaveOneOut:
    """Every rollout a sibling of every other; the running mean is 0."""
    same = torch.zeros(num_rows, dtype=torch.long)
    return LeaveOneOut(group=same, half=same, fallback=torch.zeros(length))


@dataclass(frozen=True, eq=False)
class Tabular:
    """A student over `vocabulary` tokens and `length` steps. If `eos` is given, that token ends a rollout."""

    vocabulary: int
    length: int
    eos: int | None
    prefixes: tuple[tuple[int, ...], ...]
    sequences: tuple[tuple[int, ...], ...]

    @classmethod
    def make(cls, vocabulary: int, length: int, eos: int | None = None) -> "Tabular":
        going = [
            prefix
            for size in range(length + 1)
            for prefix in itertools.product(range(vocabulary), repeat=size)
            if eos not in prefix
        ]
        prefixes = tuple(prefix for prefix in going if len(prefix) < length)
        ended = [(*prefix, eos) for prefix in prefixes if eos is not None]
        full = [prefix for prefix in going if len(prefix) == length]
        return cls(vocabulary, length, eos, prefixes, (*ended, *full))

    def random_table(self, seed: int, scale: float = 1.0) -> Tensor:
        """Logits [prefixes, V], float64."""
        generator = torch.Generator().manual_seed(seed)
        size = (len(self.prefixes), self.vocabulary)
        return torch.randn(size, generator=generator, dtype=torch.float64) * scale

    def pad(self, sequences: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor, Tensor]:
        """Where each token was chosen (index into prefixes), token ids and action mask, all [B, T]."""
        index = {prefix: row for row, prefix in enumerate(self.prefixes)}
        states = torch.zeros((len(sequences), self.length), dtype=torch.long)
        ids = torch.zeros_like(states)
        mask = torch.zeros_like(states, dtype=torch.bool)
        for row, sequence in enumerate(sequences):
            for step, token in enumerate(sequence):
                states[row, step], ids[row, step], mask[row, step] = index[sequence[:step]], token, True
        return states, ids, mask

    def probabilities(self, table: Tensor) -> Tensor:
        """The chance of each of `sequences` under the student. Shape [sequences]."""
        states, ids, mask = self.pad(self.sequences)
        logprobs = table.log_softmax(-1)[states].gather(-1, ids[..., None])[..., 0]
        return (logprobs * mask).sum(1).exp()

    def finite_differences(self, table: Tensor, expert: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
        """Central finite differences of E[sum_t H(expert, student)]; expert(sequence) is a table of logprobs [P, V]."""
        states, ids, mask = self.pad(self.sequences)
        experts = torch.stack([expert(sequence) for sequence in self.sequences])
        probs = experts.exp()[torch.arange(len(states))[:, None], states]

        def objective(nudged: Tensor) -> Tensor:
            logprobs = nudged.log_softmax(-1)[states]
            chance = (logprobs.gather(-1, ids[..., None])[..., 0] * mask).sum(1).exp()
            return -(chance * ((probs * logprobs).sum(-1) * mask).sum(1)).sum()

        step = 1e-5
        result = torch.zeros_like(table)
        for at in itertools.product(range(len(self.prefixes)), range(self.vocabulary)):
            nudge = torch.zeros_like(table)
            nudge[at] = step
            result[at] = (objective(table + nudge) - objective(table - nudge)) / (2 * step)
        return result

    def expected_gradient(
        self,
        table: Tensor,
        groups: Sequence[tuple[int, ...]],
        make_terms: Callable[[Tensor], Sequence[Term]],
        make_baseline: Callable[[Tensor, LeaveOneOut], LeaveOneOut | Tensor],
        credit: Credit,
    ) -> Tensor:
        """The loss's gradient per rollout, averaged over every group that could be sampled. Shape [prefixes, V].

        groups: tuples of indices into `sequences`. make_terms is given the states [B, T], make_baseline also the
        groups. Rows of one group are neighbours.
        """
        size = len(groups[0])
        states, ids, mask = self.pad([self.sequences[index] for group in groups for index in group])
        chance = self.probabilities(table)[torch.tensor(groups)].prod(1).repeat_interleave(size) / size
        siblings = LeaveOneOut(
            group=torch.arange(len(groups)).repeat_interleave(size),
            half=torch.zeros(len(states), dtype=torch.long),
            fallback=torch.zeros(self.length),
        )
        logits = table[states].requires_grad_()
        count = int(mask.sum())
        rollouts = make_rollouts(ids, mask, logits)
        result: DistilLoss = distil_loss(
            ScoredStudent(logits, rollouts),
            rollouts,
            make_terms(states),
            make_baseline(states, siblings),
            credit,
            covered_tokens=count,
        )
        (gradient,) = torch.autograd.grad(result.loss * count, logits)
        weighted = gradient * chance[:, None, None]
        return torch.zeros_like(table).index_add(0, states.flatten(), weighted.flatten(0, 1))
