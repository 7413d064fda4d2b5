import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer.losses.costs import StepCost, cross_entropy_cost
from trainer.losses.student import Rollouts, ScoredStudent
from trainer.losses.terms import (
    ExpertDistribution,
    FullVocabulary,
    Label,
    PartialTerm,
    Samples,
    TopK,
    tempered_logprobs,
)

STUDENT = torch.tensor([0.01, 0.02, 0.40, 0.30, 0.20, 0.07], dtype=torch.float64)
EXPERT = torch.tensor([0.60, 0.30, 0.05, 0.03, 0.01, 0.01], dtype=torch.float64)


def read_student(logits: Tensor, ids: Tensor, mask: Tensor, temperature: Tensor) -> ScoredStudent:
    nobody = torch.zeros(len(logits), dtype=torch.bool)
    return ScoredStudent(
        logits, Rollouts(ids, mask, temperature, torch.zeros(mask.shape), credited=nobody, emphasis=(~nobody).float())
    )


def step_cost(student: ScoredStudent, name: str, expert: ExpertDistribution, present: Tensor) -> StepCost:
    term = PartialTerm(name, expert, student.places.spread(present.float()), share=1.0, num_tokens=len(present))
    return cross_entropy_cost(student, term, present)


def one_step(expert: ExpertDistribution, student: Tensor = STUDENT) -> tuple[StepCost, Tensor]:
    """The cost of one rollout of one token, and its gradient in the logits [V]."""
    logits = student.log()[None, None].requires_grad_()
    here = torch.ones((1, 1), dtype=torch.bool)
    reading = read_student(logits, torch.zeros((1, 1), dtype=torch.long), here, torch.ones(1))
    cost = step_cost(reading, "expert", expert, here[0])
    (gradient,) = torch.autograd.grad(cost.cost.sum(), logits)
    return cost, gradient[0, 0]


def top(count: int, expert: Tensor = EXPERT) -> TopK:
    logprobs, ids = expert.log().topk(count)
    rest = (1 - logprobs.exp().sum()).clamp(min=0).log() if count < len(expert) else torch.tensor(-math.inf)
    return TopK(ids[None, None], logprobs[None, None], rest[None, None])


def drawn(counts: list[int]) -> Samples:
    ids = [token for token, count in enumerate(counts) for _ in range(count)]
    return Samples(torch.tensor([[ids]]), torch.ones((1, 1, len(ids)), dtype=torch.bool))


def test_the_full_vocabulary_costs_the_cross_entropy_and_pulls_towards_the_expert() -> None:
    cost, gradient = one_step(FullVocabulary(EXPERT.log()[None, None]))
    assert cost.cost.item() == pytest.approx(-(EXPERT * STUDENT.log()).sum().item())
    assert cost.entropy.item() == pytest.approx(-(EXPERT * EXPERT.log()).sum().item())
    assert gradient.tolist() == pytest.approx((STUDENT - EXPERT).tolist())


def test_a_token_the_expert_rules_out_costs_nothing() -> None:
    cost, gradient = one_step(FullVocabulary(torch.tensor([[[0.0, -math.inf]]])), torch.tensor([0.25, 0.75]))
    assert cost.cost.item() == pytest.approx(math.log(4))
    assert cost.entropy.item() == 0
    assert gradient.tolist() == pytest.approx([-0.75, 0.75])


def test_an_experts_rounding_does_not_make_the_level_of_the_logits_matter() -> None:
    rounded = FullVocabulary(EXPERT.log()[None, None].half().double())
    here = torch.ones((1, 1), dtype=torch.bool)
    costs = []
    for level in (0.0, 1000.0):
        reading = read_student(STUDENT.log()[None, None] + level, torch.zeros_like(here).long(), here, torch.ones(1))
        costs.append(step_cost(reading, "expert", rounded, here[0]).cost.item())
    assert costs[0] == pytest.approx(costs[1], abs=1e-9)


def test_a_top_k_weighs_its_tokens_by_the_students_full_softmax_and_its_tail_as_one() -> None:
    cost, gradient = one_step(top(2))
    assert cost.cost.item() == pytest.approx(-0.6 * math.log(0.01) - 0.3 * math.log(0.02) - 0.1 * math.log(0.97))
    assert cost.entropy.item() == pytest.approx(-0.6 * math.log(0.6) - 0.3 * math.log(0.3) - 0.1 * math.log(0.1))
    _, exact = one_step(FullVocabulary(EXPERT.log()[None, None]))
    assert torch.cosine_similarity(gradient, exact, dim=0) > 0.99
    assert gradient[:2].sum().item() == pytest.approx(0.03 - 0.9)  # mass moves into the set


