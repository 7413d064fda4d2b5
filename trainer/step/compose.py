"""The loss of a micro-batch: every objective of the update, on one reading of the student.

The student reads a rollout once and the teacher each context once, however many objectives learn from it. Texts that
are imitated in a rollout's place (solutions, the rest of a correction) are read apart.

Not covered: gradients and micro-batches (`update`), the objectives themselves (`trainer.objectives`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.batch.rows import ImitationRow, Row
from trainer.config import TrainerConfig
from trainer.losses.imitation import sft_loss
from trainer.losses.terms import Term
from trainer.objectives.account import Account
from trainer.objectives.base import Objective, Reading, TermSource
from trainer.step.padding import read_responses
from trainer.step.plan import Plan
from trainer.step.reading import read_student
from trainer.step.state import TrainerState
from trainer.step.teacher import Teacher
from trainer.step.tensors import build_terms, stack_rows, stack_texts


@dataclass(frozen=True, eq=False)
class Composer:
    """Everything an update's losses share."""

    state: TrainerState
    teacher: Teacher
    plan: Plan
    config: TrainerConfig
    teacher_temperature: float

    def losses(self, micro: Sequence[Row], account: Account) -> Iterator[Tensor]:
        """The parts of a micro-batch's loss, one after the other, so that only one graph is held at a time.

        Raises ValueError, naming the row, where the result would mean nothing.
        """
        if read := [row for row in micro if self.plan.reads(row)]:
            yield self._learn_from_rollouts(read, account)
        for objective in self.plan.objectives:
            if pairs := [(row, text) for row in micro for text in objective.texts(row)]:
                yield self._imitate(objective, pairs, account)

    def _learn_from_rollouts(self, rows: Sequence[Row], account: Account) -> Tensor:
        reading = self._read(rows)
        account.add("entropy_sum", float(reading.student.entropy().sum()))
        account.add("num_actions", float(len(reading.student.ids)))
        total = reading.student.log_total.sum() * 0  # so that there is a backward pass whatever follows
        for objective in self.plan.objectives:
            if any(objective.reads(row) for row in rows):
                loss = objective.loss(reading, account)
                account.add(f"loss_{objective.name}", objective.weight * float(loss.detach()))
                total = total + objective.weight * loss
        return total

    def _read(self, rows: Sequence[Row]) -> Reading:
        state = self.state
        rollouts, exists = stack_rows(rows, self.plan.emphasis, state.device)
        terms: list[Term] = []
        sources: list[TermSource] = []
        if self.plan.hears_experts:
            terms, sources = build_terms(
                state, self.teacher, rows, rollouts, exists, self.plan, self.config, self.teacher_temperature
            )
        prompt = torch.tensor(rows[0].prompt_ids, device=state.device)
        hidden = read_responses(state.model, prompt, rollouts.token_ids, exists)
        student = read_student(state.model, hidden, rollouts, self.config.fused)
        running_mean = state.running_mean(rollouts.token_ids.shape[1])
        return Reading(rows, rollouts, student, terms, sources, running_mean, self.teacher.sha256)

    def _imitate(
        self, objective: Objective[Any], pairs: Sequence[tuple[Row, ImitationRow]], account: Account
    ) -> Tensor:
        """The mean negative log-likelihood of texts, by the trust in their sources, with the objective's weight."""
        state, weight = self.state, objective.weight * objective.text_share
        rows, texts = [row for row, _ in pairs], [text for _, text in pairs]
        same = _find_same(rows, texts)  # siblings mostly get the same text: it is read once
        first = [same.index(number) for number in range(max(same) + 1)]
        emphasis = self.plan.emphasis
        stacked, exists = stack_texts([rows[i] for i in first], [texts[i] for i in first], emphasis, state.device)
        trust = torch.tensor([text.weight for text in texts], device=state.device)
        place = torch.tensor(same, device=state.device)
        together = torch.zeros(len(first), device=state.device).index_add(0, place, trust)
        prompt = torch.tensor(rows[0].prompt_ids, device=state.device)
        hidden = read_responses(state.model, prompt, stacked.token_ids, exists)
        student = read_student(state.model, hidden, stacked, self.config.fused)
        loss = sft_loss(student, stacked, together, objective.num_text_tokens)
        parts = trust / together[place].clamp(min=torch.finfo(trust.dtype).tiny)
        sources = [(text.source, text.weight) for text in texts]
        account.record_imitation(weight, rows, sources, loss.deal(place, parts))
        account.add(f"loss_{objective.name}", weight * float(loss.loss.detach()))
        return weight * loss.loss


def _find_same(rows: Sequence[Row], texts: Sequence[ImitationRow]) -> list[int]:
    """For each text a number, from 0 on, that it shares with those that say and count the same."""
    numbers: dict[tuple[object, ...], int] = {}
    keys = [
        (row.group_id, row.late, row.temperature, text.token_ids, text.learned)
        for row, text in zip(rows, texts, strict=True)
    ]
    return [numbers.setdefault(key, len(numbers)) for key in keys]
