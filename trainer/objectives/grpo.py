"""`grpo`: scores less their group's mean, over its standard deviation; PPO's clip, .2 below and .28 above."""

from typing import TYPE_CHECKING

from trainer.objectives.base import OwnSettings
from trainer.objectives.scores import FromScores

if TYPE_CHECKING:
    from torch import Tensor


class GrpoSettings(OwnSettings):
    """Its advantage."""

    grpo_std: bool = True
    """`grpo`: divide a group's advantages by the standard deviation of its scores."""


class Grpo(FromScores[GrpoSettings]):
    """Reinforcement learning from verifiable rewards, the usual way."""

    name = "grpo"

    def compare_scores(self, scores: "Tensor", group: "Tensor") -> "Tensor":
        from trainer.losses.reward import grpo_advantages

        return grpo_advantages(scores, group, self.settings.grpo_std)
