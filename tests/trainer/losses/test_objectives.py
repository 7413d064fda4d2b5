"""The objectives DistIL is compared with: their numbers, their gradients, and what they refuse."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.trainer.losses.tabular import DEFAULT, make_rollouts, whole_term
from trainer.losses.credit import LeaveOneOut, LocalRatio
from trainer.losses.distil import (
    DistilLoss,
    distil_loss,
    forward_ce_loss,
    paper_loss,
    reverse_kl_loss,
    sdpo_loss,
)
from trainer.losses.divergences import coarsen, cross_entropy, jensen_shannon, kl
from trainer.losses.imitation import sft_loss
from trainer.losses.reward import grpo_advantages, maxrl_advantages, policy_gradient_loss
from trainer.losses.student import Rollouts, ScoredStudent
from trainer.losses.terms import Label, PartialTerm, Term, TopK, WholeTerm

Divergence = Callable[[Tensor, Tensor], Tensor]  # of scores and the expert's logprobs [C, V]


def coarse_jsd(alpha: float, top_k: int) -> Divergence:
    return lambda scores, expert: jensen_shannon(alpha)(*coarsen(scores, expert, top_k))


def coarse_ce(top_k: int) -> Divergence:
    return lambda scores, expert: cross_entropy(*coarsen(scores, expert, top_k))


def reverse_kl(scores: Tensor, expert: Tensor) -> Tensor:
    return kl(scores.log_softmax(-1), expert)


JSD = coarse_jsd(alpha=0.5, top_k=3)


def gradient_of(divergence: Divergence, student: Tensor, expert: Tensor) -> Tensor:
    """In the logits, [B, V]."""
    logits = student.log().requires_grad_()
    (gradient,) = torch.autograd.grad(divergence(logits, expert.log()).sum(), logits)
    return gradient


def reward_change(divergence: Divergence, student: Tensor, expert: Tensor, reward: Tensor) -> tuple[Tensor, Tensor]:
    """First-order change of the expected reward for a natural-gradient and for a plain logit step. Shapes: [B]."""
    gradient = gradient_of(divergence, student, expert)
    advantage = reward - (student * reward).sum(-1, keepdim=True)
    return -(gradient * advantage).sum(-1), -(gradient * student * advantage).sum(-1)


class TestBandit:
    """The expert is better; steps along the other divergences lose reward all the same."""

    instance = torch.tensor([[[0.05, 0.35, 0.60]], [[0.70, 0.01, 0.29]], [[0.8, 1.0, 0.0]]], dtype=torch.float64)

    @pytest.mark.parametrize(
        ("divergence", "natural", "plain"), [(reverse_kl, -0.5348, -0.2610), (JSD, -0.0154, -0.0129)]
    )
    def test_a_step_loses_reward(self, divergence: Divergence, natural: float, plain: float) -> None:
        changes = reward_change(divergence, *self.instance)
        assert [change.item() for change in changes] == pytest.approx([natural, plain], abs=5e-5)

    @pytest.mark.parametrize(("divergence", "natural", "plain"), [(reverse_kl, 0.091, 0.139), (JSD, 0.045, 0.110)])
    def test_over_random_instances_so_many_steps_lose(
        self, divergence: Divergence, natural: float, plain: float
    ) -> None:
        numbers = np.random.default_rng(0)
        kept = []
        for _ in range(20_000):
            student, expert = (numbers.dirichlet(np.full(3, 0.7)).clip(1e-3) for _ in range(2))
            student, expert, reward = student / student.sum(), expert / expert.sum(), numbers.random(3)
            if (expert - student) @ reward >= 0.02:
                kept.append((student, expert, reward))
        changes = reward_change(divergence, *torch.tensor(np.array(kept)).unbind(1))
        assert len(kept) == 8_807
        lost = [(change < 0).double().mean().item() for change in changes]
        assert lost == pytest.approx([natural, plain], abs=5e-4)


class TestSupports:
    """What each support of the expert's distribution makes of the gradient: the expert wants a token that the student
    gives one percent."""

    expert = torch.tensor([[0.60, 0.30, 0.05, 0.03, 0.01, 0.01]], dtype=torch.float64)
    student = torch.tensor([[0.01, 0.02, 0.40, 0.30, 0.20, 0.07]], dtype=torch.float64)
    exact = student - expert

    def cosine(self, gradient: Tensor) -> float:
        return float(torch.cosine_similarity(gradient, self.exact, dim=-1))

    def test_the_students_own_top_k_and_a_tail_point_elsewhere(self) -> None:
        gradient = gradient_of(coarse_ce(top_k=2), self.student, self.expert)
        assert self.cosine(gradient) == pytest.approx(0.26, abs=0.005)
        push = gradient[0] / self.student[0]  # the expert's favourite and junk are pulled alike: both are in the tail
        assert push[0].item() == pytest.approx(push[4].item())

    def test_the_experts_top_k_and_a_tail_point_the_right_way(self) -> None:
        logits = self.student.log()[:, None].requires_grad_()
        logprobs, ids = self.expert.log()[:, None].topk(2)
        rollouts = make_rollouts(torch.zeros((1, 1), dtype=torch.long), torch.ones((1, 1), dtype=torch.bool), logits)
        term = WholeTerm("remote", TopK(ids, logprobs, torch.tensor([[0.1]]).log()), torch.ones(1))
        loss = forward_ce_loss(ScoredStudent(logits, rollouts), rollouts, [term], covered_tokens=1)
        (gradient,) = torch.autograd.grad(loss.loss, logits)
        assert self.cosine(gradient[0]) == pytest.approx(1.0, abs=0.005)

    def test_a_top_k_renormalised_on_both_sides_moves_no_mass_into_the_set(self) -> None:
        logits = self.student.log().requires_grad_()
        wanted = self.expert[:, :2] / self.expert[:, :2].sum()
        (gradient,) = torch.autograd.grad(-(wanted * logits[:, :2].log_softmax(-1)).sum(), logits)
        assert self.cosine(gradient) == pytest.approx(0.27, abs=0.005)
        assert gradient[0, :2].sum().abs() < 1e-12

    @pytest.mark.parametrize("divergence", [coarse_ce(6), coarse_jsd(0.0, 6), coarse_jsd(0.0, 99)])
    def test_all_of_the_vocabulary_is_exact(self, divergence: Divergence) -> None:
        assert gradient_of(divergence, self.student, self.expert)[0].tolist() == pytest.approx(self.exact[0].tolist())


distributions = st.lists(st.floats(0.01, 1.0), min_size=6, max_size=6).map(
    lambda weights: torch.tensor([weights], dtype=torch.float64) / sum(weights)
)


class TestDivergences:
    @given(student=distributions, expert=distributions, alpha=st.floats(0, 1), top_k=st.integers(1, 7))
    def test_they_are_zero_for_an_expert_one_agrees_with_and_positive_for_others(
        self, student: Tensor, expert: Tensor, alpha: float, top_k: int
    ) -> None:
        for divergence in (reverse_kl, coarse_jsd(alpha, top_k)):
            assert divergence(student.log(), expert.log()).item() >= -1e-12
            assert abs(divergence(student.log(), student.log()).item()) < 1e-12
            assert gradient_of(divergence, student, student).abs().max() < 1e-12

    @given(student=distributions, expert=distributions, alpha=st.floats(0, 1), top_k=st.integers(1, 7))
    def test_a_coarser_view_never_costs_more(self, student: Tensor, expert: Tensor, alpha: float, top_k: int) -> None:
        coarse, fine = (coarse_jsd(alpha, k)(student.log(), expert.log()).item() for k in (top_k, 6))
        assert coarse <= fine + 1e-12

    @given(student=distributions, expert=distributions)
    def test_the_ends_of_alpha_are_the_two_kls(self, student: Tensor, expert: Tensor) -> None:
        forward = (expert * (expert / student).log()).sum().item()
        backward = (student * (student / expert).log()).sum().item()
        assert coarse_jsd(0.0, 6)(student.log(), expert.log()).item() == pytest.approx(forward)
        assert coarse_jsd(1.0, 6)(student.log(), expert.log()).item() == pytest.approx(backward)
        assert reverse_kl(student.log(), expert.log()).item() == pytest.approx(backward)

    def test_the_middle_is_half_of_each_side_against_the_mixture(self) -> None:
        student, expert = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.1, 0.8, 0.1]])
        mixture = (0.25 * expert + 0.75 * student).log()
        expected = 0.25 * (expert * (expert.log() - mixture)).sum() + 0.75 * (student * (student.log() - mixture)).sum()
        assert coarse_jsd(0.25, 3)(student.log(), expert.log()).item() == pytest.approx(expected.item())

    @given(student=distributions, expert=distributions)
    def test_forward_ce_bounds_the_likelihood_of_doing_what_the_expert_does(
        self, student: Tensor, expert: Tensor
    ) -> None:
        """-H(expert, student) <= log sum_a expert(a) student(a): teacher-weighted maximum likelihood."""
        cost = coarse_ce(6)(student.log(), expert.log()).item()
        assert -cost <= math.log((student * expert).sum().item()) + 1e-12

    def test_a_token_that_one_side_rules_out_is_no_nan(self) -> None:
        sure, other = torch.tensor([[0.0, -torch.inf]]), torch.tensor([[0.25, 0.75]]).log()
        assert coarse_jsd(0.0, 2)(other, sure).item() == pytest.approx(math.log(4))
        assert coarse_jsd(0.5, 1)(other, sure).isfinite().all()
        assert reverse_kl(other, sure).item() == math.inf

    def test_settings_that_mean_nothing_are_refused(self) -> None:
        for alpha in (-0.1, 1.1):
            with pytest.raises(ValueError, match="alpha must lie in"):
                jensen_shannon(alpha)
        with pytest.raises(ValueError, match="top_k must be at least 1"):
            coarsen(torch.zeros(1, 2), torch.zeros(1, 2), 0)


# Two rollouts of the same prompt over three tokens; the second ends after its first token.

MASK = torch.tensor([[True, True, True], [True, False, False]])
IDS = torch.tensor([[0, 1, 2], [2, 0, 0]])
NUMBERS = torch.Generator().manual_seed(5)
LOGITS = torch.randn((2, 3, 3), generator=NUMBERS, dtype=torch.float64)
EXPERT = torch.randn((2, 3, 3), generator=NUMBERS, dtype=torch.float64).log_softmax(-1)
ROLLOUTS = make_rollouts(IDS, MASK, LOGITS)
OFF_POLICY = replace(
    ROLLOUTS, sampler_logprobs=ROLLOUTS.sampler_logprobs - torch.tensor([[0.5, 3.0, 1.0], [0.25, 1.0, 1.0]]).log()
)
Objective = Callable[[ScoredStudent, Rollouts, list[Term]], DistilLoss]

OBJECTIVES: dict[str, tuple[Objective, Divergence]] = {
    "sdpo": (lambda s, r, t: sdpo_loss(s, r, t, 0.5, 2, covered_tokens=8), coarse_jsd(0.5, 2)),
    "reverse_kl": (lambda s, r, t: reverse_kl_loss(s, r, t, covered_tokens=8), reverse_kl),
}


class TestTokenwiseObjectives:
    @pytest.mark.parametrize("name", list(OBJECTIVES))
    def test_they_average_their_divergence_over_the_action_tokens(self, name: str) -> None:
        objective, divergence = OBJECTIVES[name]
        result = objective(ScoredStudent(LOGITS, ROLLOUTS), ROLLOUTS, [whole_term(EXPERT)])
        costs = divergence(LOGITS.flatten(0, 1), EXPERT.flatten(0, 1)).view(2, 3) * MASK
        assert torch.allclose(result.cost, costs)
        assert result.loss.item() == pytest.approx(costs.sum().item() / 8)
        assert (result.future.item(), result.cost_to_go.abs().sum().item()) == (0, 0)

    @pytest.mark.parametrize("name", list(OBJECTIVES))
    def test_their_gradient_is_that_of_finite_differences(self, name: str) -> None:
        objective, _ = OBJECTIVES[name]
        nobody = replace(ROLLOUTS, credited=torch.zeros(2, dtype=torch.bool))  # a ratio is no part of the gradient

        def value(logits: Tensor) -> Tensor:
            return objective(ScoredStudent(logits, nobody), nobody, [whole_term(EXPERT)]).loss

        assert torch.autograd.gradcheck(value, LOGITS.clone().requires_grad_())

    def test_several_experts_are_weighed(self) -> None:
        other = EXPERT.flip(-1)
        one, two = (
            reverse_kl_loss(ScoredStudent(LOGITS, ROLLOUTS), ROLLOUTS, [whole_term(expert)], 4).loss
            for expert in (EXPERT, other)
        )
        both = [whole_term(EXPERT, "one", weight=3.0), whole_term(other, "two", weight=1.0)]
        result = reverse_kl_loss(ScoredStudent(LOGITS, ROLLOUTS), ROLLOUTS, both, 4)
        assert result.loss.item() == pytest.approx((0.75 * one + 0.25 * two).item())

    def test_sdpo_weighs_each_token_by_its_ratio_cut_at_two_and_reverse_kl_does_not(self) -> None:
        terms: list[Term] = [whole_term(EXPERT)]
        costs = coarse_jsd(0.5, 2)(LOGITS.flatten(0, 1), EXPERT.flatten(0, 1)).view(2, 3)
        ratio = torch.tensor([[0.5, 2.0, 1.0], [0.25, 0.0, 0.0]])
        sdpo = sdpo_loss(ScoredStudent(LOGITS, OFF_POLICY), OFF_POLICY, terms, 0.5, 2, covered_tokens=4)
        assert sdpo.loss.item() == pytest.approx((ratio * costs).sum().item() / 4)
        on_policy = reverse_kl_loss(ScoredStudent(LOGITS, ROLLOUTS), ROLLOUTS, terms, 4)
        off_policy = reverse_kl_loss(ScoredStudent(LOGITS, OFF_POLICY), OFF_POLICY, terms, 4)
        assert on_policy.loss.item() == off_policy.loss.item()

    def test_a_ratio_is_a_number_and_no_gradient_flows_through_it(self) -> None:
        token = torch.tensor([[0.5, 2.0, 1.0], [0.25, 0.0, 0.0]])
        prefix = torch.tensor([[1.0, 0.5, 1.5], [1.0, 0.0, 0.0]])
        objectives: list[tuple[Objective, Divergence, Tensor]] = [
            (lambda s, r, t: sdpo_loss(s, r, t, 0.5, 2, 4), coarse_jsd(0.5, 2), token),
            (lambda s, r, t: forward_ce_loss(s, r, t, 4, LocalRatio.PREFIX), coarse_ce(3), prefix),
        ]
        for objective, divergence, ratio in objectives:
            logits = LOGITS.clone().requires_grad_()
            loss = objective(ScoredStudent(logits, OFF_POLICY), OFF_POLICY, [whole_term(EXPERT)]).loss
            (gradient,) = torch.autograd.grad(loss, logits)
            costs = divergence(logits.flatten(0, 1), EXPERT.flatten(0, 1)).view(2, 3)
            (expected,) = torch.autograd.grad((ratio * costs).sum() / 4, logits)
            assert torch.allclose(gradient, expected)

    @pytest.mark.parametrize("name", list(OBJECTIVES))
    def test_they_tell_how_much_likelier_the_expert_finds_the_sampled_tokens(self, name: str) -> None:
        some = WholeTerm("teacher", whole_term(EXPERT).expert, torch.tensor([2.0, 0.0]))
        [part] = OBJECTIVES[name][0](ScoredStudent(LOGITS, ROLLOUTS), ROLLOUTS, [some]).parts
        more = (EXPERT - LOGITS.log_softmax(-1)).gather(-1, IDS[..., None])[0].sum().item()
        assert (part.gap.item(), part.num_compared.item()) == pytest.approx((more, 3))

    def test_a_rollout_whose_sampler_is_unknown_has_no_ratio(self) -> None:
        nobody = replace(
            OFF_POLICY,
            credited=torch.zeros(2, dtype=torch.bool),
            sampler_logprobs=torch.full((2, 3), math.nan),
        )
        plain = sdpo_loss(ScoredStudent(LOGITS, ROLLOUTS), ROLLOUTS, [whole_term(EXPERT)], 0.5, 2, 4)
        unknown = sdpo_loss(ScoredStudent(LOGITS, nobody), nobody, [whole_term(EXPERT)], 0.5, 2, 4)
        assert unknown.loss.item() == pytest.approx(plain.loss.item())

    def test_a_ratio_that_is_no_number_is_refused_by_row(self) -> None:
        bad = replace(ROLLOUTS, sampler_logprobs=torch.tensor([[-1.0] * 3, [math.nan] * 3]))
        with pytest.raises(ValueError, match="row 1, step 0: credited, but"):
            sdpo_loss(ScoredStudent(LOGITS, bad), bad, [whole_term(EXPERT)], 0.5, 2, 4)

    @pytest.mark.parametrize(
        "term",
        [
            WholeTerm(
                "remote", TopK(IDS[..., None], torch.zeros(2, 3, 1), torch.full((2, 3), -math.inf)), torch.ones(2)
            ),
            PartialTerm("person", Label(IDS), MASK.float(), share=1.0, num_tokens=4),
        ],
    )
    def test_an_expert_without_a_whole_distribution_is_refused(self, term: Term) -> None:
        student, problem = ScoredStudent(LOGITS, ROLLOUTS), "this objective needs the expert's full distribution"
        with pytest.raises(ValueError, match=problem):
            sdpo_loss(student, ROLLOUTS, [term], 0.5, 2, 4)
        with pytest.raises(ValueError, match=problem):
            reverse_kl_loss(student, ROLLOUTS, [term], 4)
        with pytest.raises(ValueError, match=problem):
            paper_loss(student, ROLLOUTS, [term], 2, 4)

    def test_a_divergence_that_is_infinite_is_refused_by_row(self) -> None:
        excludes = EXPERT.clone()
        excludes[0, 2] = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64).log()
        with pytest.raises(ValueError, match="row 0, step 2: teacher: the divergence"):
            reverse_kl_loss(ScoredStudent(LOGITS, ROLLOUTS), ROLLOUTS, [whole_term(excludes)], 4)

    @pytest.mark.parametrize("name", OBJECTIVES)
    def test_an_expert_over_another_vocabulary_is_refused(self, name: str) -> None:
        wide = torch.zeros((2, 3, 4), dtype=torch.float64).log_softmax(-1)
        with pytest.raises(ValueError, match=r"teacher: logprobs has shape \(2, 3, 4\), not \(2, 3, 3\)"):
            OBJECTIVES[name][0](ScoredStudent(LOGITS, ROLLOUTS), ROLLOUTS, [whole_term(wide)])

    @pytest.mark.parametrize("name", OBJECTIVES)
    def test_an_expert_that_is_no_distribution_is_refused_by_row(self, name: str) -> None:
        heavy, unknown = EXPERT.clone(), EXPERT.clone()
        heavy[1, 0] += math.log(2)
        unknown[0, 1, 2] = math.nan
        objective, _ = OBJECTIVES[name]
        student = ScoredStudent(LOGITS, ROLLOUTS)
        with pytest.raises(ValueError, match="row 1, step 0: teacher: the expert's probabilities do not sum to 1"):
            objective(student, ROLLOUTS, [whole_term(heavy)])
        with pytest.raises(ValueError, match="row 0, step 1: teacher: the expert's logprobs are NaN"):
            objective(student, ROLLOUTS, [whole_term(unknown)])

    def test_rows_without_an_expert_count_nowhere(self) -> None:
        some = WholeTerm("teacher", whole_term(EXPERT).expert, torch.tensor([0.0, 2.0]))
        result = reverse_kl_loss(ScoredStudent(LOGITS, ROLLOUTS), ROLLOUTS, [some], 1)
        assert result.loss.item() == pytest.approx(reverse_kl(LOGITS[1, :1], EXPERT[1, :1]).item())
        assert result.covered.tolist() == [False, True]


class TestPaper:
    """What the authors released: the student's top-K and a tail, mean-to-go, no baseline, all times the ratio."""

    def test_it_is_worked_out_by_hand(self) -> None:
        logits = LOGITS.clone().requires_grad_()
        result = paper_loss(ScoredStudent(logits, OFF_POLICY), OFF_POLICY, [whole_term(EXPERT)], 1, covered_tokens=4)
        costs = coarse_ce(1)(LOGITS.flatten(0, 1), EXPERT.flatten(0, 1)).view(2, 3)
        to_go = torch.tensor([[(costs[0, 1] + costs[0, 2]) / 2, costs[0, 2], 0.0], [0.0, 0.0, 0.0]])
        ratio = torch.tensor([[0.5, 2.0, 1.0], [0.25, 0.0, 0.0]])
        logprobs = LOGITS.log_softmax(-1).gather(-1, IDS[..., None])[..., 0]
        assert torch.allclose(result.cost_to_go, to_go.double())
        assert result.baseline.abs().max() == 0
        assert result.local.item() == pytest.approx((ratio * costs).sum().item() / 4)
        assert result.future.item() == pytest.approx((ratio * to_go * logprobs).sum().item() / 4)

    def test_a_rollout_whose_sampler_is_unknown_trains_the_local_term_alone(self) -> None:
        nobody = replace(ROLLOUTS, credited=torch.zeros(2, dtype=torch.bool))
        result = paper_loss(ScoredStudent(LOGITS, nobody), nobody, [whole_term(EXPERT)], 1, 4)
        assert result.future.item() == 0
        assert result.local.item() > 0


