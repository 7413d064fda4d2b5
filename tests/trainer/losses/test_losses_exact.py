"""The mathematics: expectations over every rollout that could be sampled, compared with numbers, not with averages."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trainer.losses.tabular import DEFAULT, PROPOSITION_1, Tabular, make_rollouts, one_group, whole_term
from trainer.batch.rows import ROLLED_IN
from trainer.losses.credit import CostKind, Credit, LeaveOneOut, Reach, Scale, leave_one_out, scaled_return
from trainer.losses.distil import DistilLoss, distil_loss, forward_ce_loss
from trainer.losses.student import ScoredStudent
from trainer.losses.terms import DrawnTerm, FullVocabulary, Term, WholeTerm, tempered_logprobs

MakeBaseline = Callable[[Tensor, LeaveOneOut], LeaveOneOut | Tensor]


def no_baseline(states: Tensor, siblings: LeaveOneOut) -> Tensor:
    return torch.zeros(states.shape)


def own_group(states: Tensor, siblings: LeaveOneOut) -> LeaveOneOut:
    return siblings


def singles(tabular: Tabular) -> list[tuple[int, ...]]:
    return [(index,) for index in range(len(tabular.sequences))]


def groups_of(size: int, tabular: Tabular) -> list[tuple[int, ...]]:
    return list(itertools.product(range(len(tabular.sequences)), repeat=size))


def fixed_expert(table: Tensor) -> Callable[[Tensor], list[Term]]:
    return lambda states: [whole_term(table[states])]


class TestExactGradient:
    """Proposition 1: the estimator's expectation is the gradient of the objective."""

    tabular = Tabular.make(vocabulary=3, length=4)
    student = tabular.random_table(seed=11)
    expert = tempered_logprobs(tabular.random_table(seed=12, scale=1.5), 1.0)

    @pytest.fixture(scope="class")
    @classmethod
    def exact(cls) -> Tensor:
        return cls.tabular.finite_differences(cls.student, lambda sequence: cls.expert)

    def test_local_and_future_term_together_are_the_gradient(self, exact: Tensor) -> None:
        estimate = self.tabular.expected_gradient(
            self.student, singles(self.tabular), fixed_expert(self.expert), no_baseline, PROPOSITION_1
        )
        assert (estimate - exact).abs().max() < 1e-8

    def test_they_are_with_any_baseline_that_depends_on_the_state_alone(self, exact: Tensor) -> None:
        values = self.tabular.random_table(seed=13, scale=20.0)[:, 0]
        estimate = self.tabular.expected_gradient(
            self.student,
            singles(self.tabular),
            fixed_expert(self.expert),
            lambda states, siblings: values[states],
            PROPOSITION_1,
        )
        assert (estimate - exact).abs().max() < 1e-8

    def test_the_tokenwise_gradient_is_not(self, exact: Tensor) -> None:
        states, ids, mask = self.tabular.pad(self.tabular.sequences)
        logits = self.student[states].requires_grad_()
        rollouts = make_rollouts(ids, mask, logits)
        terms = [whole_term(self.expert[states])]
        loss = forward_ce_loss(ScoredStudent(logits, rollouts), rollouts, terms, covered_tokens=int(mask.sum()))
        (gradient,) = torch.autograd.grad(loss.loss * mask.sum(), logits)
        weighted = gradient * self.tabular.probabilities(self.student)[:, None, None]
        tokenwise = torch.zeros_like(self.student).index_add(0, states.flatten(), weighted.flatten(0, 1))
        assert (tokenwise - exact).abs().max() > 0.1
        no_later_cost = torch.tensor([len(prefix) == 3 for prefix in self.tabular.prefixes])
        assert (tokenwise - exact)[no_later_cost].abs().max() < 1e-8


