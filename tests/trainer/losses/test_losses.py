import math
from collections.abc import Sequence
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.trainer.losses.tabular import DEFAULT, PROPOSITION_1, make_rollouts, one_group, whole_term
from trainer.losses.credit import CostKind, Credit, LeaveOneOut, Reach, Scale
from trainer.losses.distil import DistilLoss, distil_loss, forward_ce_loss
from trainer.losses.imitation import sft_loss
from trainer.losses.reward import policy_gradient_loss
from trainer.losses.student import Rollouts, ScoredStudent
from trainer.losses.terms import (
    DrawnTerm,
    ExpertDistribution,
    FullVocabulary,
    Label,
    PartialTerm,
    Samples,
    Term,
    TopK,
    WholeTerm,
)

# Two siblings over two tokens. The expert is sure of token 0 and so is the sampler, so a step costs its own surprise:
# 1, 2, 4 nats in the first rollout, 3, 1 in the second, which ends there. Mean-to-go: 3, 4, 0 and 1, 0, 0.
COSTS = torch.tensor([[1.0, 2.0, 4.0], [3.0, 1.0, 0.5]])
MASK = torch.tensor([[True, True, True], [True, True, False]])
LOGITS = torch.stack([-COSTS, (1 - (-COSTS).exp()).log()], -1)
IDS = torch.zeros((2, 3), dtype=torch.long)
SURE = torch.tensor([0.0, -math.inf]).expand(2, 3, 2)
ROLLOUTS = make_rollouts(IDS, MASK, LOGITS)
CLIPPED = replace(DEFAULT, weight=0.5, clip=3.0)


def charge(
    terms: Sequence[Term] = (whole_term(SURE),),
    rollouts: Rollouts = ROLLOUTS,
    baseline: LeaveOneOut | Tensor | None = None,
    credit: Credit = CLIPPED,
    covered_tokens: int = 5,
    logits: Tensor = LOGITS,
) -> DistilLoss:
    siblings = one_group(2, 3) if baseline is None else baseline
    return distil_loss(ScoredStudent(logits, rollouts), rollouts, terms, siblings, credit, covered_tokens)


def rounded(values: Tensor) -> list[list[float]]:
    return [[round(value, 5) + 0.0 for value in row] for row in values.tolist()]


def test_a_loss_worked_out_by_hand() -> None:
    result = charge()
    assert rounded(result.cost) == [[1, 2, 4], [3, 1, 0]]
    assert rounded(result.cost_to_go) == [[3, 4, 0], [1, 0, 0]]
    assert rounded(result.baseline) == [[1, 0, 0], [3, 4, 0]]
    assert rounded(result.excess) == [[2, 3, 0], [-2, -3, 0]]
    assert rounded(result.ratio) == [[1, 1, 1], [1, 1, 0]]
    assert rounded(result.action_logprobs) == [[-1, -2, -4], [-3, -1, 0]]
    assert result.local.item() == pytest.approx(11 / 5)
    assert result.future.item() == pytest.approx(0.5 * (-1 * 2 - 2 * 3 + 3 * 2 + 1 * 3) / 5)
    assert result.partial.item() == 0
    assert result.loss.item() == pytest.approx(2.2 + 0.1)
    assert (result.cost_mean.item(), result.kl.item()) == pytest.approx((2.2, 2.2))
    assert result.covered.tolist() == [True, True]
    assert (result.num_future_tokens.item(), result.num_future_rows.item()) == (4, 2)


def test_its_gradient_worked_out_by_hand() -> None:
    logits = LOGITS.clone().requires_grad_()
    charge(logits=logits).loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    # at token 0, per token: (p - 1) from the local term, .5 (1 - p) excess from the future term, over 5 tokens
    p = (-COSTS).exp()
    expected = ((p - 1) + 0.5 * (1 - p) * torch.tensor([[2.0, 3.0, 0.0], [-2.0, -3.0, 0.0]])) * MASK / 5
    assert rounded(logits.grad[:, :, 0]) == rounded(expected)
    assert rounded(logits.grad[:, :, 1]) == rounded(-expected)


def test_only_the_loss_carries_a_gradient() -> None:
    result = charge(logits=LOGITS.clone().requires_grad_())
    carriers = [
        field.name
        for field in fields(result)
        if isinstance(getattr(result, field.name), Tensor) and getattr(result, field.name).requires_grad
    ]
    assert carriers == ["loss"]
    parts = [value for part in result.parts for value in vars(part).values() if isinstance(value, Tensor)]
    assert not any(value.requires_grad for value in parts)


def test_a_given_baseline_is_subtracted_as_it_is() -> None:
    assert rounded(charge(baseline=torch.zeros(3)).excess) == [[3, 3, 0], [1, 0, 0]]
    assert rounded(charge(baseline=torch.tensor([2.0, 1.0, 0.5])).excess) == [[1, 3, -0.5], [-1, -1, 0]]
    assert rounded(charge(baseline=torch.tensor([[1.0], [2.0]]).expand(2, 3)).excess) == [[2, 3, -1], [-1, -2, 0]]