class TestStateRatio:
    """The local cost at a step may be weighed by how likely the tokens before it are now; its own does not matter."""

    def test_it_is_the_product_of_the_ratios_before_cut_at_two(self) -> None:
        terms, none, prefix = [whole_term(EXPERT)], LocalRatio.NONE, LocalRatio.PREFIX
        student = ScoredStudent(LOGITS, OFF_POLICY)
        plain, weighed = (forward_ce_loss(student, OFF_POLICY, terms, 4, ratio) for ratio in (none, prefix))
        costs = -(EXPERT.exp() * LOGITS.log_softmax(-1)).sum(-1) * MASK
        assert plain.loss.item() == pytest.approx(costs.sum().item() / 4)
        ratio = torch.tensor([[1.0, 0.5, 1.5], [1.0, 0.0, 0.0]])  # 0.5 x 3; the second rollout has nothing before
        assert weighed.loss.item() == pytest.approx((ratio * costs).sum().item() / 4)
        further = replace(OFF_POLICY, sampler_logprobs=ROLLOUTS.sampler_logprobs - math.log(3))
        cut = forward_ce_loss(ScoredStudent(LOGITS, further), further, terms, 4, prefix)
        assert cut.loss.item() == pytest.approx((torch.tensor([[1, 2, 2], [1, 0, 0]]) * costs).sum().item() / 4)

    def test_a_tool_turn_is_not_part_of_it(self) -> None:
        tool = replace(OFF_POLICY, action_mask=torch.tensor([[True, False, True], [True, False, False]]))
        result = forward_ce_loss(ScoredStudent(LOGITS, tool), tool, [whole_term(EXPERT)], 3, LocalRatio.PREFIX)
        costs = -(EXPERT.exp() * LOGITS.log_softmax(-1)).sum(-1)
        assert result.loss.item() == pytest.approx((costs[0, 0] + 0.5 * costs[0, 2] + costs[1, 0]).item() / 3)


