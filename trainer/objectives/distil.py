"""`distil`: forward cross-entropy to the experts at the student's own states, with credit for later costs.

DistIL (arXiv 2606.05152), Proposition 1. This is the default.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from trainer.objectives.base import Reading
from trainer.objectives.experts import ExpertSettings, FromExperts

if TYPE_CHECKING:
    from trainer.losses.credit import Credit, LeaveOneOut
    from trainer.losses.distil import DistilLoss
    from trainer.losses.terms import Term


class DistilSettings(ExpertSettings):
    """The future term's."""

    lam: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """`distil`: λ, the weight of the future term; 0 is `forward_ce`. Where earlier tokens decide what can be learned,
    .1 is too little; on the starter tasks no difference between 0, .1 and 1 was seen."""
    clip: float = Field(default=5.0, gt=0)
    """`distil`: bound on the charge of a token, in nats, either way; `inf` for none."""


class Distil(FromExperts[DistilSettings]):
    """Local term and future term."""

    name = "distil"

    @property
    def shares_baseline(self) -> bool:
        return self.settings.lam > 0

    def follow(self, reading: Reading, terms: Sequence["Term"]) -> "DistilLoss":
        from trainer.losses.distil import distil_loss, forward_ce_loss

        if self.settings.lam == 0:
            return forward_ce_loss(reading.student, reading.rollouts, terms, self.num_tokens)
        baseline, credit = _leave_one_out(reading), _credit(self.settings)
        return distil_loss(reading.student, reading.rollouts, terms, baseline, credit, self.num_tokens)


def _credit(settings: DistilSettings) -> "Credit":
    """How later costs become the future term.

    KL rather than cross-entropy: with the experts' entropy left in, even a perfect student gains by stopping early.
    The mean over later tokens rather than their sum: the sum grows with the answer's length, the local term does not.
    Later costs rather than the whole rollout's: only feedback computed from this very rollout would need those.
    """
    from trainer.losses.credit import CostKind, Credit, Reach, Scale

    return Credit(
        weight=settings.lam,
        clip=settings.clip,
        cost=CostKind.KL,
        scale=Scale.MEAN_TO_GO,
        reach=Reach.LATER,
        gamma=1.0,  # a discount only blurs the gradient: cosine .98 with the exact one at .5
        max_tokens=1,  # without effect on this scale
    )


def _leave_one_out(reading: Reading) -> "LeaveOneOut":
    """The siblings' mean as baseline; in place of a missing sibling, the running mean of earlier updates."""
    import torch

    from trainer.losses.credit import LeaveOneOut

    device = reading.rollouts.token_ids.device
    names = sorted({row.siblings for row in reading.rows})
    return LeaveOneOut(
        group=torch.tensor([names.index(row.siblings) for row in reading.rows], device=device),
        half=torch.tensor([row.half for row in reading.rows], device=device),
        fallback=reading.running_mean,
    )
