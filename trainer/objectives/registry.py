"""The objectives there are, by name, and the settings they have of their own. Loads without torch.

A new objective is a file in this folder and a line in `OBJECTIVES`; where it has settings of its own, their class is a
base of `ObjectiveSettings`.
"""

from typing import Annotated, Any, Final

from pydantic import AfterValidator

from trainer.objectives.base import Objective
from trainer.objectives.distil import Distil, DistilSettings
from trainer.objectives.forward_ce import ForwardCE
from trainer.objectives.grpo import Grpo, GrpoSettings
from trainer.objectives.maxrl import MaxRL
from trainer.objectives.paper import Paper
from trainer.objectives.reverse_kl import ReverseKL
from trainer.objectives.rft import Rft
from trainer.objectives.sdpo import Sdpo, SdpoSettings
from trainer.objectives.sft import Sft

OBJECTIVES: Final[dict[str, type[Objective[Any]]]] = {
    objective.name: objective for objective in (Distil, ForwardCE, Paper, Sdpo, ReverseKL, Grpo, MaxRL, Sft, Rft)
}


class ObjectiveSettings(DistilSettings, SdpoSettings, GrpoSettings):
    """The settings of all objectives, as the trainer's configuration has them."""


def _require_known(name: str) -> str:
    if name not in OBJECTIVES:
        raise ValueError(f"no objective is called {name}; there are {', '.join(OBJECTIVES)}")
    return name


ObjectiveName = Annotated[str, AfterValidator(_require_known)]
"""The name of an objective in `OBJECTIVES`."""