def test_the_running_mean_stands_in_where_no_sibling_is_left() -> None:
    alone = LeaveOneOut(torch.tensor([0, 1]), torch.zeros(2, dtype=torch.long), torch.tensor([2.0, 1.0, 0.5]))
    assert rounded(charge(baseline=alone).excess) == [[1, 3, -0.5], [-1, -1, 0]]


def test_a_rollout_whose_sampler_is_unknown_trains_the_local_term_alone() -> None:
    unknown = replace(
        ROLLOUTS,
        credited=torch.tensor([True, False]),
        sampler_logprobs=torch.where(torch.tensor([[True], [False]]), ROLLOUTS.sampler_logprobs, math.nan),
    )
    result = charge(rollouts=unknown)
    assert rounded(result.excess) == [[2, 3, 0], [0, 0, 0]]
    assert rounded(result.ratio) == [[1, 1, 1], [0, 0, 0]]
    assert result.covered.tolist() == [True, True]
    assert result.local.item() == pytest.approx(2.2)
    assert result.future.item() == pytest.approx(0.5 * (-1 * 2 - 2 * 3) / 5)
    assert (result.num_future_tokens.item(), result.num_future_rows.item()) == (2, 1)


def test_only_a_rollout_that_is_charged_must_be_within_the_samplers_limit() -> None:
    room = replace(CLIPPED, scale=Scale.ROOM_LEFT, max_tokens=2)
    with pytest.raises(ValueError, match="row 0: 3 action tokens, more than max_tokens=2"):
        charge(credit=room)
    from_elsewhere = replace(ROLLOUTS, credited=torch.zeros(2, dtype=torch.bool))
    result = charge(credit=room, rollouts=from_elsewhere)
    assert (result.local.item(), result.future.item()) == pytest.approx((2.2, 0))


def test_the_token_ratio_weighs_the_future_term_and_is_cut_at_two() -> None:
    shift = torch.tensor([0.25, 3.0, 1.0]).log()
    off_policy = replace(ROLLOUTS, sampler_logprobs=ROLLOUTS.sampler_logprobs - shift)
    result = charge(rollouts=off_policy)
    assert rounded(result.ratio) == [[0.25, 2, 1], [0.25, 2, 0]]
    assert rounded(result.excess) == [[2, 3, 0], [-2, -3, 0]]
    assert result.local.item() == pytest.approx(2.2)
    assert result.future.item() == pytest.approx(0.5 * (-1 * 2 * 0.25 - 2 * 3 * 2 + 3 * 2 * 0.25 + 1 * 3 * 2) / 5)


def test_without_credit_distil_is_forward_ce() -> None:
    nobody = replace(ROLLOUTS, credited=torch.zeros(2, dtype=torch.bool))
    gradients = []
    for loss in (charge, None):
        logits = LOGITS.clone().requires_grad_()
        terms = [whole_term(SURE)]
        result = (
            charge(rollouts=nobody, logits=logits)
            if loss
            else forward_ce_loss(ScoredStudent(logits, ROLLOUTS), ROLLOUTS, terms, covered_tokens=5)
        )
        gradients.append(torch.autograd.grad(result.loss, logits)[0])
        assert (result.loss.item(), result.future.item(), result.num_future_tokens.item()) == pytest.approx((2.2, 0, 0))
        assert rounded(result.cost) == [[1, 2, 4], [3, 1, 0]]
    assert torch.equal(*gradients)


def test_a_score_alone_makes_no_term_and_no_loss_but_a_backward_pass_still_works() -> None:
    logits = LOGITS.clone().requires_grad_()
    for terms in ([], [whole_term(SURE, weight=0.0)]):
        result = charge(terms=terms, logits=logits, covered_tokens=0)
        assert result.loss.item() == 0
        assert torch.autograd.grad(result.loss, logits)[0].abs().max() == 0
        assert result.covered.tolist() == [False, False]


def test_a_rollout_without_feedback_counts_nowhere_and_is_no_sibling() -> None:
    one = WholeTerm("teacher", FullVocabulary(SURE), torch.tensor([1.0, 0.0]))
    fallback = replace(one_group(2, 3), fallback=torch.tensor([1.0, 1.0, 1.0]))
    result = charge(terms=[one], baseline=fallback, covered_tokens=3)
    assert result.covered.tolist() == [True, False]
    assert result.local.item() == pytest.approx(7 / 3)
    assert rounded(result.excess) == [[2, 3, -1], [0, 0, 0]]
    assert rounded(result.baseline) == [[1, 1, 1], [0, 0, 0]]


def test_an_expert_on_probation_has_weight_zero_and_changes_nothing() -> None:
    contrary = torch.tensor([-math.inf, 0.0]).expand(2, 3, 2)
    result = charge(terms=[whole_term(SURE), whole_term(contrary, "newcomer", weight=0.0)])
    assert result.loss.item() == pytest.approx(2.3)
    assert [part.num_tokens.item() for part in result.parts] == [5, 0]