class TestQuestionWeights:
    """What a rollout gives is multiplied by its question's emphasis, in every objective and every part of it."""

    def test_it_multiplies_a_rows_part_of_every_loss(self) -> None:
        emphasis = torch.tensor([0.5, 0.25])
        weighed = replace(OFF_POLICY, emphasis=emphasis)
        only = [replace(OFF_POLICY, emphasis=torch.eye(2)[row]) for row in range(2)]
        siblings = LeaveOneOut(torch.zeros(2), torch.zeros(2), torch.zeros(3))
        terms: list[Term] = [whole_term(EXPERT), PartialTerm("person", Label(IDS), MASK.float(), 0.5, 4)]
        whole: list[Term] = [whole_term(EXPERT)]
        advantages, judged = torch.tensor([1.0, -2.0]), torch.ones(2, dtype=torch.bool)
        losses: list[Callable[[Rollouts], Tensor]] = [
            lambda r: distil_loss(ScoredStudent(LOGITS, r), r, terms, siblings, DEFAULT, 4).loss,
            lambda r: forward_ce_loss(ScoredStudent(LOGITS, r), r, terms, 4).loss,
            lambda r: paper_loss(ScoredStudent(LOGITS, r), r, whole, 2, 4).loss,
            lambda r: sdpo_loss(ScoredStudent(LOGITS, r), r, whole, 0.5, 2, 4).loss,
            lambda r: reverse_kl_loss(ScoredStudent(LOGITS, r), r, whole, 4).loss,
            lambda r: policy_gradient_loss(ScoredStudent(LOGITS, r), r, advantages, judged, 4).loss,
            lambda r: sft_loss(ScoredStudent(LOGITS, r), r, torch.ones(2), 4).loss,
        ]
        for loss in losses:
            parts = [loss(rollouts).item() for rollouts in only]
            assert loss(weighed).item() == pytest.approx(0.5 * parts[0] + 0.25 * parts[1])

    @pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
    def test_an_emphasis_nobody_could_have_meant_is_refused_by_row(self, value: float) -> None:
        with pytest.raises(ValueError, match="row 1, step 0: its emphasis"):
            ScoredStudent(LOGITS, replace(ROLLOUTS, emphasis=torch.tensor([1.0, value])))


