"""The loss of a micro-batch: every objective of the update, on one reading of the student, each accounted for.

The student reads a rollout once and the teacher each context once, however many objectives look at it. Only imitation
of other texts (solutions, corrections) is read apart.

Not covered: gradients and micro-batches (`step`), what an objective is (`losses`), who takes part in it (`plan`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from services.runtime.settings import Settings
from trainer.batch.rows import ImitationRow, Row, Source
from trainer.config import ObjectiveName, TrainerConfig
from trainer.losses.credit import CostKind, Credit, LeaveOneOut, LocalRatio, Reach, Scale
from trainer.losses.distil import (
    DistilLoss,
    distil_loss,
    forward_ce_loss,
    paper_loss,
    reverse_kl_loss,
    sdpo_loss,
)
from trainer.losses.imitation import sft_loss
from trainer.losses.reward import policy_gradient_loss
from trainer.losses.student import Rollouts, Student
from trainer.losses.terms import FullVocabulary, HiddenStates, Term, WholeTerm
from trainer.step.account import (
    Account,
    account_for_experts,
    account_for_imitation,
    account_for_reading,
    account_for_scores,
)
from trainer.step.padding import read_responses
from trainer.step.plan import FROM_ALL_EXPERTS, FROM_SCORES, FROM_TEACHER, Plan, wins
from trainer.step.reading import read_student
from trainer.step.state import TrainerState
from trainer.step.teacher import Teacher
from trainer.step.tensors import TermSource, build_terms, stack_rows, stack_targets


@dataclass(frozen=True, eq=False)
class Composer:
    """Everything an update's losses share."""

    state: TrainerState
    teacher: Teacher
    plan: Plan
    config: TrainerConfig
    settings: Settings

    def losses(self, micro: list[Row], account: Account) -> Iterator[Tensor]:
        """The parts of a micro-batch's loss, one after the other, so that only one graph is held at a time.

        Raises ValueError, naming the row, where the result would mean nothing.
        """
        plan = self.plan
        from_experts = plan.chosen(FROM_ALL_EXPERTS)
        if read := [row for row in micro if self._reads(row)]:
            yield self._learn_from_rollouts(read, account)
        targets = [(row, plan.targets[row.lesson_id]) for row in micro if row.lesson_id in plan.targets]
        if targets:
            yield self._imitate("sft", targets, plan.weights["sft"], plan.solutions, account)
        for name, weight in from_experts.items():
            pairs = [(row, imitation) for row in micro for imitation in row.imitations]
            if pairs:
                yield self._imitate(name, pairs, weight * self.config.imitation_share, plan.imitated, account)

    def _reads(self, row: Row) -> bool:
        """Whether an objective looks at the rollout itself."""
        plan = self.plan
        return (
            bool(plan.chosen(FROM_ALL_EXPERTS) and (row.covered or row.contexts or row.samples or row.labels))
            or bool(plan.chosen(FROM_TEACHER) and row.shown)
            or any(row.lesson_id in advantages for advantages in plan.advantages.values())
            or ("rft" in plan.weights and wins(row))
        )

    def _learn_from_rollouts(self, micro: list[Row], account: Account) -> Tensor:
        plan, state = self.plan, self.state
        rollouts, exists = stack_rows(micro, plan, state.device)
        terms: list[Term] = []
        sources: list[TermSource] = []
        if plan.chosen(FROM_ALL_EXPERTS | FROM_TEACHER):
            temperature = self.settings.teacher_temperature
            terms, sources = build_terms(state, self.teacher, micro, rollouts, exists, plan, self.config, temperature)
        prompt = torch.tensor(micro[0].prompt_ids, device=state.device)
        hidden = read_responses(state.model, prompt, rollouts.token_ids, exists)
        student = read_student(state.model, hidden, rollouts, self.config.fused)
        account_for_reading(account, student)
        total = student.log_total.sum() * 0  # so that there is a backward pass whatever follows
        for name, weight in plan.chosen(FROM_ALL_EXPERTS | FROM_TEACHER).items():
            heard = [
                index
                for index, term in enumerate(terms)
                if name in FROM_ALL_EXPERTS
                or (isinstance(term, WholeTerm) and isinstance(term.expert, FullVocabulary | HiddenStates))
            ]
            loss = self._match(name, student, rollouts, [terms[index] for index in heard], micro)
            told = [sources[index] for index in heard]
            credits = name == "distil" and self.config.lam > 0
            account_for_experts(account, name, weight, micro, told, loss, self.teacher, self._per_token(name), credits)
            total = total + weight * loss.loss
        for name, weight in plan.chosen(FROM_SCORES).items():
            own = [plan.advantages[name].get(row.lesson_id) for row in micro]
            advantages = torch.tensor([0.0 if value is None else value for value in own], device=state.device)
            judged = torch.tensor([value is not None for value in own], device=state.device)
            reward = policy_gradient_loss(student, rollouts, advantages, judged, plan.judged)
            account_for_scores(account, name, weight, micro, reward, own)
            total = total + weight * reward.loss
        if "rft" in plan.weights:
            won = torch.tensor([float(wins(row)) for row in micro], device=state.device)
            imitated = sft_loss(student, rollouts, won, plan.won)
            told_by = [_own_success(row) if wins(row) else None for row in micro]
            account_for_imitation(account, "rft", plan.weights["rft"], micro, told_by, imitated)
            total = total + plan.weights["rft"] * imitated.loss
        return total

    def _per_token(self, name: ObjectiveName) -> float:
        """What turns a sum over the update's normaliser into one over the tokens it covers."""
        plan = self.plan
        if name in FROM_TEACHER:
            return plan.shown / max(plan.shown_tokens, 1)
        return plan.covered / max(plan.covered_tokens, 1)

    def _match(
        self, name: ObjectiveName, student: Student, rollouts: Rollouts, terms: Sequence[Term], micro: list[Row]
    ) -> DistilLoss:
        config, plan = self.config, self.plan
        if name == "paper":
            return paper_loss(student, rollouts, terms, config.student_top_k, plan.shown)
        if name == "sdpo":
            return sdpo_loss(student, rollouts, terms, config.sdpo_alpha, config.student_top_k, plan.shown)
        if name == "reverse_kl":
            return reverse_kl_loss(student, rollouts, terms, plan.shown)
        ratio = LocalRatio(config.local_ratio)
        if name == "forward_ce" or config.lam == 0:
            return forward_ce_loss(student, rollouts, terms, plan.covered, ratio)
        baseline = self._choose_baseline(micro, rollouts.token_ids.shape[1])
        return distil_loss(student, rollouts, terms, baseline, self._make_credit(), plan.covered, ratio)

    def _make_credit(self) -> Credit:
        config = self.config
        return Credit(
            weight=config.lam,
            clip=config.clip,
            cost=CostKind(config.cost),
            scale=Scale(config.scale),
            reach=Reach(config.reach),
            gamma=config.gamma,
            max_tokens=self.settings.max_new_tokens,
        )

    def _choose_baseline(self, micro: list[Row], length: int) -> LeaveOneOut | Tensor:
        state = self.state
        running = torch.zeros(length)
        known = min(length, len(state.position_mean))
        running[:known] = state.position_mean[:known]
        running = running.to(state.device)
        if self.config.baseline == "running_mean":
            return running
        if self.config.baseline == "none":
            return torch.zeros_like(running)
        names = sorted({row.siblings for row in micro})
        return LeaveOneOut(
            group=torch.tensor([names.index(row.siblings) for row in micro], device=state.device),
            half=torch.tensor([row.half for row in micro], device=state.device),
            fallback=running,
        )

    def _imitate(
        self,
        name: ObjectiveName,
        pairs: Sequence[tuple[Row, ImitationRow]],
        weight: float,
        num_tokens: float,
        account: Account,
    ) -> Tensor:
        """`weight` times the mean negative log-likelihood of given texts, by the trust in who gave them."""
        state = self.state
        rows, targets = [row for row, _ in pairs], [target for _, target in pairs]
        same = _find_same(rows, targets)  # siblings are mostly told the same text: it is read once
        first = [same.index(number) for number in range(max(same) + 1)]
        texts, exists = stack_targets([rows[i] for i in first], [targets[i] for i in first], self.plan, state.device)
        trust = torch.tensor([target.weight for target in targets], device=state.device)
        place = torch.tensor(same, device=state.device)
        together = torch.zeros(len(first), device=state.device).index_add(0, place, trust)
        prompt = torch.tensor(rows[0].prompt_ids, device=state.device)
        hidden = read_responses(state.model, prompt, texts.token_ids, exists)
        student = read_student(state.model, hidden, texts, self.config.fused)
        loss = sft_loss(student, texts, together, num_tokens)
        told_by = [(target.source, target.weight) for target in targets]
        parts = trust / together[place].clamp(min=torch.finfo(trust.dtype).tiny)
        account_for_imitation(account, name, weight, rows, told_by, loss.deal(place, parts))
        return weight * loss.loss


def _find_same(rows: Sequence[Row], targets: Sequence[ImitationRow]) -> list[int]:
    """For each text a number, from 0 on, that it has in common with those that say and count the same."""
    numbers: dict[tuple[object, ...], int] = {}
    keys = [
        (row.group_id, row.late, row.temperature, t.token_ids, t.learned) for row, t in zip(rows, targets, strict=True)
    ]
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def _own_success(row: Row) -> tuple[Source, float]:
    return replace(row.verdicts, names=("the policy's own success", *row.verdicts.names)), 1.0