def test_each_term_is_reported_with_its_part_of_the_loss() -> None:
    half = torch.full((2, 3, 2), math.log(0.5))
    terms = [whole_term(SURE, "sure", weight=3.0), whole_term(half, "unsure", weight=1.0)]
    result = charge(terms=terms, credit=replace(CLIPPED, cost=CostKind.CROSS_ENTROPY))
    sure, unsure = result.parts
    assert (sure.name, unsure.name) == ("sure", "unsure")
    assert (sure.num_tokens.item(), sure.weight.item(), unsure.weight.item()) == pytest.approx((5, 3.75, 1.25))
    other = LOGITS[..., 1]
    assert sure.local.item() == pytest.approx(0.75 * 11 / 5)
    assert unsure.local.item() == pytest.approx(0.25 * (0.5 * (COSTS - other) * MASK).sum().item() / 5)
    assert (sure.local + unsure.local).item() == pytest.approx(result.local.item())
    assert (sure.future + unsure.future).item() == pytest.approx(result.future.item())
    # the second rollout's first token: 1 nat still to pay, .75 of the weight on `sure` which asks 1 of it
    lone = LeaveOneOut(torch.tensor([0, 1]), torch.zeros(2, dtype=torch.long), torch.zeros(3))
    only_second = replace(ROLLOUTS, credited=torch.tensor([False, True]))
    apart = charge(
        terms=terms, baseline=lone, rollouts=only_second, credit=replace(CLIPPED, cost=CostKind.CROSS_ENTROPY)
    )
    asked = torch.tensor([0.75 * 1.0, 0.25 * 0.5 * (1.0 - other[1, 1].item())])
    assert apart.future.item() == pytest.approx(-0.5 * 3 * asked.sum().item() / 5, rel=1e-5)
    assert apart.parts[0].future.item() == pytest.approx(-0.5 * 3 * asked[0].item() / 5, rel=1e-5)


def test_each_rollout_has_its_own_part_and_cost_of_a_term() -> None:
    label = PartialTerm("person", Label(IDS), torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]), 0.5, num_tokens=8)
    whole, partial = charge(terms=[whole_term(SURE), label]).parts
    assert whole.row_local.tolist() == pytest.approx([(1 + 2 / 2 + 4 / 2) / 5, 4 / 5])
    assert (whole.row_local / whole.row_weight).tolist() == pytest.approx([(1 + 2 / 2 + 4 / 2) / 2, 2])
    assert partial.row_local.tolist() == pytest.approx([0.5 * (2 / 2 + 4 / 2) / 8, 0])
    assert partial.row_weight.tolist() == pytest.approx([0.5 * (1 / 2 + 1 / 2) / 8, 0])
    assert whole.row_future.sum().item() == pytest.approx(whole.future.item())
    assert whole.row_future.tolist() == pytest.approx([0.5 * (-1 * 2 - 2 * 3) / 5, 0.5 * (3 * 2 + 1 * 3) / 5])
    assert partial.row_future.tolist() == [0, 0]


def test_where_nothing_is_left_to_pay_the_excess_goes_by_weight() -> None:
    half = torch.full((2, 3, 2), math.log(0.5))
    terms = [whole_term(SURE, "sure", weight=3.0), whole_term(half, "unsure", weight=1.0)]
    expected = charge(terms=terms).cost_to_go + torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    result = charge(terms=terms, baseline=expected)
    assert rounded(result.excess) == [[0, 0, -2], [0, 0, 0]]  # the first rollout's last token; -4 is its logprob
    assert [part.future.item() for part in result.parts] == pytest.approx([0.75 * 0.5 * 8 / 5, 0.25 * 0.5 * 8 / 5])


def test_an_excess_of_a_ten_thousandth_of_a_nat_is_where_a_future_term_begins_to_count() -> None:
    nearly = charge().cost_to_go - torch.tensor([[2e-4, 5e-5, 0.0], [-2e-4, -5e-5, 0.0]])
    result = charge(baseline=nearly)
    assert (result.num_future_tokens.item(), result.num_future_rows.item()) == (2, 2)


def test_how_much_likelier_the_expert_finds_the_sampled_tokens_is_told_where_it_has_a_whole_distribution() -> None:
    label = PartialTerm("person", Label(IDS), torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]), 0.5, num_tokens=2)
    one = WholeTerm("teacher", FullVocabulary(SURE), torch.tensor([1.0, 0.0]))
    half = whole_term(torch.full((2, 3, 2), math.log(0.5)), "unsure")
    sure, unsure, person = charge(terms=[one, half, label]).parts
    assert (sure.gap.item(), sure.num_compared.item()) == pytest.approx((1 + 2 + 4, 3))
    assert (unsure.gap.item(), unsure.num_compared.item()) == pytest.approx((11 - 5 * math.log(2), 5), rel=1e-5)
    assert (person.gap.item(), person.num_compared.item()) == (0, 0)