class TestAdvantages:
    scores = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.5], dtype=torch.float64)
    group = torch.tensor([0, 0, 0, 0, 1, 1, 2])

    def test_grpo_is_the_score_less_the_groups_mean_over_its_deviation(self) -> None:
        found = grpo_advantages(self.scores, self.group, divide_by_std=True)
        deviation = math.sqrt(1 / 3) + 1e-4
        other = math.sqrt(0.5) + 1e-4
        expected = [0.5 / deviation, -0.5 / deviation, -0.5 / deviation, 0.5 / deviation, 0.5 / other, -0.5 / other, 0]
        assert found.tolist() == pytest.approx(expected)

    def test_grpo_without_the_deviation(self) -> None:
        found = grpo_advantages(self.scores, self.group, divide_by_std=False)
        assert found.tolist() == [0.5, -0.5, -0.5, 0.5, 0.5, -0.5, 0.0]

    def test_maxrl_divides_by_the_mean_so_a_rare_success_counts_more(self) -> None:
        rare = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
        found = maxrl_advantages(rare, torch.zeros(4))
        mean = 0.25 + 1e-6
        assert found.tolist() == pytest.approx([0.75 / mean, *[-0.25 / mean] * 3], rel=1e-9)

    def test_a_group_that_agrees_teaches_nothing(self) -> None:
        same = torch.zeros(3)
        for scores in (torch.zeros(3), torch.ones(3)):
            assert grpo_advantages(scores, same, True).abs().max() == 0
            assert maxrl_advantages(scores, same).abs().max() == 0

    def test_a_score_that_is_no_number_is_refused_by_row(self) -> None:
        for value in (math.nan, math.inf):
            scores = torch.tensor([1.0, value])
            with pytest.raises(ValueError, match="row 1: its score"):
                grpo_advantages(scores, torch.zeros(2), True)
            with pytest.raises(ValueError, match="row 1: its score"):
                maxrl_advantages(scores, torch.zeros(2))
        with pytest.raises(ValueError, match="group has shape"):
            grpo_advantages(torch.zeros(2), torch.zeros(3), True)

    @given(solve=st.floats(0.05, 0.95), size=st.integers(2, 5))
    def test_maxrl_climbs_pass_at_k_divided_by_k_for_every_k_below_the_groups_size(
        self, solve: float, size: int
    ) -> None:
        """The first terms of the gradient of log pass@1, which is sum_k (1/k) of pass@k's; over all outcomes."""
        climbed = 0.0
        for outcome in itertools.product((0.0, 1.0), repeat=size):
            scores = torch.tensor(outcome, dtype=torch.float64)
            chance = torch.where(scores == 1, solve, 1 - solve)
            score_function = torch.where(scores == 1, 1 / solve, -1 / (1 - solve))
            advantages = maxrl_advantages(scores, torch.zeros(size))
            climbed += float(chance.prod() * (advantages * score_function).mean())
        slopes = [k * (1 - solve) ** (k - 1) for k in range(1, size)]  # of pass@k = 1 - (1 - p)^k in p
        assert climbed == pytest.approx(sum(slope / k for k, slope in enumerate(slopes, 1)), rel=1e-4)


