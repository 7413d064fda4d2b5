"""Divergences between the student and a full-vocabulary expert, for the objectives we compare with.

Each takes the student's scores and the expert's log-probabilities, both [C, V], and gives [C], in nats. The
log-probabilities carry no gradient.

Not covered: forward cross-entropy, which needs no expert distribution to be complete and is in `costs`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ReverseKL:
    """KL(student || expert) over the whole vocabulary."""

    def __call__(self, scores: Tensor, expert_logprobs: Tensor) -> Tensor:
        return kl(scores.log_softmax(-1), expert_logprobs)


@dataclass(frozen=True)
class JensenShannon:
    """alpha KL(expert || M) + (1 - alpha) KL(student || M), M = (1 - alpha) student + alpha expert.

    On the student's `top_k` likeliest tokens and a tail bucket (SDPO, arXiv 2601.20802). alpha 0 is KL(expert ||
    student), 1 is KL(student || expert). Raises ValueError for alpha outside 0..1 or top_k below 1.
    """

    alpha: float
    top_k: int

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must lie in 0..1, not {self.alpha}")
        _require_some(self.top_k)

    def __call__(self, scores: Tensor, expert_logprobs: Tensor) -> Tensor:
        student, expert = coarsen(scores, expert_logprobs, self.top_k)
        if self.alpha == 0:
            return kl(expert, student)
        if self.alpha == 1:
            return kl(student, expert)
        mixture = torch.logaddexp(student + math.log(1 - self.alpha), expert + math.log(self.alpha))
        return self.alpha * kl(expert, mixture) + (1 - self.alpha) * kl(student, mixture)


@dataclass(frozen=True)
class CoarseCrossEntropy:
    """H(expert, student) on the student's `top_k` likeliest tokens and a tail bucket: what DistIL's authors released.

    Tokens the expert wants and the student does not list share one bucket, so it pulls to them and to junk alike.
    """

    top_k: int

    def __post_init__(self) -> None:
        _require_some(self.top_k)

    def __call__(self, scores: Tensor, expert_logprobs: Tensor) -> Tensor:
        student, expert = coarsen(scores, expert_logprobs, self.top_k)
        return -_expect(expert, student)


def kl(left: Tensor, right: Tensor) -> Tensor:
    """KL(left || right) of log-probabilities over the last dimension; what `left` rules out costs nothing."""
    return _expect(left, left - right)


def coarsen(scores: Tensor, expert_logprobs: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Both distributions' log-probabilities of the student's likeliest tokens and, last, of all the others: [C, K + 1].

    The others' are summed over those tokens themselves. Without a bucket where the vocabulary has no others: [C, V].
    """
    ids = scores.detach().topk(min(top_k, scores.shape[1])).indices
    student = scores.gather(1, ids) - scores.logsumexp(-1, keepdim=True)
    expert = expert_logprobs.gather(1, ids)
    if ids.shape[1] == scores.shape[1]:
        return student, expert
    hidden = torch.full_like(student, -torch.inf).detach()
    rest = scores.scatter(1, ids, hidden).logsumexp(-1, keepdim=True) - scores.logsumexp(-1, keepdim=True)
    expert_rest = expert_logprobs.scatter(1, ids, hidden).logsumexp(-1, keepdim=True)
    return torch.cat([student, rest], 1), torch.cat([expert, expert_rest], 1)


def _expect(logprobs: Tensor, values: Tensor) -> Tensor:
    """The expectation of `values`, which may be infinite where the probability is 0."""
    return (logprobs.exp() * torch.where(logprobs.isneginf(), 0, values)).sum(-1)


def _require_some(top_k: int) -> None:
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