def test_the_kl_is_the_cross_entropy_less_the_experts_own_entropy() -> None:
    result = charge(terms=[whole_term(torch.full((2, 3, 2), math.log(0.5)))])
    cross_entropy = -(LOGITS.mean(-1) * MASK).sum().item() / 5
    assert result.cost_mean.item() == pytest.approx(cross_entropy)
    assert result.kl.item() == pytest.approx(cross_entropy - math.log(2))


def test_no_gradient_flows_into_a_baseline() -> None:
    baseline = torch.zeros(3, requires_grad=True)
    result = charge(baseline=baseline, logits=LOGITS.clone().requires_grad_())
    assert not any(slope is not None for slope in torch.autograd.grad(result.loss, baseline, allow_unused=True))


def test_tokens_whose_charge_was_cut_are_counted_among_those_that_are_charged() -> None:
    excess = [[3 - 1, 4 - 0, 0], [1 - 3, 0 - 4]]  # two of five lie beyond 3
    for clip, cut in ((3.0, 2), (1.5, 4), (math.inf, 0)):
        result = charge(credit=replace(CLIPPED, clip=clip))
        assert (int(result.num_charged), int(result.num_clipped)) == (sum(map(len, excess)), cut)
    alone = replace(ROLLOUTS, credited=torch.tensor([True, False]))
    result = charge(rollouts=alone, baseline=torch.zeros(3))
    assert (int(result.num_charged), int(result.num_clipped)) == (3, 1)


def test_the_clip_falls_on_the_sum_of_the_terms() -> None:
    two = [whole_term(SURE, "one", weight=1.0), whole_term(SURE, "two", weight=1.0)]
    together, alone = charge(terms=two), charge()
    assert torch.equal(together.excess, alone.excess)
    assert [part.future.item() for part in together.parts] == pytest.approx([0.05, 0.05])


