"""`reverse_kl`: KL(policy ‖ teacher) over the whole vocabulary, token by token; it seeks one of the teacher's modes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer.objectives.base import OwnSettings, Reading
from trainer.objectives.experts import FromTeacher

if TYPE_CHECKING:
    from trainer.losses.distil import DistilLoss
    from trainer.losses.terms import Term


class ReverseKL(FromTeacher[OwnSettings]):
    """The divergence that SDPO's authors use on code."""

    name = "reverse_kl"

    def follow(self, reading: Reading, terms: Sequence["Term"]) -> "DistilLoss":
        from trainer.losses.distil import reverse_kl_loss

        return reverse_kl_loss(reading.student, reading.rollouts, terms, self.num_tokens)