class TestFeedbackOnThisVeryRollout:
    """V=2, T=3, the feedback tells whether the first and the last token agree: costs before t depend on y_t."""

    tabular = Tabular.make(vocabulary=2, length=3)
    numbers = np.random.default_rng(3)
    student = torch.tensor(numbers.normal(size=(7, 2)))
    experts = torch.tensor(numbers.normal(size=(2, 7, 2)) * 2).log_softmax(-1)

    def error(self, own_feedback: bool, credit: Credit) -> float:
        def expert(sequence: tuple[int, ...]) -> Tensor:
            return self.experts[int(own_feedback and sequence[0] == sequence[2])]

        def terms(states: Tensor) -> list[Term]:
            experts = torch.stack([expert(sequence) for sequence in self.tabular.sequences])
            return [whole_term(experts[torch.arange(len(states))[:, None], states])]

        estimate = self.tabular.expected_gradient(self.student, singles(self.tabular), terms, no_baseline, credit)
        return float((estimate - self.tabular.finite_differences(self.student, expert)).abs().max())

    def test_later_costs_alone_are_off_by_thirteen_hundredths(self) -> None:
        assert self.error(True, PROPOSITION_1) == pytest.approx(0.13, abs=0.005)

    def test_the_whole_rollouts_cost_is_exact(self) -> None:
        assert self.error(True, replace(PROPOSITION_1, reach=Reach.WHOLE_ROLLOUT)) < 1e-8

    def test_both_are_exact_when_the_feedback_is_fixed_given_the_prompt(self) -> None:
        assert self.error(False, PROPOSITION_1) < 1e-8
        assert self.error(False, replace(PROPOSITION_1, reach=Reach.WHOLE_ROLLOUT)) < 1e-8


