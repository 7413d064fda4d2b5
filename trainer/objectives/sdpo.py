"""`sdpo`: generalised Jensen-Shannon divergence from the teacher, token by token (arXiv 2601.20802)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from trainer.objectives.base import Reading
from trainer.objectives.experts import CoarseSettings, FromTeacher

if TYPE_CHECKING:
    from trainer.losses.distil import DistilLoss
    from trainer.losses.terms import Term


class SdpoSettings(CoarseSettings):
    """Its divergence."""

    sdpo_alpha: float = Field(default=0.5, ge=0, le=1)
    """`sdpo`: 0 is KL(teacher ‖ student), 1 is KL(student ‖ teacher), and between them lies the generalised
    Jensen-Shannon divergence."""


class Sdpo(FromTeacher[SdpoSettings]):
    """On the student's likeliest tokens and a tail bucket, times the token ratio."""

    name = "sdpo"

    def follow(self, reading: Reading, terms: Sequence["Term"]) -> "DistilLoss":
        from trainer.losses.distil import sdpo_loss

        alpha, top_k = self.settings.sdpo_alpha, self.settings.student_top_k
        return sdpo_loss(reading.student, reading.rollouts, terms, alpha, top_k, self.num_tokens)
