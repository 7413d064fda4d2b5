"""The charge of a sampled token: the costs that came after it, scaled, less a baseline.

Pure functions over [B, T] tensors, without logits, experts or gradients: the costs arrive detached and leave detached.
`distil` multiplies the result with the log-probability of the sampled token.

Not covered: which rollouts may be siblings. The code that makes the teacher's contexts decides that, by `half`.
"""

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor


class Scale(StrEnum):
    """The divisor of a sum of later costs."""

    MEAN_TO_GO = "mean_to_go"  # the action tokens that were summed: O(1) per token, like the local term
    ROOM_LEFT = "room_left"  # the action tokens that could still have come: max_tokens less those taken
    NONE = "none"


class Reach(StrEnum):
    """The costs that a token is charged with."""

    LATER = "later"  # exact when the feedback is fixed given the prompt
    WHOLE_ROLLOUT = "whole_rollout"  # exact also when the feedback was computed from this very rollout


class LocalRatio(StrEnum):
    """The factor on the local cost of a rollout that an older policy sampled. The local cost at a step does not depend
    on the token sampled there, so the token's own ratio only adds noise; the probability of the state does depend on
    the tokens before."""

    NONE = "none"  # learn on the mixture of past policies, as in DAgger
    PREFIX = "prefix"  # the product of the ratios of the tokens before it, cut like a token's ratio
    TOKEN = "token"  # noqa: S105 - the token's own ratio, as SDPO and the released DistIL code have it


class CostKind(StrEnum):
    """The cost of one step in the future term; where an expert's entropy is unknown (samples) both are CE."""

    KL = "kl"
    CROSS_ENTROPY = "cross_entropy"


@dataclass(frozen=True)
class Credit:
    """How later costs become the future term.

    weight: λ, above 0. clip: the excess is cut at ±clip, in nats; `math.inf` for no clip.
    gamma: discount per later action token, 0 (only the next) to 1. max_tokens: the sampler's limit, for ROOM_LEFT.
    """

    weight: float
    clip: float
    cost: CostKind
    scale: Scale
    reach: Reach
    gamma: float
    max_tokens: int

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"weight must be above 0 (0 is forward_ce_loss), not {self.weight}")
        if not self.clip > 0:
            raise ValueError(f"clip must be above 0, not {self.clip}")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must lie in 0..1, not {self.gamma}")
        if self.reach is Reach.WHOLE_ROLLOUT and self.gamma != 1:
            raise ValueError("gamma must be 1 when every token is charged with the whole rollout")


@dataclass(frozen=True, eq=False)
class LeaveOneOut:
    """Baseline: the mean of the siblings' cost-to-go at the same token index.

    Siblings share `group` and `half`; all of them must be in the batch. Where the teacher is shown solutions of
    siblings, split the group in two halves, show only those of the other half, and number the halves here: a
    sibling whose teacher saw this rollout would make the baseline depend on the token it is subtracted for.
    Contexts fixed given the prompt: one half for the whole group.

    Shapes: group, half [B] integers; fallback [T], used where no sibling is left: the running mean per position.
    """

    group: Tensor
    half: Tensor
    fallback: Tensor


def cost_to_go(cost: Tensor, action_mask: Tensor, gamma: float = 1.0) -> Tensor:
    """The discounted sum of the costs of all later action tokens: sum_{i>t} gamma^(actions between t and i) cost_i.

    Shapes: cost [B, T], action_mask [B, T] bool, result [B, T]. Costs off the mask are never charged, and a tool
    turn does not discount: the policy did not choose its length.
    """
    sums = torch.zeros_like(cost)
    for t in range(cost.shape[1] - 2, -1, -1):
        sums[:, t] = torch.where(action_mask[:, t + 1], cost[:, t + 1] + gamma * sums[:, t + 1], sums[:, t + 1])
    return sums


def scaled_return(cost: Tensor, action_mask: Tensor, credit: Credit) -> Tensor:
    """R_t [B, T]: the charge of the token at t before the baseline. Linear in `cost`.

    Later costs: 0 where no action token follows, so an ended rollout counts 0 as a sibling. Whole rollout: the same
    number at every position, past the end too, because the baseline is then one number per rollout.
    A rollout longer than `credit.max_tokens`, which the sampler cannot have drawn, has no room left.
    """
    taken = action_mask.cumsum(1)
    total = taken[:, -1:]
    if credit.reach is Reach.WHOLE_ROLLOUT:
        sums = torch.where(action_mask, cost, 0).sum(1, keepdim=True).expand_as(cost)
        counts = {Scale.MEAN_TO_GO: total, Scale.ROOM_LEFT: torch.full_like(total, credit.max_tokens)}
    else:
        sums = cost_to_go(cost, action_mask, credit.gamma)
        counts = {Scale.MEAN_TO_GO: total - taken, Scale.ROOM_LEFT: credit.max_tokens - taken}
    if credit.scale is Scale.NONE:
        return sums
    return sums / counts[credit.scale].clamp(min=1)


def leave_one_out(returns: Tensor, usable: Tensor, siblings: LeaveOneOut) -> Tensor:
    """b_t [B, T]: the mean of the usable siblings' returns at t; the fallback where there is none.

    Shapes: returns [B, T], already scaled (dividing after the subtraction is biased); usable [B] bool, False for a
    rollout without a cost-to-go of its own: it leaves the mean. An ended sibling stays and counts 0.
    """
    same = (siblings.group[:, None] == siblings.group) & (siblings.half[:, None] == siblings.half)
    same &= usable & ~torch.eye(len(usable), dtype=torch.bool, device=usable.device)
    counts = same.sum(1, keepdim=True)
    means = same.to(returns.dtype) @ returns / counts.clamp(min=1)
    return torch.where(counts > 0, means, siblings.fallback.to(returns.dtype))


def update_position_mean(mean: Tensor, returns: Tensor, usable: Tensor, rate: float) -> Tensor:
    """The running mean of the returns per position, after one more update.

    Shapes: mean [max_tokens], returns [B, T <= max_tokens], usable [B] bool. Positions past T count 0, as an ended
    rollout does. Unchanged if no rollout is usable. A baseline may use it only for later updates than these returns.
    """
    if not usable.any():
        return mean
    present = torch.zeros_like(mean)
    present[: returns.shape[1]] = returns[usable].mean(0)
    return torch.lerp(mean, present, rate)