class TestPolicyGradient:
    everyone = torch.ones(2, dtype=torch.bool)

    def test_on_policy_its_gradient_is_the_advantage_times_the_score_function(self) -> None:
        logits = LOGITS.clone().requires_grad_()
        advantages = torch.tensor([2.0, -1.0])
        result = policy_gradient_loss(ScoredStudent(logits, ROLLOUTS), ROLLOUTS, advantages, self.everyone, 8)
        (gradient,) = torch.autograd.grad(result.loss, logits)
        chosen = torch.nn.functional.one_hot(IDS, 3)
        expected = -(chosen - LOGITS.softmax(-1)) * (advantages[:, None] * MASK)[..., None] / 8
        assert torch.allclose(gradient, expected)
        assert result.loss.item() == pytest.approx((-2.0 * 3 + 1.0) / 8)
        assert result.row_loss.tolist() == pytest.approx([-6 / 8, 1 / 8])
        assert result.row_tokens.tolist() == [3, 1]

    def test_a_token_beyond_the_clip_is_no_longer_moved_the_same_way(self) -> None:
        ratios = torch.tensor([[1.29, 0.79, 1.27], [0.81, 1.0, 1.0]])
        rollouts = replace(ROLLOUTS, sampler_logprobs=ROLLOUTS.sampler_logprobs - ratios.log())
        clipped = {}
        for sign in (1.0, -1.0):
            logits = LOGITS.clone().requires_grad_()
            advantages = torch.full((2,), sign)
            result = policy_gradient_loss(ScoredStudent(logits, rollouts), rollouts, advantages, self.everyone, 4)
            (gradient,) = torch.autograd.grad(result.loss, logits)
            clipped[sign] = (gradient.abs().sum(-1) == 0)[MASK].tolist()
            assert result.num_clipped.item() == sum(clipped[sign])
        assert clipped == {1.0: [True, False, False, False], -1.0: [False, True, False, False]}

    def test_its_value_is_the_smaller_of_the_two_surrogates(self) -> None:
        ratios = torch.tensor([[1.5, 0.5, 1.0], [1.5, 1.0, 1.0]])
        rollouts = replace(ROLLOUTS, sampler_logprobs=ROLLOUTS.sampler_logprobs - ratios.log())
        student = ScoredStudent(LOGITS, rollouts)
        result = policy_gradient_loss(student, rollouts, torch.tensor([1.0, -1.0]), self.everyone, 4)
        assert result.loss.item() == pytest.approx((-1.28 - 0.5 - 1.0 + 1.5) / 4, rel=1e-5)

    def test_a_rollout_nobody_judged_takes_no_part_and_may_be_anything(self) -> None:
        unknown = replace(
            ROLLOUTS,
            credited=torch.tensor([True, False]),
            sampler_logprobs=torch.where(torch.tensor([[True], [False]]), ROLLOUTS.sampler_logprobs, math.nan),
        )
        judged = torch.tensor([True, False])
        logits = LOGITS.clone().requires_grad_()
        advantages = torch.tensor([1.0, math.nan])
        result = policy_gradient_loss(ScoredStudent(logits, unknown), unknown, advantages, judged, 3)
        (gradient,) = torch.autograd.grad(result.loss, logits)
        assert gradient[1].abs().sum() == 0
        assert result.loss.item() == pytest.approx(-1.0)

    def test_the_tokens_of_a_rollout_nobody_judged_are_not_counted_as_clipped(self) -> None:
        far = replace(ROLLOUTS, sampler_logprobs=ROLLOUTS.sampler_logprobs - 1)
        both = policy_gradient_loss(ScoredStudent(LOGITS, far), far, torch.ones(2), self.everyone, 4)
        one = policy_gradient_loss(ScoredStudent(LOGITS, far), far, torch.ones(2), torch.tensor([False, True]), 4)
        assert (both.num_clipped.item(), one.num_clipped.item()) == (4, 1)

    def test_an_infinite_ratio_without_an_advantage_gives_nothing(self) -> None:
        impossible = replace(ROLLOUTS, sampler_logprobs=ROLLOUTS.sampler_logprobs - 200)
        logits = LOGITS.clone().float().requires_grad_()
        student = ScoredStudent(logits, impossible)
        result = policy_gradient_loss(student, impossible, torch.zeros(2), self.everyone, 4)
        (gradient,) = torch.autograd.grad(result.loss, logits)
        assert (result.loss.item(), gradient.abs().sum().item()) == (0, 0)

    def test_a_micro_batch_nobody_judged_gives_nothing(self) -> None:
        logits = LOGITS.clone().requires_grad_()
        result = policy_gradient_loss(ScoredStudent(logits, ROLLOUTS), ROLLOUTS, torch.ones(2), ~self.everyone, 0)
        (gradient,) = torch.autograd.grad(result.loss, logits)
        assert (result.loss.item(), gradient.abs().sum().item(), result.num_clipped.item()) == (0, 0, 0)

    def test_what_means_nothing_is_refused_by_row(self) -> None:
        student, fine = ScoredStudent(LOGITS, ROLLOUTS), torch.ones(2)
        nobody = replace(ROLLOUTS, credited=torch.tensor([True, False]))
        nan = replace(ROLLOUTS, sampler_logprobs=torch.tensor([[-1.0] * 3, [math.nan] * 3]))
        first = replace(ROLLOUTS, credited=torch.tensor([False, False]))
        with pytest.raises(ValueError, match="row 1: its sampler's logprobs are unknown"):
            policy_gradient_loss(student, nobody, fine, self.everyone, 4)
        with pytest.raises(ValueError, match="row 1: its sampler's logprobs are unknown"):
            policy_gradient_loss(student, first, fine, torch.tensor([False, True]), 4)
        with pytest.raises(ValueError, match="row 1, step 0: its sampler's logprobs are NaN"):
            policy_gradient_loss(student, nan, fine, self.everyone, 4)
        with pytest.raises(ValueError, match="row 1, step 0: its advantage"):
            policy_gradient_loss(student, ROLLOUTS, torch.tensor([1.0, math.nan]), self.everyone, 4)
        with pytest.raises(ValueError, match="num_tokens is 3, but this micro-batch alone has 4"):
            policy_gradient_loss(student, ROLLOUTS, fine, self.everyone, 3)
        with pytest.raises(ValueError, match="advantages has shape"):
            policy_gradient_loss(student, ROLLOUTS, torch.ones(3), self.everyone, 4)
        with pytest.raises(ValueError, match="judged has shape"):
            policy_gradient_loss(student, ROLLOUTS, fine, torch.ones(3, dtype=torch.bool), 4)


