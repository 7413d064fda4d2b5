"""Evaluations: a policy version measured on a split, k samples a task, judged by the verifiers."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from services.contracts.base import Contract, Int, JsonObject, Seed, StatusChanges, View
from services.contracts.tasks import Split


class EvaluationStatus(StrEnum):
    """`running` until every drawn answer is judged."""

    RUNNING = "running"
    DONE = "done"
    ABANDONED = "abandoned"


EVALUATION_CHANGES: StatusChanges[EvaluationStatus] = {
    EvaluationStatus.RUNNING: frozenset({EvaluationStatus.DONE, EvaluationStatus.ABANDONED}),
}


class EvaluationCreate(Contract):
    """Measure a policy version (the serving one by default) on a split other than train.

    num_tasks: how many tasks a domain, all by default, spread over its families; num_samples: answers a task.
    """

    split: Literal[Split.VALIDATION, Split.HELDOUT] = Split.HELDOUT
    policy_version: str | None = None
    num_tasks: Annotated[Int, Field(ge=1)] | None = None
    num_samples: Annotated[Int, Field(ge=1, le=256)] = 8
    seed: Seed = 0


class GapProbeCreate(Contract):
    """Measure the student-teacher gap: train tasks drawn plainly, and again with their reference shown first.

    num_tasks: a domain; num_samples: answers a task and half.
    """

    num_tasks: Annotated[Int, Field(ge=1, le=1000)] = 8
    num_samples: Annotated[Int, Field(ge=1, le=256)] = 4
    seed: Seed = 0


class TaskResult(Contract):
    """One task of an evaluation: n judged answers, of which c passed; `unjudged` had no verdict and count nowhere."""

    task_id: UUID
    key: str
    domain: str
    family: str
    num_judged: int
    num_passed: int
    num_unjudged: int
    mean_tokens: float


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
    """An evaluation with its results by task; `teacher_results` are those of a gap probe's other half."""

    results: list[TaskResult]
    teacher_results: list[TaskResult] = []
