"""Divergences between two distributions given by log-probabilities, for the objectives we compare with.

Each gives [C], in nats. `coarsen` is the support SDPO and DistIL's authors use: the student's likeliest tokens and a
bucket for all the others.

Not covered: forward cross-entropy, which needs no expert distribution to be complete and is in `costs`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Divergence = Callable[[Tensor, Tensor], Tensor]
"""From the student's and the expert's log-probabilities, both [C, K], to [C]."""


def kl(left: Tensor, right: Tensor) -> Tensor:
    """KL(left || right); tokens that `left` rules out add 0."""
    return _expect(left, left - right)


def cross_entropy(student: Tensor, expert: Tensor) -> Tensor:
    """H(expert, student)."""
    return -_expect(expert, student)


def jensen_shannon(alpha: float) -> Divergence:
    """alpha KL(expert || M) + (1 - alpha) KL(student || M), M = (1 - alpha) student + alpha expert.

    alpha 0 is KL(expert || student), 1 is KL(student || expert). Raises ValueError for alpha outside 0..1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in 0..1, not {alpha}")

    def divergence(student: Tensor, expert: Tensor) -> Tensor:
        if alpha == 0:
            return kl(expert, student)
        if alpha == 1:
            return kl(student, expert)
        mixture = torch.logaddexp(student + math.log(1 - alpha), expert + math.log(alpha))
        return alpha * kl(expert, mixture) + (1 - alpha) * kl(student, mixture)

    return divergence


def coarsen(scores: Tensor, expert_logprobs: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Both distributions' log-probabilities of the student's likeliest tokens and, last, of all the others: [C, K + 1].

    Shapes: scores, expert_logprobs [C, V]. The others' are summed over those tokens themselves. Without a bucket where
    the vocabulary has no others: [C, V]. Raises ValueError if top_k is below 1.
    """
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
    ids = scores.detach().topk(min(top_k, scores.shape[1])).indices
    log_total = scores.logsumexp(-1, keepdim=True)
    student, expert = scores.gather(1, ids) - log_total, expert_logprobs.gather(1, ids)
    if ids.shape[1] == scores.shape[1]:
        return student, expert
    hidden = torch.full_like(student, -torch.inf).detach()
    rest = scores.scatter(1, ids, hidden).logsumexp(-1, keepdim=True) - log_total
    expert_rest = expert_logprobs.scatter(1, ids, hidden).logsumexp(-1, keepdim=True)
    return torch.cat([student, rest], 1), torch.cat([expert, expert_rest], 1)


def _expect(logprobs: Tensor, values: Tensor) -> Tensor:
    """The expectation of `values`, which may be infinite where the probability is 0."""
    return (logprobs.exp() * torch.where(logprobs.isneginf(), 0, values)).sum(-1)