def test_a_top_k_of_everything_is_the_full_vocabulary() -> None:
    cost, gradient = one_step(top(6))
    full, exact = one_step(FullVocabulary(EXPERT.log()[None, None]))
    assert cost.cost.item() == pytest.approx(full.cost.item())
    assert cost.entropy.item() == pytest.approx(full.entropy.item())
    assert gradient.tolist() == pytest.approx(exact.tolist())


def test_a_tail_beside_a_top_k_of_everything_means_nothing() -> None:
    everything = top(6)
    cost, gradient = one_step(replace(everything, tail_logprobs=torch.tensor([[math.log(1e-3)]])))
    expected, exact = one_step(everything)
    assert cost.cost.item() == pytest.approx(expected.cost.item())
    assert cost.entropy.item() == pytest.approx(expected.entropy.item())
    assert gradient.tolist() == pytest.approx(exact.tolist())


distributions = st.lists(st.floats(0.01, 1.0), min_size=6, max_size=6).map(
    lambda weights: torch.tensor(weights, dtype=torch.float64) / sum(weights)
)


@given(student=distributions, expert=distributions, count=st.integers(1, 6))
def test_a_coarser_expert_never_costs_more(student: Tensor, expert: Tensor, count: int) -> None:
    coarse, _ = one_step(top(count, expert), student)
    full, _ = one_step(FullVocabulary(expert.log()[None, None]), student)
    assert coarse.cost.item() <= full.cost.item() + 1e-12
    assert (coarse.cost - coarse.entropy).item() >= -1e-12
    assert (coarse.cost - coarse.entropy).item() <= (full.cost - full.entropy).item() + 1e-12


@given(expert=distributions, count=st.integers(1, 6))
def test_an_expert_the_student_agrees_with_has_no_divergence(expert: Tensor, count: int) -> None:
    for distribution in (top(count, expert), FullVocabulary(expert.log()[None, None])):
        cost, gradient = one_step(distribution, expert)
        assert (cost.cost - cost.entropy).abs().item() < 1e-12
        assert gradient.abs().max() < 1e-12


def test_a_tail_the_student_hardly_gives_anything_keeps_its_digits() -> None:
    logits = torch.tensor([[[30.0, 29.0, 0.0, 0.0]]]).requires_grad_()
    here = torch.ones((1, 1), dtype=torch.bool)
    reading = read_student(logits, torch.zeros((1, 1), dtype=torch.long), here, torch.ones(1))
    expert = TopK(torch.tensor([[[0, 1]]]), torch.tensor([[[0.5, 0.4]]]).log(), torch.tensor([[0.1]]).log())
    cost = step_cost(reading, "expert", expert, here[0]).cost
    total = math.log(math.exp(30) + math.exp(29) + 2)
    exact = 0.5 * (total - 30) + 0.4 * (total - 29) + 0.1 * (total - math.log(2))
    assert cost.item() == pytest.approx(exact, rel=1e-6)
    (gradient,) = torch.autograd.grad(cost.sum(), logits)
    assert gradient[0, 0, 2:].tolist() == pytest.approx([-0.05, -0.05], rel=1e-4)


def test_a_padded_top_k_entry_is_neither_listed_nor_taken_from_the_tail() -> None:
    full = top(2, EXPERT.flip(0))  # tokens 5 and 4: what padding points at is in the tail
    padded = TopK(
        torch.cat([full.ids, torch.tensor([[[-1, 0]]])], -1),
        torch.cat([full.logprobs, torch.full((1, 1, 2), -math.inf)], -1),
        full.tail_logprobs,
    )
    cost, gradient = one_step(padded)
    expected, exact = one_step(full)
    assert cost.cost.item() == pytest.approx(expected.cost.item())
    assert gradient.tolist() == pytest.approx(exact.tolist())


@pytest.mark.parametrize("listed", range(6))
def test_padding_is_never_taken_for_a_token_that_is_listed(listed: int) -> None:
    log_half = torch.full((1, 1), math.log(0.5))
    cost, _ = one_step(TopK(torch.tensor([[[listed, 0]]]), torch.tensor([[[math.log(0.5), -math.inf]]]), log_half))
    rest = 1 - STUDENT[listed]
    assert cost.cost.item() == pytest.approx(-0.5 * (STUDENT[listed].log() + rest.log()).item())


def test_samples_in_the_experts_own_proportions_give_its_cross_entropy_and_gradient() -> None:
    cost, gradient = one_step(drawn([60, 30, 5, 3, 1, 1]))
    assert cost.cost.item() == pytest.approx(-(EXPERT * STUDENT.log()).sum().item())
    assert gradient.tolist() == pytest.approx((STUDENT - EXPERT).tolist())
    assert cost.entropy.item() == 0  # unknown: the cost of samples stays a cross-entropy


