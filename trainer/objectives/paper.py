"""`paper`: DistIL as its authors released it, for comparison with `distil`, which follows their Proposition 1."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer.objectives.base import Reading
from trainer.objectives.experts import CoarseSettings, FromTeacher

if TYPE_CHECKING:
    from trainer.losses.distil import DistilLoss
    from trainer.losses.terms import Term


class Paper(FromTeacher[CoarseSettings]):
    """Cross-entropy on the student's likeliest tokens, no baseline, all of it times the token ratio."""

    name = "paper"

    def follow(self, reading: Reading, terms: Sequence["Term"]) -> "DistilLoss":
        from trainer.losses.distil import paper_loss

        return paper_loss(reading.student, reading.rollouts, terms, self.settings.student_top_k, self.num_tokens)