def test_only_the_losses_of_scores_and_imitation_carry_a_gradient() -> None:
    student = ScoredStudent(LOGITS.clone().requires_grad_(), OFF_POLICY)
    everyone = torch.ones(2, dtype=torch.bool)
    for result in (
        policy_gradient_loss(student, OFF_POLICY, torch.ones(2), everyone, 4),
        sft_loss(student, OFF_POLICY, torch.ones(2), 4),
    ):
        assert [name for name, value in vars(result).items() if value.requires_grad] == ["loss"]


class TestImitation:
    def test_rows_are_weighed_by_the_trust_in_who_gave_them(self) -> None:
        logprobs = LOGITS.log_softmax(-1).gather(-1, IDS[..., None])[..., 0] * MASK
        result = sft_loss(ScoredStudent(LOGITS, ROLLOUTS), ROLLOUTS, torch.tensor([0.5, 2.0]), num_tokens=3.5)
        expected = -torch.tensor([0.5, 2.0]) * logprobs.sum(1) / 3.5
        assert result.row_loss.tolist() == pytest.approx(expected.tolist())
        assert result.loss.item() == pytest.approx(expected.sum().item())
        assert result.row_tokens.tolist() == [3, 1]

    def test_a_row_of_weight_zero_is_not_learned(self) -> None:
        logits = LOGITS.clone().requires_grad_()
        result = sft_loss(ScoredStudent(logits, ROLLOUTS), ROLLOUTS, torch.tensor([0.0, 1.0]), num_tokens=1)
        (gradient,) = torch.autograd.grad(result.loss, logits)
        assert gradient[0].abs().sum() == 0
        assert result.row_tokens.tolist() == [0, 1]

    def test_nothing_to_learn_at_all_is_a_loss_of_zero(self) -> None:
        logits = LOGITS.clone().requires_grad_()
        result = sft_loss(ScoredStudent(logits, ROLLOUTS), ROLLOUTS, torch.zeros(2), num_tokens=0)
        (gradient,) = torch.autograd.grad(result.loss, logits)
        assert (result.loss.item(), gradient.abs().sum().item()) == (0, 0)

    def test_a_count_of_tokens_may_be_off_by_rounding_but_not_by_a_token_in_ten_thousand(self) -> None:
        student, weights = ScoredStudent(LOGITS, ROLLOUTS), torch.ones(2)
        sft_loss(student, ROLLOUTS, weights, num_tokens=4 * (1 - 5e-7))
        with pytest.raises(ValueError, match="num_tokens is"):
            sft_loss(student, ROLLOUTS, weights, num_tokens=4 * (1 - 1e-4))

    @pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
    def test_a_weight_nobody_could_have_meant_is_refused_by_row(self, value: float) -> None:
        with pytest.raises(ValueError, match="row 1, step 0: its weight"):
            sft_loss(ScoredStudent(LOGITS, ROLLOUTS), ROLLOUTS, torch.tensor([1.0, value]), 4)
        with pytest.raises(ValueError, match="weights has shape"):
            sft_loss(ScoredStudent(LOGITS, ROLLOUTS), ROLLOUTS, torch.ones(3), 4)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), length=st.integers(1, 5))
