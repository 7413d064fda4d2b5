"""`forward_ce`: `distil` without credit for later costs, its tokenwise ablation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer.objectives.base import Reading
from trainer.objectives.experts import ExpertSettings, FromExperts

if TYPE_CHECKING:
    from trainer.losses.distil import DistilLoss
    from trainer.losses.terms import Term


class ForwardCE(FromExperts[ExpertSettings]):
    """Forward cross-entropy to the experts, token by token."""

    name = "forward_ce"

    def follow(self, reading: Reading, terms: Sequence["Term"]) -> "DistilLoss":
        from trainer.losses.distil import forward_ce_loss

        return forward_ce_loss(reading.student, reading.rollouts, terms, self.num_tokens)
