"""An evaluation's figures as tables with one column for each temperature."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from uuid import UUID

from services.contracts.evaluations import BestTemperature, EvaluationDetail, TaskResult
from services.store.stats.estimates import Interval, domains, figures, pick, score, temperatures


@dataclass(frozen=True)
class DomainScores:
    """pass@k of a domain at each temperature. best: the temperature chosen; None while the evaluation runs."""

    domain: str
    k: int
    scores: tuple[Interval | None, ...]
    best: BestTemperature | None


@dataclass(frozen=True)
class TaskScores:
    """One task at each temperature; None where nothing is drawn yet."""

    task_id: UUID
    key: str
    family: str
    results: tuple[TaskResult | None, ...]
    num_unjudged: int
    mean_tokens: float


def by_domain(found: EvaluationDetail, results: Sequence[TaskResult]) -> list[DomainScores]:
    """The figures of each domain of these results of the evaluation."""
    best = {(one.domain, one.k): one for one in found.best}
    return [
        DomainScores(
            domain=domain,
            k=k,
            scores=tuple(score(pick(results, domain, at), k) for at in temperatures(results)),
            best=best.get((domain, k)),
        )
        for domain in domains(results)
        for k in figures(results)
    ]


def by_task(results: Sequence[TaskResult]) -> list[TaskScores]:
    """One row a task, in the order of the results."""
    tasks: dict[UUID, dict[float, TaskResult]] = {}
    for one in results:
        tasks.setdefault(one.task_id, {})[one.temperature] = one
    return [
        TaskScores(
            task_id=task_id,
            key=(first := next(iter(drawn.values()))).key,
            family=first.family,
            results=tuple(drawn.get(at) for at in temperatures(results)),
            num_unjudged=sum(one.num_unjudged for one in drawn.values()),
            mean_tokens=fmean(one.mean_tokens for one in drawn.values()),
        )
        for task_id, drawn in tasks.items()
    ]
