"""What each objective makes of a batch, before any model runs: who takes part, what sums are divided by, and what a
score is worth within its group.

Counted from the rows alone, so that every rank has the same. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import torch
from transformers import PreTrainedTokenizerBase

from trainer.batch.build import solution_target
from trainer.batch.rows import ImitationRow, Row, Vocabulary
from trainer.config import ObjectiveName, TrainerConfig
from trainer.losses.reward import grpo_advantages, maxrl_advantages

FROM_ALL_EXPERTS: frozenset[ObjectiveName] = frozenset({"distil", "forward_ce"})
FROM_TEACHER: frozenset[ObjectiveName] = frozenset({"paper", "sdpo", "reverse_kl"})  # need its whole distribution
FROM_SCORES: frozenset[ObjectiveName] = frozenset({"grpo", "maxrl"})
SPANS = "conditioned on spans"


@dataclass(frozen=True)
class Plan:
    """weights: the objectives and their weights in the loss. usable: lessons that any of them can learn from.

    What sums over the update are divided by: covered, shown, judged, won (action tokens of rollouts with an expert on
    all of it, with our own teacher on all of it, with an advantage, that were solved; or as many times the longest
    answer), partial by term, imitated and solutions (tokens times trust). covered_tokens, shown_tokens: the tokens
    themselves. advantages: by objective and lesson; a lesson without a score, without a known sampler or without
    siblings has none. emphasis: of each lesson's question. targets: the solution `sft` learns in a rollout's place.
    """

    weights: dict[ObjectiveName, float]
    usable: frozenset[UUID]
    covered: int
    covered_tokens: int
    shown: int
    shown_tokens: int
    judged: int
    won: int
    partial: dict[str, int]
    imitated: float
    solutions: float
    advantages: dict[ObjectiveName, dict[UUID, float]]
    emphasis: dict[UUID, float]
    targets: dict[UUID, ImitationRow]

    def chosen(self, names: frozenset[ObjectiveName]) -> dict[ObjectiveName, float]:
        """Those of the update's objectives that are among `names`, with their weights."""
        return {name: weight for name, weight in self.weights.items() if name in names}


def make_plan(
    rows: Sequence[Row],
    config: TrainerConfig,
    max_tokens: int,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
) -> Plan:
    """The plan of an update. max_tokens: the longest answer the sampler allows."""
    weights = config.objectives
    emphasis = _emphasise(rows, config)
    rows = [row for row in rows if emphasis[row.lesson_id] is not None]
    advantages = {name: _judge(rows, name, config) for name in weights if name in FROM_SCORES}
    targets = _choose_targets(rows, tokenizer, vocabulary) if "sft" in weights else {}
    learns_from_experts = bool(FROM_ALL_EXPERTS & weights.keys())
    usable = {lesson for own in advantages.values() for lesson in own} | targets.keys()
    usable |= {row.lesson_id for row in rows if row.taught and learns_from_experts}
    usable |= {row.lesson_id for row in rows if row.shown and FROM_TEACHER & weights.keys()}
    usable |= {row.lesson_id for row in rows if wins(row) and "rft" in weights}
    covered, shown = [row for row in rows if row.covered], [row for row in rows if row.shown]
    judged = [row for row in rows if any(row.lesson_id in own for own in advantages.values())]

    def count(some: Sequence[Row]) -> int:
        """A rollout from elsewhere may be longer than ours may get; it counts with what it has."""
        if config.normaliser == "tokens":
            return sum(row.num_actions for row in some)
        return sum(max(max_tokens, row.num_actions) for row in some)

    return Plan(
        weights=weights,
        usable=frozenset(usable),
        covered=count(covered),
        covered_tokens=sum(row.num_actions for row in covered),
        shown=count(shown),
        shown_tokens=sum(row.num_actions for row in shown),
        judged=count(judged),
        won=count([row for row in rows if wins(row)]),
        partial=_count_partial(rows),
        imitated=sum(i.weight * i.num_learned for row in rows for i in row.imitations),
        solutions=sum(target.weight * target.num_learned for target in targets.values()),
        advantages=advantages,
        emphasis={lesson: value for lesson, value in emphasis.items() if value is not None},
        targets=targets,
    )


def wins(row: Row) -> bool:
    """Whether `rft` learns the rollout itself: a success of the policy's own, not a text from elsewhere. A late lesson
    does not repeat what its rollout's first one gave."""
    return row.solved and row.sampler_logprobs is not None and not row.late


def _emphasise(rows: Sequence[Row], config: TrainerConfig) -> dict[UUID, float | None]:
    """√(p(1-p)) of each lesson's question, p the share of its scored rollouts that succeeded. None, and so left out,
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
    return {row.lesson_id: 1.0 if row.late else weights.get(row.group_id) for row in rows}


def _judge(rows: Sequence[Row], name: ObjectiveName, config: TrainerConfig) -> dict[UUID, float]:
    judged = [row for row in rows if row.score is not None and row.credited]
    groups = sorted({row.siblings for row in judged})
    group = torch.tensor([groups.index(row.siblings) for row in judged], dtype=torch.long)
    scores = torch.tensor([row.score for row in judged], dtype=torch.float64)
    sizes = torch.bincount(group)[group]
    values = maxrl_advantages(scores, group) if name == "maxrl" else grpo_advantages(scores, group, config.grpo_std)
    return {
        row.lesson_id: float(value) for row, value, size in zip(judged, values, sizes, strict=True) if int(size) > 1
    }


def _choose_targets(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary
) -> dict[UUID, ImitationRow]:
    targets = {row.lesson_id: solution_target(row, tokenizer, vocabulary) for row in rows}
    return {lesson: target for lesson, target in targets.items() if target is not None}


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