def test_padding_changes_no_objective(seed: int, length: int) -> None:
    numbers = torch.Generator().manual_seed(seed)
    mask = torch.rand((3, length), generator=numbers) < 0.6
    mask[0, 0] = True
    logits = torch.randn((3, length, 4), generator=numbers, dtype=torch.float64)
    expert = torch.randn((3, length, 4), generator=numbers, dtype=torch.float64).log_softmax(-1)
    ids = torch.randint(4, mask.shape, generator=numbers)
    rollouts = make_rollouts(ids, mask, logits)
    advantages, everyone = torch.randn(3, generator=numbers), torch.ones(3, dtype=torch.bool)
    num_tokens = int(mask.sum())

    def run(pad: int) -> list[tuple[float, Tensor]]:
        own, tail = logits.clone().requires_grad_(), torch.full((3, pad), math.nan, dtype=torch.float64)
        padded = replace(
            rollouts,
            token_ids=torch.cat([ids, torch.full((3, pad), -7)], 1),
            action_mask=torch.cat([mask, torch.zeros((3, pad), dtype=torch.bool)], 1),
            sampler_logprobs=torch.cat([rollouts.sampler_logprobs, tail], 1),
        )
        student = ScoredStudent(torch.cat([own, tail[..., None].expand(3, pad, 4)], 1), padded)
        terms: list[Term] = [whole_term(torch.cat([expert, tail[..., None].expand(3, pad, 4)], 1))]
        losses = [
            sdpo_loss(student, padded, terms, 0.5, 2, num_tokens).loss,
            reverse_kl_loss(student, padded, terms, num_tokens).loss,
            paper_loss(student, padded, terms, 2, num_tokens).loss,
            policy_gradient_loss(student, padded, advantages, everyone, num_tokens).loss,
            sft_loss(student, padded, torch.ones(3), num_tokens).loss,
        ]
        return [(loss.item(), torch.autograd.grad(loss, own, retain_graph=True)[0]) for loss in losses]

    for (bare, bare_gradient), (padded, padded_gradient) in zip(run(0), run(2), strict=True):
        assert bare == pytest.approx(padded, abs=1e-12)
        assert torch.allclose(bare_gradient, padded_gradient, rtol=0, atol=1e-12)
        assert bare_gradient[~mask].abs().sum() == 0
