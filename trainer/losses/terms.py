"""Experts' distributions at the steps of a rollout, one class per kind, and terms, which weigh them.

Not covered: making the distributions (the teacher, the experts), and the student's cost under them (`costs`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class FullVocabulary:
    """The expert's log-probability of every token. Shape: logprobs [B, T, V]."""

    logprobs: Tensor


@dataclass(frozen=True, eq=False)
class HiddenStates:
    """A full-vocabulary expert before its output layer, which it shares with the student: our own teacher.

    Shape: hidden [B, T, H], the states that predict each token. The distribution is tempered by `temperature` > 0.
    """

    hidden: Tensor
    temperature: float


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


ExpertDistribution = FullVocabulary | HiddenStates | TopK | Samples | Label


@dataclass(frozen=True, eq=False)
class WholeTerm:
    """An expert with a distribution at every action token of a rollout.

    Shape: weights [B], its trust per rollout relative to the other terms; 0 where it is absent.
    """

    name: str
    expert: ExpertDistribution
    weights: Tensor


@dataclass(frozen=True, eq=False)
class PartialTerm:
    """An expert with a distribution at some action tokens: spans, samples at some prefixes, labels. Local term only.

    Shape: weights [B, T], 0 where it is absent. share: its part of the loss beside the whole-coverage terms.
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
