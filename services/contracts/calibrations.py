"""How well an expert's scores tell right answers from wrong ones, measured against verdicts."""

from uuid import UUID

from services.contracts.base import View


class Calibration(View):
    """One signal of one expert in one domain, against the verdicts of verifiers and people on the same rollouts.

    signal: `score`, or a name under `signals` in its evidence. auc: the chance that of two answers to one task the one
    that passed has the higher value, ties count half; null where no task has a passed and a failed answer.
    num_mixed_tasks: the tasks that have. auc_low: its one-sided lower end, tasks as the unit; null with fewer than two
    such tasks, and before the first look at 16 answers. From then on all figures are those of the last look, and the
    next one comes when the number of answers has doubled; the errors of all looks together are 10 %. brier: the mean
    square of value less verdict; brier_of_mean: of a forecast that always says the share that passed. is_calibrated:
    auc_low lies above .5.
    """

    expert_id: UUID
    domain: str
    signal: str
    num_answers: int
    num_passed: int
    num_tasks: int
    num_mixed_tasks: int
    auc: float | None
    auc_low: float | None
    brier: float
    brier_of_mean: float

    @property
    def is_calibrated(self) -> bool:
        """Whether it is known to rank right answers above wrong ones to the same task."""
        return self.auc_low is not None and self.auc_low > 0.5
