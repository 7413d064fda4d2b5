"""The plan of an update before any model runs: its objectives, the rows that take part, and the divisors of sums.

Counted from the rows alone, so that every rank has the same. Pure.

Not covered: the objectives' own counts (`trainer.objectives`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from trainer.batch.rows import Row
from trainer.config import TrainerConfig
from trainer.objectives.base import Objective
from trainer.objectives.registry import OBJECTIVES

SPANS = "conditioned on spans"


@dataclass(frozen=True)
class Plan:
    """objectives: those of the update, each with its weight in the loss and its counts. emphasis: of each lesson's
    question. partial: tokens covered over the update, by name of the terms that cover some tokens only."""

    objectives: tuple[Objective[Any], ...]
    emphasis: dict[UUID, float]
    partial: dict[str, int]

    def uses(self, row: Row) -> bool:
        """Whether any objective learns from the row."""
        return row.lesson_id in self.emphasis and any(
            objective.reads(row) or objective.texts(row) for objective in self.objectives
        )

    def reads(self, row: Row) -> bool:
        """Whether any objective learns from the rollout's own tokens."""
        return any(objective.reads(row) for objective in self.objectives)

    @property
    def hears_experts(self) -> bool:
        """Whether any objective needs the experts' distributions."""
        return any(objective.hears_experts for objective in self.objectives)

    @property
    def shares_baseline(self) -> bool:
        """Whether siblings must be read together."""
        return any(objective.shares_baseline for objective in self.objectives)


def make_plan(rows: Sequence[Row], config: TrainerConfig) -> Plan:
    """The plan of an update."""
    emphasis = _emphasise(rows, config)
    rows = [row for row in rows if row.lesson_id in emphasis]
    objectives = (OBJECTIVES[name](config, weight, rows) for name, weight in config.objectives.items())
    return Plan(tuple(objectives), emphasis, _count_partial(rows))


def _emphasise(rows: Sequence[Row], config: TrainerConfig) -> dict[UUID, float]:
    """√(p(1-p)) of each lesson's question, p the share of its scored rollouts that succeeded. Lessons are left out
    where none was scored, since a pass rate is never made up, and where all agree. A late lesson comes without its
    siblings and has 1."""
    if config.question_weights == "none":
        return {row.lesson_id: 1.0 for row in rows}
    successes: dict[UUID, list[bool]] = {}
    for row in rows:
        if row.score is not None and not row.late:
            successes.setdefault(row.group_id, []).append(row.solved)
    rates = {group: sum(own) / len(own) for group, own in successes.items()}
    weights = {group: (rate * (1 - rate)) ** 0.5 for group, rate in rates.items() if 0 < rate < 1}
    found = {row.lesson_id: 1.0 if row.late else weights.get(row.group_id) for row in rows}
    return {lesson: value for lesson, value in found.items() if value is not None}


def _count_partial(rows: Sequence[Row]) -> dict[str, int]:
    """Tokens by term, of the terms that cover some tokens only."""
    counts: dict[str, int] = {}
    for row in rows:
        for samples in row.samples:
            if not samples.whole:
                name = f"samples:{samples.expert}"
                counts[name] = counts.get(name, 0) + len(samples.tokens)
        for label in row.labels:
            counts[f"label:{label.expert}"] = counts.get(f"label:{label.expert}", 0) + 1
        for context in row.contexts:
            if context.spans:
                counts[SPANS] = counts.get(SPANS, 0) + len(row.spoken_about(context))
    return counts
