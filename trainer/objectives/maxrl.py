"""`maxrl`: scores less their group's mean, over that mean, so that a rare success counts more (arXiv 2602.02710)."""

from typing import TYPE_CHECKING

from trainer.objectives.base import OwnSettings
from trainer.objectives.scores import FromScores

if TYPE_CHECKING:
    from torch import Tensor


class MaxRL(FromScores[OwnSettings]):
    """As `grpo`, with another scale of the advantage."""

    name = "maxrl"

    def compare_scores(self, scores: "Tensor", group: "Tensor") -> "Tensor":
        from trainer.losses.reward import maxrl_advantages

        return maxrl_advantages(scores, group)