class TestPartialTerms:
    """A person's label on the second token of the first rollout: there the other token, which costs -log(1 - e^-2)."""

    surprise = -math.log(1 - math.exp(-2))
    weights = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    label = PartialTerm("person", Label(torch.ones((2, 3), dtype=torch.long)), weights, share=0.5, num_tokens=2)

    def test_they_train_the_local_term_by_their_own_count_and_share(self) -> None:
        result = charge(terms=[self.label], covered_tokens=0)
        assert result.partial.item() == pytest.approx(0.5 * self.surprise / 2)
        assert result.loss.item() == pytest.approx(result.partial.item())
        assert (result.local.item(), result.cost_mean.item()) == (0, 0)

    def test_they_are_never_charged_to_earlier_tokens(self) -> None:
        result = charge(terms=[self.label], covered_tokens=0, baseline=torch.ones(3))
        assert result.covered.tolist() == [False, False]
        for ledger in (result.cost, result.cost_to_go, result.excess, result.ratio):
            assert ledger.abs().max() == 0

    def test_beside_a_whole_term_they_share_the_local_weight_but_not_the_cost_to_go(self) -> None:
        result = charge(terms=[whole_term(SURE), self.label])
        assert rounded(result.cost) == [[1, 2, 4], [3, 1, 0]]
        assert rounded(result.excess) == [[2, 3, 0], [-2, -3, 0]]
        assert result.local.item() == pytest.approx((1 + 2 / 2 + 4 + 3 + 1) / 5)
        assert result.partial.item() == pytest.approx(0.5 * 0.5 * self.surprise / 2)
        assert result.cost_mean.item() == pytest.approx(2.2)
        whole, label = result.parts
        assert (label.num_tokens.item(), label.weight.item(), label.future.item()) == pytest.approx((1, 0.5, 0))
        assert whole.future.item() == pytest.approx(result.future.item())

    def test_a_label_on_a_token_nobody_chose_is_refused_by_row(self) -> None:
        stray = replace(self.label, weights=torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
        with pytest.raises(ValueError, match="row 1, step 2: person speaks about a token that is no action"):
            charge(terms=[stray], covered_tokens=0)
        flipped = replace(self.label, weights=torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
        gaps = replace(ROLLOUTS, action_mask=torch.tensor([[True, False, True], [True, False, False]]))
        with pytest.raises(ValueError, match="row 1, step 1: person speaks"):
            charge(terms=[flipped], rollouts=gaps, covered_tokens=0)

    def test_a_term_that_speaks_nowhere_in_the_update_gives_nothing(self) -> None:
        nowhere = replace(self.label, weights=torch.zeros(2, 3), num_tokens=0)
        result = charge(terms=[whole_term(SURE), nowhere])
        assert result.loss.item() == pytest.approx(charge().loss.item())
        assert [part.num_tokens.item() for part in result.parts] == [5, 0]

    def test_a_count_smaller_than_the_micro_batch_is_refused(self) -> None:
        with pytest.raises(ValueError, match="person: num_tokens is 0, but this micro-batch alone has 1"):
            charge(terms=[replace(self.label, num_tokens=0)], covered_tokens=0)


class TestDrawnTerms:
    drawn = torch.tensor([[False, True, False], [True, False, False]])
    term = DrawnTerm(
        "asked",
        Samples(torch.zeros((2, 3, 1), dtype=torch.long), torch.ones((2, 3, 1), dtype=torch.bool)),
        torch.ones(2),
        drawn,
        torch.tensor([[0.0, 0.25, 0.0], [0.5, 0.0, 0.0]]),
        share=2.0,
        num_tokens=4,
    )

    def test_a_drawn_cost_is_charged_over_its_probability_and_counted_once(self) -> None:
        result = charge(terms=[self.term], baseline=torch.zeros(3))
        assert rounded(result.cost) == [[0, 8, 0], [6, 0, 0]]
        assert rounded(result.cost_to_go) == [[4, 0, 0], [0, 0, 0]]
        assert result.covered.tolist() == [True, True]
        assert result.partial.item() == pytest.approx(2 * (2 + 3) / 4)
        assert result.local.item() == 0

    def test_its_weight_holds_on_the_whole_rollout_drawn_or_not(self) -> None:
        result = charge(terms=[whole_term(SURE), self.term], baseline=torch.zeros(3))
        assert rounded(result.cost) == [[0.5, 1 + 4, 2], [1.5 + 3, 0.5, 0]]
        assert result.local.item() == pytest.approx((1 + 2 / 2 + 4 + 3 / 2 + 1) / 5)

    def test_a_prefix_drawn_for_certain_costs_what_it_costs(self) -> None:
        certain = replace(self.term, probability=torch.ones(2, 3))
        assert rounded(charge(terms=[certain], baseline=torch.zeros(3)).cost) == [[0, 2, 0], [3, 0, 0]]

    @pytest.mark.parametrize("probability", [0.0, 1.5, math.nan])
    def test_a_probability_that_is_none_is_refused_by_row(self, probability: float) -> None:
        with pytest.raises(ValueError, match="row 0, step 1: asked: probability"):
            charge(terms=[replace(self.term, probability=torch.full((2, 3), probability))])

    def test_a_prefix_drawn_where_nothing_was_chosen_is_refused_by_row(self) -> None:
        with pytest.raises(ValueError, match="row 1, step 2: asked"):
            charge(terms=[replace(self.term, drawn=~MASK)])


def test_a_tool_turn_is_neither_trained_nor_charged() -> None:
    tool = torch.tensor([[True, False, True], [True, True, False]])
    rollouts = replace(ROLLOUTS, action_mask=tool)
    result = charge(rollouts=rollouts, baseline=torch.zeros(3), covered_tokens=4, credit=DEFAULT)
    assert rounded(result.cost_to_go) == [[4, 0, 0], [1, 0, 0]]
    assert result.local.item() == pytest.approx((1 + 4 + 3 + 1) / 4)


def test_the_student_is_charged_at_the_samplers_temperature() -> None:
    cool = make_rollouts(IDS, MASK, LOGITS, temperature=0.5)
    at_half = distil_loss(
        ScoredStudent(LOGITS, cool), cool, [whole_term(SURE)], one_group(2, 3), CLIPPED, covered_tokens=5
    )
    at_one = charge(logits=LOGITS * 2, rollouts=make_rollouts(IDS, MASK, LOGITS * 2))
    assert at_half.loss.item() == pytest.approx(at_one.loss.item())
    assert rounded(at_half.excess) == rounded(at_one.excess)


def test_a_student_that_agrees_with_its_experts_has_no_future_term_under_kl() -> None:
    numbers = torch.Generator().manual_seed(7)
    logits = torch.randn((4, 6, 50), generator=numbers) * 3
    ids = torch.randint(50, (4, 6), generator=numbers)
    rollouts = make_rollouts(ids, torch.ones((4, 6), dtype=torch.bool), logits)
    logprobs, best = logits.log_softmax(-1).topk(5)
    tail = (-logprobs.exp().sum(-1)).log1p()
    terms = [whole_term(logits.log_softmax(-1)), WholeTerm("remote", TopK(best, logprobs, tail), torch.ones(4))]
    student = ScoredStudent(logits, rollouts)
    under_kl = distil_loss(student, rollouts, terms, torch.zeros(6), DEFAULT, covered_tokens=24)
    assert under_kl.excess.abs().max() < 1e-5
    assert (under_kl.num_future_tokens.item(), under_kl.num_future_rows.item()) == (0, 0)
    under_ce = distil_loss(student, rollouts, terms, torch.zeros(6), PROPOSITION_1, covered_tokens=24)
    assert under_ce.excess.abs().max() > 1


def test_sft_is_the_mean_surprise_at_the_given_tokens_of_the_update() -> None:
    logits = LOGITS.clone().requires_grad_()
    result = sft_loss(ScoredStudent(logits, ROLLOUTS), ROLLOUTS, torch.ones(2), num_tokens=10)
    assert result.loss.item() == pytest.approx(11 / 10)
    assert rounded(result.logprobs) == [[-1, -2, -4], [-3, -1, 0]]
    (gradient,) = torch.autograd.grad(result.loss, logits)
    assert rounded(gradient[:, :, 0]) == rounded(((-COSTS).exp() - 1) * MASK / 10)
    with pytest.raises(ValueError, match="num_tokens is 4, but this micro-batch alone has 5"):
        sft_loss(ScoredStudent(LOGITS, ROLLOUTS), ROLLOUTS, torch.ones(2), num_tokens=4)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_a_weight_nobody_could_have_meant_is_refused_by_row(weight: float) -> None:
    with pytest.raises(ValueError, match="row 1, step 0: teacher: a weight"):
        charge(terms=[WholeTerm("teacher", FullVocabulary(SURE), torch.tensor([1.0, weight]))])


def test_numbers_that_are_none_are_refused_by_row() -> None:
    with pytest.raises(ValueError, match="row 1, step 0: the baseline is NaN"):
        charge(baseline=torch.tensor([[0.0] * 3, [math.nan] * 3]))
    with pytest.raises(ValueError, match="row 1, step 0: credited, but"):
        charge(rollouts=replace(ROLLOUTS, sampler_logprobs=torch.tensor([[-1.0] * 3, [math.nan] * 3])))


@pytest.mark.parametrize("expert", ["sure of the other", "also without it", "top-K", "samples"])
def test_an_expert_where_the_student_has_a_token_no_probability_is_refused_by_row(expert: str) -> None:
    logits = LOGITS.clone()
    logits[1, 1] = torch.tensor([0.0, -math.inf])
    contrary = torch.tensor([-math.inf, 0.0]).expand(2, 3, 2)
    ones = torch.ones((2, 3, 1), dtype=torch.long)
    term = {
        "sure of the other": whole_term(contrary),
        "also without it": whole_term(SURE),
        "top-K": WholeTerm("k", TopK(ones, torch.zeros(2, 3, 1), torch.full((2, 3), -math.inf)), torch.ones(2)),
        "samples": WholeTerm("s", Samples(ones, ones.bool()), torch.ones(2)),
    }[expert]
    with pytest.raises(ValueError, match=r"row 1, step 1: .*the cross-entropy is NaN or infinite"):
        charge([term], logits=logits)


def test_a_count_of_covered_tokens_smaller_than_the_micro_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="covered_tokens is 4, but this micro-batch alone has 5"):
        charge(covered_tokens=4)


def test_two_terms_add_up_in_the_kl_as_in_the_cost() -> None:
    twice = [whole_term(SURE, "one"), whole_term(SURE, "two")]
    assert charge(twice).kl.item() == pytest.approx(charge().kl.item())
    assert charge(twice).cost_mean.item() == pytest.approx(charge().cost_mean.item())


def test_a_baseline_where_no_future_term_applies_may_be_anything() -> None:
    nobody = replace(ROLLOUTS, credited=torch.tensor([False, True]))
    unknown = torch.tensor([0.0, 0.0, math.nan])  # only the first rollout has a third token
    assert charge(rollouts=nobody, baseline=unknown).loss.isfinite()
    with pytest.raises(ValueError, match="row 0, step 2: the baseline is NaN"):
        charge(baseline=unknown)


def test_an_update_of_one_token_is_divided_by_one() -> None:
    logits, only = LOGITS[:1, 1:2], torch.ones((1, 1), dtype=torch.bool)
    rollouts = make_rollouts(IDS[:1, :1], only, logits)
    student, siblings = ScoredStudent(logits, rollouts), one_group(1, 1)
    label = PartialTerm("person", Label(IDS[:1, :1]), only.float(), share=1.0, num_tokens=1)
    for terms in ([whole_term(SURE[:1, :1])], [label]):
        assert distil_loss(student, rollouts, terms, siblings, CLIPPED, 1).loss.item() == pytest.approx(2)
    whole = distil_loss(student, rollouts, [whole_term(SURE[:1, :1])], siblings, CLIPPED, 1)
    assert (whole.cost_mean.item(), whole.kl.item()) == pytest.approx((2, 2))
    assert sft_loss(student, rollouts, torch.ones(1), 1).loss.item() == pytest.approx(2)
    assert policy_gradient_loss(student, rollouts, torch.ones(1), only[0], 1).loss.item() == pytest.approx(-1)


WRONG_SHAPES: list[tuple[Rollouts, LeaveOneOut | Tensor, Term]] = [
    (replace(ROLLOUTS, action_mask=MASK[:1]), one_group(2, 3), whole_term(SURE)),
    (replace(ROLLOUTS, sampler_logprobs=torch.zeros(3)), one_group(2, 3), whole_term(SURE)),
    (replace(ROLLOUTS, credited=torch.ones(3, dtype=torch.bool)), one_group(2, 3), whole_term(SURE)),
    (replace(ROLLOUTS, emphasis=torch.ones(3)), one_group(2, 3), whole_term(SURE)),
    (ROLLOUTS, torch.zeros(2), whole_term(SURE)),
    (ROLLOUTS, torch.zeros(1, 3), whole_term(SURE)),
    (ROLLOUTS, one_group(3, 3), whole_term(SURE)),
    (ROLLOUTS, replace(one_group(2, 3), half=torch.zeros(1)), whole_term(SURE)),
    (ROLLOUTS, one_group(2, 2), whole_term(SURE)),
    (ROLLOUTS, one_group(2, 3), WholeTerm("teacher", FullVocabulary(SURE), torch.ones(3))),
    (ROLLOUTS, one_group(2, 3), replace(TestPartialTerms.label, weights=torch.ones(2))),
    (ROLLOUTS, one_group(2, 3), replace(TestDrawnTerms.term, drawn=MASK[:1])),
    (ROLLOUTS, one_group(2, 3), replace(TestDrawnTerms.term, probability=torch.ones(2))),
]


@pytest.mark.parametrize(("rollouts", "baseline", "term"), WRONG_SHAPES)
def test_tensors_that_do_not_fit_are_refused(rollouts: Rollouts, baseline: LeaveOneOut | Tensor, term: Term) -> None:
    with pytest.raises(ValueError, match="has shape"):
        charge(rollouts=rollouts, baseline=baseline, terms=[term])


def test_logits_without_a_dimension_for_each_of_rollouts_tokens_and_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match=r"logits have shape \(3, 2\), not \[B, T, V\]"):
        charge(logits=LOGITS[0])


