"""The objectives that learn from scores: GRPO and MaxRL, on the same rollouts.

A group's scores become an advantage for each of its rollouts, and every token of a rollout is made likelier or less
likely by it, within a clip. Pure; sums are divided by a count over the whole update, as in `distil`.

Not covered: where a score comes from. A rollout without a score takes no part; it is never given one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.losses.student import Rollouts, Student
from trainer.losses.terms import require_shape

CLIP_LOW = 0.2  # how far below 1 a token's ratio still moves it
CLIP_HIGH = 0.28  # how far above: more room for unlikely tokens (DAPO)
LARGEST_LOG_RATIO = 20.0  # beyond every clip; an infinite ratio times an advantage of 0 would be NaN
GRPO_EPSILON = 1e-4  # beside the standard deviation: a group that agrees has advantages of 0
MAXRL_EPSILON = 1e-6  # beside the mean: a group that never solves it has advantages of 0


@dataclass(frozen=True, eq=False)
class RewardLoss:
    """loss: of the micro-batch. Detached: row_loss [B], each rollout's part of it; row_tokens [B], its action tokens
    that took part; num_clipped, tokens that the clip kept still."""

    loss: Tensor
    row_loss: Tensor
    row_tokens: Tensor
    num_clipped: Tensor


def grpo_advantages(scores: Tensor, group: Tensor, divide_by_std: bool) -> Tensor:
    """A = (r - mean) / (std + epsilon) within each group, or r - mean. Shapes: scores, group, result [B].

    A rollout alone in its group has an advantage of 0. Raises ValueError for a score that is NaN or infinite.
    """
    return _relative(scores, group, lambda own: own.std(correction=1) + GRPO_EPSILON if divide_by_std else 1.0)


def maxrl_advantages(scores: Tensor, group: Tensor) -> Tensor:
    """A = (r - mean) / (mean + epsilon) within each group (MaxRL, arXiv 2602.02710): a rare success counts more.

    Shapes and errors as in `grpo_advantages`.
    """
    return _relative(scores, group, lambda own: own.mean() + MAXRL_EPSILON)


def _relative(scores: Tensor, group: Tensor, scale: Callable[[Tensor], Tensor | float]) -> Tensor:
    require_shape("group", group, scores.shape)
    if not scores.isfinite().all():
        raise ValueError(f"row {int((~scores.isfinite()).nonzero()[0])}: its score is NaN or infinite")
    advantages = torch.zeros_like(scores)
    for name in set(group.tolist()):
        own = scores[group == name]
        if len(own) > 1:
            advantages[group == name] = (own - own.mean()) / scale(own)
    return advantages


def policy_gradient_loss(
    student: Student, rollouts: Rollouts, advantages: Tensor, judged: Tensor, num_tokens: int
) -> RewardLoss:
    """-min(ratio A, clip(ratio, 1 - CLIP_LOW, 1 + CLIP_HIGH) A), averaged over the update's tokens (PPO's surrogate).

    Shapes: advantages [B]; judged [B] bool: the rollouts that take part, whose sampler must be known. num_tokens:
    action tokens of all that take part in the update; a larger divisor is allowed. Raises ValueError naming the row for
    input without a meaningful result.
    """
    places = student.places
    require_shape("advantages", advantages, places.shape[:1])
    require_shape("judged", judged, places.shape[:1])
    taking_part = places.pick(judged)
    if (judged & ~rollouts.credited).any():
        row = int((judged & ~rollouts.credited).nonzero()[0])
        raise ValueError(f"row {row}: its sampler's logprobs are unknown, so it has no ratio")
    if num_tokens < int(taking_part.sum()):
        raise ValueError(f"num_tokens is {num_tokens}, but this micro-batch alone has {int(taking_part.sum())}")
    sampler = places.pick(rollouts.sampler_logprobs).to(student.log_total.dtype)
    advantage = places.pick(advantages).to(sampler.dtype)
    places.refuse(taking_part & ~sampler.isfinite(), "its sampler's logprobs are NaN or infinite")
    places.refuse(taking_part & ~advantage.isfinite(), "its advantage is NaN or infinite")
    log_ratio = torch.where(taking_part, student.action_logprobs - sampler, 0)
    ratio = log_ratio.clamp(max=LARGEST_LOG_RATIO).exp()
    free, clipped = ratio * advantage, ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH) * advantage
    emphasis = places.pick(rollouts.emphasis).to(sampler.dtype)
    by_token = torch.where(taking_part, -torch.minimum(free, clipped) * emphasis, 0) / max(num_tokens, 1)
    return RewardLoss(
        loss=by_token.sum(),
        row_loss=places.spread(by_token.detach()).sum(1),
        row_tokens=places.spread(taking_part.to(by_token.dtype)).sum(1),
        num_clipped=(taking_part & (clipped < free)).sum(),
    )
