"""The log-likelihood of given tokens: imitating a solution, the rest of a person's text, or the policy's own successes.

Pure; sums are divided by a count over the whole update, as in `distil`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.losses.student import Rollouts, Student
from trainer.losses.terms import require_shape


@dataclass(frozen=True, eq=False)
class SftLoss:
    """loss: nats per token of the update. Detached: logprobs [B, T] of the tokens, 0 off the mask; row_loss [B], each
    row's part of the loss; row_tokens [B], its tokens that were learned."""

    loss: Tensor
    logprobs: Tensor
    row_loss: Tensor
    row_tokens: Tensor

    def deal(self, place: Tensor, parts: Tensor) -> "SftLoss":
        """The same loss by the rows that gave its texts. Shapes: place [R], the text of each row; parts [R], the row's
        part of the trust in that text."""
        return SftLoss(self.loss, self.logprobs[place], self.row_loss[place] * parts, self.row_tokens[place])


def sft_loss(student: Student, rollouts: Rollouts, weights: Tensor, num_tokens: float) -> SftLoss:
    """The negative log-likelihood of the tokens under the action mask, weighted by row.

    Shape: weights [B], the trust in the source of the tokens, 0 for rows that are not learned. num_tokens: of all masks
    of the update, each times its row's weight; a larger divisor is allowed. Raises ValueError for a weight that is
    negative, NaN or infinite, and if num_tokens is too small.
    """
    places = student.places
    require_shape("weights", weights, places.shape[:1])
    weight = places.pick(weights).to(student.log_total.dtype)
    places.refuse(~(weight.isfinite() & (weight >= 0)), "its weight is negative, NaN or infinite")
    if num_tokens < float(weight.sum()) * (1 - 1e-6):
        raise ValueError(f"num_tokens is {num_tokens}, but this micro-batch alone has {float(weight.sum()):g}")
    emphasis = places.pick(rollouts.emphasis).to(weight.dtype)
    by_token = -weight * emphasis * student.action_logprobs / max(num_tokens, torch.finfo(weight.dtype).tiny)
    return SftLoss(
        loss=by_token.sum(),
        logprobs=places.spread(student.action_logprobs.detach()),
        row_loss=places.spread(by_token.detach()).sum(1),
        row_tokens=places.spread((weight > 0).to(weight.dtype)).sum(1),
    )