# Properties over random batches: groups of rollouts of any length, empty ones among them, with every kind of term.


def random_batch(seed: int, masks: list[list[bool]]) -> tuple[Tensor, Rollouts, list[Term], LeaveOneOut]:
    """Rows 2i and 2i + 1 are siblings; terms of every kind, some absent on some rows."""
    numbers = torch.Generator().manual_seed(seed)
    mask = torch.tensor(masks)
    num_rows, length = mask.shape
    logits = torch.randn((num_rows, length, 5), generator=numbers, dtype=torch.float64)
    ids = torch.randint(5, mask.shape, generator=numbers)
    rollouts = make_rollouts(ids, mask, logits)
    rollouts = replace(
        rollouts,
        sampler_logprobs=rollouts.sampler_logprobs + 0.3 * torch.randn(mask.shape, generator=numbers),
        credited=torch.rand(num_rows, generator=numbers) < 0.8,
    )
    teacher = torch.randn((num_rows, length, 5), generator=numbers).log_softmax(-1)
    logprobs, best = torch.randn((num_rows, length, 5), generator=numbers).log_softmax(-1).topk(2)
    tail = (-logprobs.exp().sum(-1)).log1p()
    samples = torch.randint(5, (num_rows, length, 3), generator=numbers)
    drawn = (torch.rand(mask.shape, generator=numbers) < 0.5) & mask
    labelled = ((torch.rand(mask.shape, generator=numbers) < 0.3) & mask).float()
    present = (torch.rand(num_rows, generator=numbers) < 0.7).float()
    every = torch.ones_like(samples, dtype=torch.bool)
    num_tokens = max(int(mask.sum()), 1)
    terms: list[Term] = [
        WholeTerm("teacher", FullVocabulary(teacher), present),
        WholeTerm("remote", TopK(best, logprobs, tail), present.flip(0) * 0.5),
        DrawnTerm("asked", Samples(samples, every), present, drawn, torch.full(mask.shape, 0.5), 1.0, num_tokens),
        PartialTerm("person", Label(ids.flip(0)), labelled, share=0.3, num_tokens=num_tokens),
    ]
    rows = torch.arange(num_rows)
    return logits, rollouts, terms, LeaveOneOut(rows // 2, torch.zeros_like(rows), torch.zeros(length))


def pick_term(term: Term, rows: Tensor, pad: int) -> Term:
    """The term on some rows, with steps of garbage after its end."""

    def cut(values: Tensor) -> Tensor:
        if values.dim() == 1:
            return values[rows]
        garbage: float = math.nan if values.is_floating_point() else 10**9
        if values.dtype == torch.bool or values is getattr(term, "weights", None):
            garbage = 0
        tail = torch.full((len(rows), pad, *values.shape[2:]), garbage, dtype=values.dtype)
        return torch.cat([values[rows], tail], 1)

    expert = term.expert
    cut_expert: ExpertDistribution
    match expert:
        case FullVocabulary():
            cut_expert = FullVocabulary(cut(expert.logprobs))
        case TopK():
            cut_expert = TopK(cut(expert.ids), cut(expert.logprobs), cut(expert.tail_logprobs))
        case Samples():
            cut_expert = Samples(cut(expert.token_ids), cut(expert.valid))
        case Label():
            cut_expert = Label(cut(expert.token_ids))
    weights = cut(term.weights)
    if isinstance(term, DrawnTerm):
        drawn, probability = cut(term.drawn), cut(term.probability)
        return replace(term, expert=cut_expert, weights=weights, drawn=drawn, probability=probability)
    return replace(term, expert=cut_expert, weights=weights)


def run_on(
    batch: tuple[Tensor, Rollouts, list[Term], LeaveOneOut], rows: Tensor, pad: int, credit: Credit
) -> tuple[DistilLoss, Tensor]:
    """The loss on some rows of a batch, padded with garbage, and its gradient in the unpadded logits of those rows."""
    logits, rollouts, terms, siblings = batch
    own = logits[rows].requires_grad_()
    size = (len(rows), pad)
    padded = Rollouts(
        token_ids=torch.cat([rollouts.token_ids[rows], torch.full(size, -7)], 1),
        action_mask=torch.cat([rollouts.action_mask[rows], torch.zeros(size, dtype=torch.bool)], 1),
        temperature=rollouts.temperature[rows],
        sampler_logprobs=torch.cat([rollouts.sampler_logprobs[rows], torch.full(size, math.nan)], 1),
        credited=rollouts.credited[rows],
        emphasis=rollouts.emphasis[rows],
    )
    result = distil_loss(
        ScoredStudent(torch.cat([own, torch.full((*size, 5), math.nan, dtype=torch.float64)], 1), padded),
        padded,
        [pick_term(term, rows, pad) for term in terms],
        LeaveOneOut(siblings.group[rows], siblings.half[rows], torch.zeros(logits.shape[1] + pad)),
        credit,
        covered_tokens=int(rollouts.action_mask.sum()),
    )
    return result, torch.autograd.grad(result.loss, own)[0]


masks = (
    st.integers(1, 6)
    .flatmap(lambda length: st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=4, max_size=4))
    .filter(lambda rows: any(map(any, rows)))
)
credits = st.builds(
    replace,
    st.just(DEFAULT),
    clip=st.sampled_from([0.5, math.inf]),
    cost=st.sampled_from(CostKind),
    reach=st.sampled_from(Reach),
)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31), masks=masks, credit=credits, pad=st.integers(1, 3))
def test_padding_changes_no_value_and_no_gradient(seed: int, masks: list[list[bool]], credit: Credit, pad: int) -> None:
    batch = random_batch(seed, masks)
    rows = torch.arange(4)
    (bare, bare_gradient), (padded, padded_gradient) = (run_on(batch, rows, size, credit) for size in (0, pad))
    assert torch.allclose(bare_gradient, padded_gradient, rtol=0, atol=1e-12)
    assert bare.loss.item() == pytest.approx(padded.loss.item(), abs=1e-12)
    for name in ("cost", "cost_to_go", "baseline", "excess", "ratio", "action_logprobs"):
        inside, outside = getattr(padded, name).split([len(masks[0]), pad], 1)
        assert torch.allclose(inside, getattr(bare, name), rtol=0, atol=1e-12)
        assert outside.abs().max() == 0


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31), masks=masks.filter(lambda rows: any(rows[0] + rows[1]) and any(rows[2] + rows[3])))
def test_micro_batches_of_whole_groups_add_up_to_the_batch(seed: int, masks: list[list[bool]]) -> None:
    batch = random_batch(seed, masks)
    whole, gradient = run_on(batch, torch.arange(4), 0, DEFAULT)
    pieces = [run_on(batch, rows, 0, DEFAULT) for rows in (torch.tensor([0, 1]), torch.tensor([2, 3]))]
    assert torch.allclose(gradient, torch.cat([piece for _, piece in pieces]), atol=1e-12)
    for name in ("loss", "local", "partial", "future", "cost_mean", "kl", "num_future_tokens", "num_future_rows"):
        parts = sum(getattr(result, name).item() for result, _ in pieces)
        assert parts == pytest.approx(getattr(whole, name).item(), abs=1e-12)
    for index, part in enumerate(whole.parts):
        for name in ("num_tokens", "weight", "local", "future"):
            parts = sum(getattr(result.parts[index], name).item() for result, _ in pieces)
            assert parts == pytest.approx(getattr(part, name).item(), abs=1e-12)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31), masks=masks, credit=credits)
