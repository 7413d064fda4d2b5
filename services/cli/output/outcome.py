"""What the demo did and measured; its summary, page and document are written from it."""

from dataclasses import dataclass, field

from services.contracts.corrections import CorrectionOutcome
from services.contracts.evaluations import EvaluationDetail
from services.contracts.measurements import Measurement
from services.contracts.updates import UpdateDetail


@dataclass
class Trained:
    """The result of the training phase."""

    first_update: int
    num_updates: int = 0
    training_seconds: float = 0.0
    correction: CorrectionOutcome | None = None
    correction_update: int | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DemoOutcome:
    """The measurements of the demo, from which the report is written."""

    before: EvaluationDetail
    after: EvaluationDetail
    measurements: list[Measurement]
    trained: Trained
    updates: list[UpdateDetail]
    notes: list[str]
