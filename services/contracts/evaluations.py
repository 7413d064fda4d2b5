"""Evaluations: a policy version measured on a split at several temperatures, judged by the verifiers."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, Field

from services.contracts.base import Contract, Float, Int, JsonObject, Seed, StatusChanges, View
from services.contracts.tasks import Split


class EvaluationStatus(StrEnum):
    """`running` until every drawn answer is judged."""

    RUNNING = "running"
    DONE = "done"
    ABANDONED = "abandoned"


EVALUATION_CHANGES: StatusChanges[EvaluationStatus] = {
    EvaluationStatus.RUNNING: frozenset({EvaluationStatus.DONE, EvaluationStatus.ABANDONED}),
}


TEMPERATURES = (0.0, 0.25, 0.5, 1.0)
"""Of an evaluation that names none; 0 is greedy, the likeliest token each time."""
NUM_VALIDATION_TASKS = 15


def _order(temperatures: list[float]) -> list[float]:
    if len(set(temperatures)) < len(temperatures):
        raise ValueError("a temperature is named twice")
    return sorted(temperatures)


Temperatures = Annotated[
    list[Annotated[Float, Field(ge=0, le=10)]], Field(min_length=1, max_length=8), AfterValidator(_order)
]
"""Distinct temperatures, the lowest first."""


Domains = Annotated[list[str], Field(min_length=1, max_length=100), AfterValidator(lambda domains: sorted({*domains}))]
"""In one order and each once, so that equal choices are equal settings."""


class EvaluationCreate(Contract):
    """Measure a policy version (the serving one by default) on a split other than train.

    domains: whose tasks are drawn, all by default. num_tasks: how many tasks a domain, all by default, spread over its
    families. num_samples: answers a task at each temperature; at 0 one, since every answer is the same.
    num_validation_tasks: how many tasks a domain of the split validation are drawn besides, to choose each domain's
    best temperature on; a domain with fewer gives all it has; 0 draws none, and no temperature is chosen. An evaluation
    of the split validation chooses none: it would be chosen on the tasks that it is read on.
    """

    split: Literal[Split.VALIDATION, Split.HELDOUT] = Split.HELDOUT
    policy_version: str | None = None
    domains: Domains | None = None
    num_tasks: Annotated[Int, Field(ge=1)] | None = None
    num_samples: Annotated[Int, Field(ge=1, le=256)] = 8
    temperatures: Temperatures = [*TEMPERATURES]
    num_validation_tasks: Annotated[Int, Field(ge=0, le=10_000)] = NUM_VALIDATION_TASKS
    seed: Seed = 0


class TaskResult(Contract):
    """One task of an evaluation at one temperature: its judged answers, and those of them that passed.

    num_unjudged: answers without a verdict; they count nowhere.
    """

    task_id: UUID
    key: str
    domain: str
    family: str
    temperature: float
    num_judged: int
    num_passed: int
    num_unjudged: int
    mean_tokens: float


class BestTemperature(Contract):
    """The temperature at which a version passes most validation tasks of a domain; ties go to the lower one.

    k: of which pass@k it is the best. temperature: None where none could be chosen, for the reason given.
    num_tasks: the validation tasks it was chosen on.
    """

    domain: str
    k: int
    temperature: float | None
    num_tasks: int
    reason: str | None


class Evaluation(View):
    """A stored evaluation."""

    id: UUID
    lineage_id: UUID
    policy_version: str
    split: Split
    status: EvaluationStatus
    settings: JsonObject
    num_rollouts: int
    num_settled: int
    created_at: datetime
    finished_at: datetime | None


class EvaluationDetail(Evaluation):
    """An evaluation with its results by task and temperature.

    validation_results: those of the validation tasks drawn beside held-out ones. best: the temperatures chosen, once
    the evaluation is done.
    """

    results: list[TaskResult]
    validation_results: list[TaskResult] = []
    best: list[BestTemperature] = []
