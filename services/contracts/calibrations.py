"""How well an expert's scores tell right answers from wrong ones, measured against verdicts."""

from uuid import UUID

from services.contracts.base import View


class Calibration(View):
    """One signal of one expert in one domain, against the verdicts of verifiers and people on the same rollouts.

    signal: `score`, or a name under `signals` in its evidence. auc: the chance that a passed answer has the higher
    value than a failed one, ties count half; null while all verdicts are alike. auc_low: its one-sided 90 % lower end,
    tasks as the unit; null with fewer than two tasks of either kind. brier: the mean square of value less verdict;
    brier_of_mean: of a forecast that always says the share that passed. is_calibrated: auc_low lies above .5.
    """

    expert_id: UUID
    domain: str
    signal: str
    num_answers: int
    num_passed: int
    num_tasks: int
    auc: float | None
    auc_low: float | None
    brier: float
    brier_of_mean: float

    @property
    def is_calibrated(self) -> bool:
        """Whether it is known to rank right answers above wrong ones."""
        return self.auc_low is not None and self.auc_low > 0.5
