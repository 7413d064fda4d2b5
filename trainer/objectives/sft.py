"""`sft`: the log-likelihood of the very solutions the teacher would be shown; tells learning from plain cloning."""

from collections.abc import Sequence

from trainer.batch.rows import ImitationRow, Row
from trainer.objectives.base import Objective, OwnSettings


class Sft(Objective[OwnSettings]):
    """Reads no rollout: the solution takes its place."""

    name = "sft"

    def texts(self, row: Row) -> Sequence[ImitationRow]:
        context = next((context for context in row.contexts if context.solution_ids), None)
        if context is None:
            return ()
        ids = context.solution_ids
        return (ImitationRow("solution", context.weight, ids, (True,) * len(ids), context.source),)