class TestLeaveOneOutBaseline:
    """Rollouts of different lengths, groups of two: V=3 with an end token, T=4, all 961 pairs."""

    tabular = Tabular.make(vocabulary=3, length=4, eos=2)
    student = tabular.random_table(seed=21)
    expert = tempered_logprobs(tabular.random_table(seed=22, scale=1.5), 1.0)

    def gradient(self, credit: Credit, baseline: MakeBaseline) -> Tensor:
        return self.tabular.expected_gradient(
            self.student, groups_of(2, self.tabular), fixed_expert(self.expert), baseline, credit
        )

    def future(self, credit: Credit) -> Tensor:
        """The part of the expected gradient that the future term makes."""
        tiny = self.gradient(replace(credit, weight=1e-12), no_baseline)
        return self.gradient(credit, no_baseline) - tiny

    @pytest.mark.parametrize("scale", list(Scale))
    @pytest.mark.parametrize("reach", list(Reach))
    @pytest.mark.parametrize("cost", list(CostKind))
    def test_it_changes_no_expectation(self, scale: Scale, reach: Reach, cost: CostKind) -> None:
        credit = replace(PROPOSITION_1, scale=scale, reach=reach, cost=cost, max_tokens=5)
        change = self.gradient(credit, own_group) - self.gradient(credit, no_baseline)
        assert change.abs().max() < 1e-12
        assert self.future(credit).abs().max() > 1e-2

    def test_dividing_by_the_realised_length_after_the_subtraction_is_biased(self) -> None:
        unscaled = replace(DEFAULT, scale=Scale.NONE)

        def divided_late(states: Tensor, siblings: LeaveOneOut) -> Tensor:
            _, _, mask = self.tabular.pad([self.tabular.sequences[i] for g in groups_of(2, self.tabular) for i in g])
            cost = (self.expert.exp() * (self.expert - self.student.log_softmax(-1))).sum(-1)[states]
            sums = scaled_return(cost, mask, unscaled)
            later = (mask.sum(1, keepdim=True) - mask.cumsum(1)).clamp(min=1)
            every_row = torch.ones(len(mask), dtype=torch.bool)
            return leave_one_out(sums, every_row, siblings) / later

        bias = self.gradient(DEFAULT, divided_late) - self.gradient(DEFAULT, no_baseline)
        assert bias.abs().max() > 0.1 * self.future(DEFAULT).abs().max()

    def test_it_makes_the_future_term_quieter(self) -> None:
        states, ids, mask = self.tabular.pad([self.tabular.sequences[i] for g in groups_of(2, self.tabular) for i in g])
        logits, rows = self.student[states], torch.arange(len(states))
        siblings = LeaveOneOut(rows // 2, torch.zeros_like(rows), torch.zeros(4))
        chance = self.tabular.probabilities(self.student)[torch.tensor(groups_of(2, self.tabular))].prod(1)
        second_moment = []
        for baseline in (torch.zeros(4), siblings):
            rollouts = make_rollouts(ids, mask, logits)
            result = distil_loss(
                ScoredStudent(logits, rollouts),
                rollouts,
                [whole_term(self.expert[states])],
                baseline,
                DEFAULT,
                covered_tokens=int(mask.sum()),
            )
            second_moment.append((result.excess.square().sum(1) * chance.repeat_interleave(2)).sum())
        assert second_moment[1] < 0.9 * second_moment[0]


class TestSolutionsFromSiblings:
    """Groups of four, the teacher of each half shown what the other half did: V=2 with an end token, T=3, all 256."""

    tabular = Tabular.make(vocabulary=2, length=3, eos=1)
    student = tabular.random_table(seed=31)
    experts = torch.stack([tabular.random_table(seed=32, scale=2.0), tabular.random_table(seed=33)]).log_softmax(-1)

    def terms(self, states: Tensor) -> list[Term]:
        shown = []
        for group in groups_of(4, self.tabular):
            started = [self.tabular.sequences[index][0] for index in group]
            first, second = 0 in started[:2], 0 in started[2:]  # a "solution" is there if any of a half starts with 0
            shown += [int(second), int(second), int(first), int(first)]
        return [whole_term(self.experts[torch.tensor(shown)[:, None], states])]

    def gradient(self, baseline: MakeBaseline) -> Tensor:
        return self.tabular.expected_gradient(self.student, groups_of(4, self.tabular), self.terms, baseline, DEFAULT)

    @staticmethod
    def halves(states: Tensor, siblings: LeaveOneOut) -> LeaveOneOut:
        return replace(siblings, half=(torch.arange(len(states)) % 4) // 2)

    def test_a_baseline_within_the_own_half_changes_no_expectation(self) -> None:
        assert (self.gradient(self.halves) - self.gradient(no_baseline)).abs().max() < 1e-12

    def test_a_baseline_over_the_whole_group_does(self) -> None:
        assert (self.gradient(own_group) - self.gradient(no_baseline)).abs().max() > 5e-3


class TestRolloutsOfTheTeacher:
    """Groups of two rollouts of the student and one of its teacher, who has a third of the mixture: V=2 with an end
    token, T=3, all 64 groups of four rollouts each."""

    tabular = Tabular.make(vocabulary=2, length=3, eos=1)
    student = tabular.random_table(seed=51)
    expert = tempered_logprobs(tabular.random_table(seed=52, scale=1.5), 1.0)
    groups = torch.tensor(groups_of(3, tabular))
    drawn_by_teacher = torch.arange(groups.numel()) % 3 == 2

    def run(self, baseline: MakeBaseline, credit: Credit) -> tuple[Tensor, DistilLoss]:
        """The expected gradient of a group's summed loss, and the loss over all groups."""
        own, theirs = self.tabular.probabilities(self.student), self.tabular.probabilities(self.expert)
        chance = own[self.groups[:, 0]] * own[self.groups[:, 1]] * theirs[self.groups[:, 2]]
        states, ids, mask = self.tabular.pad([self.tabular.sequences[i] for i in self.groups.flatten()])
        logits = self.student[states].requires_grad_()
        rollouts = replace(make_rollouts(ids, mask, logits), credited=~self.drawn_by_teacher)
        rows = torch.arange(len(states))
        siblings = LeaveOneOut(rows // 3, torch.where(self.drawn_by_teacher, ROLLED_IN, 0), torch.full((3,), 9.0))
        result = distil_loss(
            ScoredStudent(logits, rollouts),
            rollouts,
            [whole_term(self.expert[states])],
            baseline(states, siblings),
            credit,
            covered_tokens=int(mask.sum()),
        )
        (gradient,) = torch.autograd.grad(result.loss * mask.sum(), logits)
        weighted = gradient * chance.repeat_interleave(3)[:, None, None]
        return torch.zeros_like(self.student).index_add(0, states.flatten(), weighted.flatten(0, 1)), result

    def visits(self, table: Tensor) -> Tensor:
        """The chance that a policy comes to each prefix."""
        logprobs = table.log_softmax(-1)
        index = {prefix: row for row, prefix in enumerate(self.tabular.prefixes)}
        ways = [[(index[prefix[:step]], token) for step, token in enumerate(prefix)] for prefix in index]
        return torch.tensor([float(sum(logprobs[at] for at in way)) for way in ways], dtype=torch.float64).exp()

    def test_the_local_gradient_is_that_of_the_states_which_the_mixture_visits(self) -> None:
        local, _ = self.run(no_baseline, replace(PROPOSITION_1, weight=1e-12))
        visited = 2 * self.visits(self.student) + self.visits(self.expert)
        expected = visited[:, None] * (self.student.softmax(-1) - self.expert.exp())
        assert (local - expected).abs().max() < 1e-10

    def test_the_future_term_is_the_students_alone_and_its_baseline_changes_no_expectation(self) -> None:
        both, _ = self.run(no_baseline, DEFAULT)
        local, _ = self.run(no_baseline, replace(DEFAULT, weight=1e-12))
        alone = self.tabular.expected_gradient(
            self.student, singles(self.tabular), fixed_expert(self.expert), no_baseline, DEFAULT
        ) - self.tabular.expected_gradient(
            self.student,
            singles(self.tabular),
            fixed_expert(self.expert),
            no_baseline,
            replace(DEFAULT, weight=1e-12),
        )
        assert (both - local - 2 * alone).abs().max() < 1e-10
        less, result = self.run(own_group, DEFAULT)
        assert (less - both).abs().max() < 1e-12
        first, second = result.baseline[0::3], result.cost_to_go[1::3]
        _, _, mask = self.tabular.pad([self.tabular.sequences[i] for i in self.groups[:, 0]])
        assert torch.equal(first, torch.where(mask, second, 0))
        assert not result.excess[2::3].any()


class TestPrefixesDrawnAtRandom:
    """Two of four prefixes are drawn, each with probability 1/2; all six draws are enumerated."""

    tabular = Tabular.make(vocabulary=2, length=4)
    student = tabular.random_table(seed=41)
    expert = tempered_logprobs(tabular.random_table(seed=42, scale=1.5), 1.0)

    def gradient(self, charge_by_probability: bool) -> tuple[Tensor, Tensor]:
        """The expected gradient of the partial and of the future term over all rollouts and draws."""
        states, ids, mask = self.tabular.pad(self.tabular.sequences)
        chance = self.tabular.probabilities(self.student)[:, None, None]
        local, both = torch.zeros_like(self.student), torch.zeros_like(self.student)
        for draw in itertools.combinations(range(4), 2):
            drawn = torch.zeros_like(mask)
            drawn[:, list(draw)] = True
            probability = torch.full(mask.shape, 0.5 if charge_by_probability else 1.0)
            for weight, total in ((1e-12, local), (1.0, both)):
                logits = self.student[states].requires_grad_()
                term = DrawnTerm(
                    "asked",
                    FullVocabulary(self.expert[states]),
                    torch.ones(len(states)),
                    drawn,
                    probability,
                    share=1.0,
                    num_tokens=int(drawn.sum()),
                )
                rollouts = make_rollouts(ids, mask, logits)
                result = distil_loss(
                    ScoredStudent(logits, rollouts),
                    rollouts,
                    [term],
                    torch.zeros(4),
                    replace(PROPOSITION_1, weight=weight),
                    covered_tokens=int(mask.sum()),
                )
                (gradient,) = torch.autograd.grad(result.loss * mask.sum(), logits)
                total.index_add_(0, states.flatten(), (gradient * chance).flatten(0, 1) / 6)
        return local, both - local

    def whole(self, weight: float) -> Tensor:
        return self.tabular.expected_gradient(
            self.student,
            singles(self.tabular),
            fixed_expert(self.expert),
            no_baseline,
            replace(PROPOSITION_1, weight=weight),
        )

    def test_a_drawn_cost_over_its_probability_is_unbiased_in_both_terms(self) -> None:
        local, future = self.gradient(charge_by_probability=True)
        assert (local - self.whole(1e-12)).abs().max() < 1e-10
        assert (future - (self.whole(1.0) - self.whole(1e-12))).abs().max() < 1e-10

    def test_a_drawn_cost_as_it_is_would_charge_half(self) -> None:
        _, future = self.gradient(charge_by_probability=False)
        assert (2 * future - (self.whole(1.0) - self.whole(1e-12))).abs().max() < 1e-10


def logit_gradient(student: Tensor, expert: Tensor) -> Tensor:
    """The gradient of forward CE in the logits of one-step rollouts. Shapes: [B, V]."""
    logits = student.log()[:, None, :].requires_grad_()
    mask = torch.ones((len(student), 1), dtype=torch.bool)
    rollouts = make_rollouts(torch.zeros_like(mask, dtype=torch.long), mask, logits)
    terms = [whole_term(expert.log()[:, None, :])]
    loss = forward_ce_loss(ScoredStudent(logits, rollouts), rollouts, terms, covered_tokens=len(student))
    (gradient,) = torch.autograd.grad(loss.loss * len(student), logits)
    return gradient[:, 0]


def reward_change(student: Tensor, expert: Tensor, reward: Tensor) -> tuple[Tensor, Tensor]:
    """First-order change of the expected reward for a natural-gradient and for a plain logit step. Shapes: [B]."""
    gradient = logit_gradient(student, expert)
    advantage = reward - (student * reward).sum(-1, keepdim=True)
    return -(gradient * advantage).sum(-1), -(gradient * student * advantage).sum(-1)


class TestBandit:
    def test_a_forward_ce_step_raises_the_reward_of_a_better_expert(self) -> None:
        student, expert, reward = torch.tensor(
            [[[0.05, 0.35, 0.60]], [[0.70, 0.01, 0.29]], [[0.8, 1.0, 0.0]]], dtype=torch.float64
        )
        assert [(policy * reward).sum().item() for policy in (student, expert)] == pytest.approx([0.390, 0.570])
        natural, plain = reward_change(student, expert, reward)
        assert natural.item() == pytest.approx(0.1800, abs=1e-10)
        assert natural.item() == pytest.approx(((expert - student) * reward).sum().item(), abs=1e-12)
        assert plain.item() == pytest.approx(0.0133, abs=5e-5)

    def test_a_plain_logit_step_can_still_lose_reward(self) -> None:
        student, expert, reward = torch.tensor(
            [[[0.02, 0.49, 0.49]], [[0.50, 0.02, 0.48]], [[0.9, 0.8, 0.0]]], dtype=torch.float64
        )
        natural, plain = reward_change(student, expert, reward)
        assert natural.item() == pytest.approx(0.0560, abs=5e-5)
        assert plain.item() == pytest.approx(-0.0831, abs=5e-5)

    def test_over_random_instances_natural_steps_never_lose_and_plain_ones_do_in_one_of_twelve(self) -> None:
        numbers = np.random.default_rng(0)
        kept = []
        for _ in range(20_000):
            student, expert = (numbers.dirichlet(np.full(3, 0.7)).clip(1e-3) for _ in range(2))
            student, expert, reward = student / student.sum(), expert / expert.sum(), numbers.random(3)
            if (expert - student) @ reward >= 0.02:
                kept.append((student, expert, reward))
        natural, plain = reward_change(*torch.tensor(np.array(kept)).unbind(1))
        assert len(kept) == 8_807
        assert (natural < 0).sum() == 0
        assert (plain < 0).double().mean().item() == pytest.approx(0.085, abs=5e-4)


class TestTwoStepDecision:
    """First A or B. In A action 0 is right; in B action f is, a fair bit that only the expert sees.

    The student's table: logits at the start, in A, in B. The expert does not care at the start and gives .95 to the
    right action after it.
    """

    states = torch.tensor([[0, 1], [0, 2], [0, 2]])  # the rollouts A, B with f=0, B with f=1
    ids = torch.tensor([[0, 0], [1, 0], [1, 0]])
    expert = torch.tensor([[[0.5, 0.5], [0.95, 0.05]], [[0.5, 0.5], [0.95, 0.05]], [[0.5, 0.5], [0.05, 0.95]]]).log()
    stalled = torch.tensor([[0.0, 0.0], [np.log(0.95), np.log(0.05)], [0.0, 0.0]])

    def gradient(self, table: Tensor, weight: float | None, cost: CostKind = CostKind.CROSS_ENTROPY) -> Tensor:
        """The expected gradient in the table; the tokenwise one if weight is None."""
        logits = table[self.states].detach().requires_grad_()
        mask = torch.ones((3, 2), dtype=torch.bool)
        rollouts, terms = make_rollouts(self.ids, mask, logits), [whole_term(self.expert)]
        student = ScoredStudent(logits, rollouts)
        result: DistilLoss
        if weight is None:
            result = forward_ce_loss(student, rollouts, terms, covered_tokens=6)
        else:
            credit = replace(PROPOSITION_1, weight=weight, cost=cost)
            result = distil_loss(student, rollouts, terms, torch.zeros(2), credit, covered_tokens=6)
        (gradient,) = torch.autograd.grad(result.loss * 6, logits)
        start = table[0].softmax(-1)
        chance = torch.stack([start[0], start[1] / 2, start[1] / 2])[:, None, None]
        return torch.zeros_like(table).index_add(0, self.states.flatten(), (gradient * chance).flatten(0, 1))

    def descend(self, weight: float, local_at_start: bool = True) -> tuple[float, float]:
        """The chance of A and the reward, once the expected gradient is followed to its end."""
        table = self.stalled.clone()
        for _ in range(400):
            step = self.gradient(table, weight)
            if not local_at_start:
                step[0] -= self.gradient(table, None)[0]
            table -= (2.0 if local_at_start else 20.0) / max(weight, 1.0) * step
        chance = table.softmax(-1)
        return float(chance[0, 0]), float(chance[0, 0] * chance[1, 0] + chance[0, 1] * 0.5)

    def test_the_tokenwise_gradient_stalls_at_half_of_the_reward_it_could_have(self) -> None:
        assert self.gradient(self.stalled, None).abs().max() < 1e-6
        chance = self.stalled.softmax(-1)
        assert float(chance[0, 0] * chance[1, 0] + chance[0, 1] * 0.5) == pytest.approx(0.725)

    @pytest.mark.parametrize("cost", list(CostKind))
    def test_the_future_term_pushes_towards_the_branch_the_student_can_follow(self, cost: CostKind) -> None:
        gradient = self.gradient(self.stalled, 1.0, cost)
        assert gradient[0].tolist() == pytest.approx([-0.1237, 0.1237], abs=5e-5)
        assert gradient[1:].abs().max() < 1e-6

    @pytest.mark.parametrize(
        ("weight", "a", "reward"), [(1.0, 0.617, 0.778), (3.0, 0.766, 0.845), (10.0, 0.909, 0.909)]
    )
    def test_following_it_raises_the_reward(self, weight: float, a: float, reward: float) -> None:
        assert self.descend(weight) == pytest.approx((a, reward), abs=1e-3)

    def test_without_the_local_term_at_the_start_it_finds_the_best_student(self) -> None:
        assert self.descend(1.0, local_at_start=False)[1] == pytest.approx(0.95, abs=2e-3)


class TestStoppingEarly:
    """Thirty steps; token 0 (chance .1) stops, three others go on; student and expert agree everywhere."""

    def stop_gradient(self, cost: CostKind) -> float:
        """The expected gradient on the stop logit at the first step. Enumerates when the rollout stops, or never."""
        agreed = torch.tensor([0.1, 0.3, 0.3, 0.3], dtype=torch.float64).log()
        logits = agreed.expand(31, 30, 4).clone().requires_grad_()
        stop, step = torch.arange(31)[:, None], torch.arange(30)
        rollouts = make_rollouts((step != stop).long(), step <= stop, logits)
        chance = torch.where(stop[:, 0] < 30, 0.1 * 0.9 ** stop[:, 0], 0.9**30).double()
        count = int(rollouts.action_mask.sum())
        result = distil_loss(
            ScoredStudent(logits, rollouts),
            rollouts,
            [whole_term(logits.detach())],
            torch.zeros(30),
            replace(PROPOSITION_1, cost=cost),
            covered_tokens=count,
        )
        (gradient,) = torch.autograd.grad(result.loss * count, logits)
        return float((gradient[:, 0, 0] * chance).sum())

    def test_ce_to_go_rewards_stopping_though_there_is_nothing_to_learn(self) -> None:
        assert self.stop_gradient(CostKind.CROSS_ENTROPY) == pytest.approx(-1.13, abs=0.005)

    def test_kl_to_go_does_not(self) -> None:
        assert abs(self.stop_gradient(CostKind.KL)) < 1e-12


class TestRolloutsOfAnOlderPolicy:
    """Sampled from another table; two steps, where the token ratio with a baseline is the whole correction."""

    tabular = Tabular.make(vocabulary=2, length=2)
    student = tabular.random_table(seed=51, scale=0.2)
    sampler = tabular.random_table(seed=52, scale=0.2)
    expert = tempered_logprobs(tabular.random_table(seed=53, scale=2.0), 1.0)

    def first_step_gradient(self, credited_logprobs: Tensor) -> Tensor:
        states, ids, mask = self.tabular.pad(self.tabular.sequences)
        logits = self.student[states].requires_grad_()
        rollouts = replace(make_rollouts(ids, mask, logits), sampler_logprobs=credited_logprobs)
        terms, student = [whole_term(self.expert[states])], ScoredStudent(logits, rollouts)
        result = distil_loss(student, rollouts, terms, torch.zeros(2), PROPOSITION_1, covered_tokens=8)
        (gradient,) = torch.autograd.grad(result.loss * 8, logits)
        return (gradient[:, 0] * self.tabular.probabilities(self.sampler)[:, None]).sum(0)

    def test_the_ratio_puts_the_future_term_back_on_the_students_own_choice(self) -> None:
        states, ids, _ = self.tabular.pad(self.tabular.sequences)
        logprobs = self.sampler.log_softmax(-1)[states].gather(-1, ids[..., None])[..., 0]
        estimate = self.first_step_gradient(logprobs)
        start, costs = self.student[0].softmax(-1), -(self.expert.exp() * self.student.log_softmax(-1)).sum(-1)[1:]
        exact = start - self.expert[0].exp() + start * (costs - (start * costs).sum())
        assert (estimate - exact).abs().max() < 1e-12

    def test_without_the_ratio_it_would_not_be(self) -> None:
        states, ids, _ = self.tabular.pad(self.tabular.sequences)
        logprobs = self.student.log_softmax(-1)[states].gather(-1, ids[..., None])[..., 0]
        right = self.sampler.log_softmax(-1)[states].gather(-1, ids[..., None])[..., 0]
        assert (self.first_step_gradient(logprobs) - self.first_step_gradient(right)).abs().max() > 1e-3


def test_an_experts_mixture_has_the_gradient_of_its_terms() -> None:
    tabular = Tabular.make(vocabulary=3, length=2)
    states, ids, mask = tabular.pad(tabular.sequences)
    one, two = (tempered_logprobs(tabular.random_table(seed), 1.0)[states] for seed in (61, 62))
    mixture = (0.25 * one.exp() + 0.75 * two.exp()).log()

    def gradient(terms: Sequence[Term]) -> Tensor:
        logits = tabular.random_table(seed=63)[states].requires_grad_()
        rollouts = make_rollouts(ids, mask, logits)
        credit = replace(DEFAULT, cost=CostKind.CROSS_ENTROPY)
        student = ScoredStudent(logits, rollouts)
        loss = distil_loss(student, rollouts, terms, one_group(9, 2), credit, covered_tokens=18)
        (result,) = torch.autograd.grad(loss.loss, logits)
        return result

    apart = [whole_term(one, "one", weight=1.0), WholeTerm("two", FullVocabulary(two), torch.full((9,), 3.0))]
    assert (gradient([whole_term(mixture)]) - gradient(apart)).abs().max() < 1e-12
