"""What the demo did and measured; its summary, page and document are written from it."""

from dataclasses import dataclass, field
from uuid import UUID

from services.contracts.corrections import CorrectionOutcome
from services.contracts.evaluations import EvaluationDetail
from services.contracts.updates import UpdateDetail
from services.web.presenters.worth import ExpertWorth


@dataclass
class Trained:
    """The result of the training phase. used_by: the first update that trained on each correction."""

    first_update: int
    num_updates: int = 0
    training_seconds: float = 0.0
    corrections: list[CorrectionOutcome] = field(default_factory=list)
    used_by: dict[UUID, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DemoOutcome:
    """The measurements of the demo, from which the report is written. worth: every expert's part and measurement."""

    before: EvaluationDetail
    after: EvaluationDetail
    trained: Trained
    updates: list[UpdateDetail]
    worth: list[ExpertWorth]
    notes: list[str]