def test_only_action_tokens_are_touched_and_the_terms_parts_add_up(
    seed: int, masks: list[list[bool]], credit: Credit
) -> None:
    result, gradient = run_on(random_batch(seed, masks), torch.arange(4), 0, credit)
    off = ~torch.tensor(masks)
    assert gradient.isfinite().all()
    assert gradient[off].abs().sum() == 0
    assert gradient.sum(-1).abs().max() < 1e-12
    for ledger in (
        result.cost,
        result.cost_to_go,
        result.baseline,
        result.excess,
        result.ratio,
        result.action_logprobs,
    ):
        assert ledger.isfinite().all()
        assert ledger[off].abs().sum() == 0
    assert result.excess.abs().max() <= credit.clip
    assert result.ratio.max() <= 2
    assert sum(part.future.item() for part in result.parts) == pytest.approx(result.future.item(), abs=1e-9)
    assert sum(part.local.item() for part in result.parts) == pytest.approx((result.local + result.partial).item())


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_rollouts_of_a_single_token_have_no_cost_to_go(seed: int) -> None:
    result, _ = run_on(random_batch(seed, [[True], [True], [True], [False]]), torch.arange(4), 0, DEFAULT)
    assert result.cost_to_go.abs().max() == 0
    assert result.excess.abs().max() == 0
    assert result.future.item() == 0