def test_one_sample_is_unbiased_in_value_and_gradient() -> None:
    costs, gradients = zip(*(one_step(drawn([int(i == token) for i in range(6)])) for token in range(6)), strict=True)
    mean = sum(p * cost.cost.item() for p, cost in zip(EXPERT.tolist(), costs, strict=True))
    assert mean == pytest.approx(-(EXPERT * STUDENT.log()).sum().item())
    assert (EXPERT[:, None] * torch.stack(gradients)).sum(0).tolist() == pytest.approx((STUDENT - EXPERT).tolist())


def test_a_missing_sample_leaves_the_mean_of_the_others() -> None:
    some = Samples(torch.tensor([[[0, 99, 1]]]), torch.tensor([[[True, False, True]]]))
    cost, _ = one_step(some)
    assert cost.cost.item() == pytest.approx(-(math.log(0.01) + math.log(0.02)) / 2)


def test_a_label_costs_the_surprise_at_it() -> None:
    cost, gradient = one_step(Label(torch.tensor([[2]])))
    assert cost.cost.item() == pytest.approx(-math.log(0.4))
    assert gradient.tolist() == pytest.approx([0.01, 0.02, -0.6, 0.3, 0.2, 0.07])


def test_a_temperature_below_one_sharpens_a_teacher() -> None:
    sharp = tempered_logprobs(torch.tensor([0.6, 0.3, 0.1]).log(), 0.5).exp()
    assert sharp.tolist() == pytest.approx([0.36 / 0.46, 0.09 / 0.46, 0.01 / 0.46])
    with pytest.raises(ValueError, match="temperature"):
        tempered_logprobs(torch.zeros(2), 0.0)


def test_the_student_is_read_at_its_sampling_temperature() -> None:
    logits = torch.tensor([[[0.6, 0.3, 0.1]], [[0.6, 0.3, 0.1]]]).log()
    reading = read_student(
        logits, torch.tensor([[0], [0]]), torch.ones((2, 1), dtype=torch.bool), torch.tensor([0.5, 1.0])
    )
    assert reading.action_logprobs.exp().tolist() == pytest.approx([0.36 / 0.46, 0.6])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_read_in_single(dtype: torch.dtype) -> None:
    logits = torch.tensor([[[0.1, 0.2, 0.3]]], dtype=dtype)
    reading = read_student(logits, torch.tensor([[0]]), torch.tensor([[True]]), torch.ones(1))
    assert reading.action_logprobs.dtype == torch.float32
    assert reading.action_logprobs.item() == pytest.approx(logits.float().log_softmax(-1)[0, 0, 0].item())


# What is refused: two rollouts of two tokens over three; in the second a step is bad.

MASK = torch.ones((2, 2), dtype=torch.bool)
UNIFORM = torch.full((2, 2, 3), math.log(1 / 3))


def cost_of(expert: ExpertDistribution, present: Tensor | None = None) -> StepCost:
    reading = read_student(torch.zeros(2, 2, 3), torch.zeros((2, 2), dtype=torch.long), MASK, torch.ones(2))
    return step_cost(reading, "tutor", expert, MASK.flatten() if present is None else present)


def spoiled(tensor: Tensor, value: float | Tensor) -> Tensor:
    result = tensor.clone()
    result[1, 1] = value
    return result


IDS = torch.tensor([0, 1]).expand(2, 2, 2)
HALVES = torch.full((2, 2, 2), math.log(0.5))
THREE, THIRDS = torch.arange(3).expand(2, 2, 3), UNIFORM
NO_TAIL = torch.full((2, 2), -math.inf)
ONE = torch.zeros((2, 2, 1), dtype=torch.long)

BAD_EXPERTS = [
    (FullVocabulary(spoiled(UNIFORM, math.nan)), "NaN"),
    (FullVocabulary(spoiled(UNIFORM, -2.0)), "sum to 1"),
    (FullVocabulary(spoiled(UNIFORM, math.inf)), "sum to 1"),
    (TopK(IDS, spoiled(HALVES, math.nan), NO_TAIL), "NaN"),
    (TopK(IDS, HALVES, spoiled(NO_TAIL, math.nan)), "NaN"),
    (TopK(IDS, HALVES, spoiled(NO_TAIL, -1.0)), "sum to 1"),
    (TopK(spoiled(IDS, 3), HALVES, NO_TAIL), "outside the vocabulary"),
    (TopK(spoiled(IDS, -1), HALVES, NO_TAIL), "outside the vocabulary"),
    (TopK(spoiled(IDS, torch.tensor([0, 3])), HALVES, NO_TAIL), "outside the vocabulary"),
    (TopK(spoiled(IDS, 1), HALVES, NO_TAIL), "listed twice"),
    (TopK(spoiled(THREE, torch.tensor([0, 2, 2])), THIRDS, NO_TAIL), "listed twice"),
    (Samples(spoiled(ONE, 3), ONE == 0), "outside the vocabulary"),
    (Samples(spoiled(ONE, -1), ONE == 0), "outside the vocabulary"),
    (Samples(torch.cat([ONE, spoiled(ONE, 3)], 2), torch.ones((2, 2, 2), dtype=torch.bool)), "outside the vocabulary"),
    (Samples(ONE, spoiled(ONE == 0, False)), "no sample"),
    (Label(spoiled(ONE[:, :, 0], 3)), "outside the vocabulary"),
]


@pytest.mark.parametrize(("expert", "reason"), BAD_EXPERTS)
def test_a_bad_expert_is_refused_by_name_row_and_step(expert: ExpertDistribution, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"row 1, step 1: tutor.*{reason}"):
        cost_of(expert)


@pytest.mark.parametrize(("expert", "reason"), BAD_EXPERTS)
def test_what_an_expert_says_where_it_is_absent_is_never_read(expert: ExpertDistribution, reason: str) -> None:
    cost = cost_of(expert, present=torch.tensor([True, True, True, False]))
    assert cost.cost.tolist() == pytest.approx([*[math.log(3)] * 3, 0.0])
    assert cost.entropy[3] == 0


@pytest.mark.parametrize("mass", [0.991, 1.009])
def test_an_expert_may_be_off_by_less_than_a_hundredth_but_no_more(mass: float) -> None:
    further = 1 + 1.25 * (mass - 1)
    for sum_of_all, refused in ((mass, False), (further, True)):
        shift = math.log(sum_of_all)
        for expert in (FullVocabulary(UNIFORM + shift), TopK(IDS, HALVES + shift, NO_TAIL)):
            if refused:
                with pytest.raises(ValueError, match=r"row 0, step 0: tutor.*sum to 1"):
                    cost_of(expert)
            else:
                assert cost_of(expert).cost.isfinite().all()


def test_storage_in_half_precision_is_no_reason_to_refuse() -> None:
    numbers = torch.Generator().manual_seed(0)
    stored = torch.randn((2, 2, 3), generator=numbers).log_softmax(-1).half()
    assert cost_of(FullVocabulary(stored)).cost.isfinite().all()


@pytest.mark.parametrize(
    "expert",
    [
        FullVocabulary(torch.zeros(2, 2, 4)),
        FullVocabulary(torch.zeros(2, 3, 3)),
        TopK(IDS[:1], HALVES, NO_TAIL),
        TopK(IDS[:1], HALVES[:1], NO_TAIL),
        TopK(IDS, HALVES[:, :, :1], NO_TAIL),
        TopK(IDS, HALVES, NO_TAIL[:1]),
        Samples(ONE[:, :, 0], ONE[:, :, 0] == 0),
        Samples(ONE, IDS == 0),
        Label(ONE),
    ],
)
def test_an_expert_of_another_shape_is_refused(expert: ExpertDistribution) -> None:
    with pytest.raises(ValueError, match=r"tutor: \w+ has shape"):
        cost_of(expert)


def read(
    logits: Tensor | None = None, ids: Tensor | None = None, mask: Tensor = MASK, temperature: Tensor | None = None
) -> None:
    read_student(
        torch.zeros(2, 2, 3) if logits is None else logits,
        ONE[:, :, 0] if ids is None else ids,
        mask,
        torch.ones(2) if temperature is None else temperature,
    )


def test_a_batch_without_an_action_token_is_refused() -> None:
    with pytest.raises(ValueError, match="no action token in the batch"):
        read(mask=torch.zeros_like(MASK))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_numbers_are_refused_by_row(value: float) -> None:
    with pytest.raises(ValueError, match="row 1, step 1: the student's logits"):
        read(logits=spoiled(torch.zeros(2, 2, 3), value))


@pytest.mark.parametrize("token", [-1, 3])
def test_a_token_outside_the_vocabulary_is_refused_by_row(token: int) -> None:
    with pytest.raises(ValueError, match="row 1, step 1: token id outside the vocabulary of 3"):
        read(ids=spoiled(ONE[:, :, 0], token))


def test_a_temperature_of_nothing_is_refused_by_row() -> None:
    with pytest.raises(ValueError, match="row 1: temperature"):
        read(temperature=torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("name", ["logits", "ids", "mask", "temperature"])
def test_rollouts_of_another_shape_are_refused(name: str) -> None:
    wrong = {"logits": torch.zeros(2, 3), "ids": ONE, "mask": MASK[:1], "temperature": torch.ones(3)}
    with pytest.raises(ValueError, match="shape"):
        read(**{name: wrong[name]})
