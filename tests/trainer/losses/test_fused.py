"""The fused reading equals the plain one, values and gradients, and makes no tensor over the whole vocabulary."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainer.losses.tabular import DEFAULT, make_rollouts
from trainer.losses import fused
from trainer.losses.credit import LeaveOneOut, LocalRatio
from trainer.losses.distil import DistilLoss, distil_loss, forward_ce_loss, paper_loss, reverse_kl_loss, sdpo_loss
from trainer.losses.fused import FusedStudent
from trainer.losses.imitation import SftLoss, sft_loss
from trainer.losses.reward import RewardLoss, policy_gradient_loss
from trainer.losses.student import Rollouts, ScoredStudent, Student
from trainer.losses.terms import (
    DrawnTerm,
    FullVocabulary,
    HiddenStates,
    Label,
    PartialTerm,
    Samples,
    Term,
    TopK,
    WholeTerm,
    tempered_logprobs,
)

VOCABULARY, WIDTH = 23, 5
Batch = tuple[Tensor, Tensor, Rollouts, list[Term], list[Term]]
Result = DistilLoss | RewardLoss | SftLoss
Loss = Callable[[Student, Rollouts, Sequence[Term]], Result]


def make_batch(seed: int, dtype: torch.dtype, vocabulary: int = VOCABULARY, width: int = WIDTH) -> Batch:
    """Hidden states, output weights, rollouts at two temperatures, and terms of every kind for each reading."""
    numbers = torch.Generator().manual_seed(seed)
    size = (4, 6)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=numbers, dtype=torch.float64) * scale).to(dtype)

    hidden, weight = draw(*size, width), draw(vocabulary, width, scale=2 / width**0.5)
    mask = torch.rand(size, generator=numbers) < 0.8
    mask[:, 0] = True
    ids = torch.randint(vocabulary, size, generator=numbers)
    rollouts = make_rollouts(ids, mask, hidden @ weight.T)
    rollouts = replace(
        rollouts,
        temperature=torch.tensor([1.0, 0.7, 1.0, 1.3]),
        sampler_logprobs=rollouts.sampler_logprobs + draw(*size, scale=0.2),
        credited=torch.tensor([True, True, False, True]),
        emphasis=torch.tensor([1.0, 0.5, 1.0, 0.25]),
    )
    shown, here = draw(*size, width), torch.tensor([1.0, 0.0, 1.0, 1.0])
    logprobs, best = draw(*size, vocabulary).log_softmax(-1).topk(3)
    logprobs[:2, ..., 2], best[:2, ..., 2] = -torch.inf, 0  # two tokens listed and one place of padding
    tail = (-logprobs.exp().sum(-1)).log1p()
    samples = torch.randint(vocabulary, (*size, 2), generator=numbers)
    drawn = (torch.rand(size, generator=numbers) < 0.5) & mask
    labelled = ((torch.rand(size, generator=numbers) < 0.3) & mask).to(dtype)
    others: list[Term] = [
        WholeTerm("remote", TopK(best, logprobs, tail), here.flip(0)),
        DrawnTerm(
            "asked", Samples(samples, samples >= 0), here, drawn, torch.full(size, 0.5), share=1.0, num_tokens=24
        ),
        PartialTerm("person", Label(ids.flip(0)), labelled, share=0.3, num_tokens=24),
    ]
    plain = WholeTerm("teacher", FullVocabulary(tempered_logprobs(shown @ weight.T, 0.5)), here)
    return hidden, weight, rollouts, [plain, *others], [replace(plain, expert=HiddenStates(shown, 0.5)), *others]


def distil(student: Student, rollouts: Rollouts, terms: Sequence[Term]) -> DistilLoss:
    siblings = LeaveOneOut(torch.tensor([0, 0, 1, 1]), torch.zeros(4), torch.zeros(6))
    return distil_loss(student, rollouts, terms, siblings, DEFAULT, 24, LocalRatio.PREFIX)


LOSSES: dict[str, Loss] = {
    "distil": distil,
    "forward_ce": lambda student, rollouts, terms: forward_ce_loss(student, rollouts, terms, 24),
    "paper": lambda student, rollouts, terms: paper_loss(student, rollouts, terms[:1], 4, 24),
    "sdpo": lambda student, rollouts, terms: sdpo_loss(student, rollouts, terms[:1], 0.5, 4, 24),
    "sdpo on all tokens": lambda student, rollouts, terms: sdpo_loss(student, rollouts, terms[:1], 0.5, VOCABULARY, 24),
    "reverse_kl": lambda student, rollouts, terms: reverse_kl_loss(student, rollouts, terms[:1], 24),
    "grpo": lambda student, rollouts, _: policy_gradient_loss(
        student, rollouts, torch.tensor([1.0, -1.0, 0.0, 2.0]), rollouts.credited, 24
    ),
    "sft": lambda student, rollouts, _: sft_loss(student, rollouts, torch.tensor([1.0, 0.0, 2.0, 0.5]), 48),
}


def run(loss: Loss, batch: Batch, fused_reading: bool, train_head: bool = True) -> tuple[Tensor, list[Tensor]]:
    hidden, weight, rollouts, plain, unprojected = batch
    hidden = hidden.clone().requires_grad_()
    weight = weight.clone().requires_grad_(train_head)
    if fused_reading:
        value = loss(FusedStudent(hidden, weight, rollouts), rollouts, unprojected).loss
    else:
        value = loss(ScoredStudent(hidden @ weight.T, rollouts), rollouts, plain).loss
    wanted = [hidden, weight] if train_head else [hidden]
    return value.detach(), list(torch.autograd.grad(value, wanted))


@pytest.fixture(params=[(1024, 256, 8192), (7, 3, 5)], ids=["one tile", "many tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, tokens, wide = request.param
    monkeypatch.setattr(fused, "TILE_ROWS", rows)
    monkeypatch.setattr(fused, "TOKENS", tokens)
    monkeypatch.setattr(fused, "WIDE_TILE_ROWS", wide)
    monkeypatch.setattr(fused, "GATHERED", 2 * WIDTH * tokens)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_every_objective_has_the_same_value_and_gradients(name: str, dtype: torch.dtype, tolerance: float) -> None:
    for seed in range(3):
        batch = make_batch(seed, dtype)
        (plain, plain_gradients), (value, gradients) = (run(LOSSES[name], batch, way) for way in (False, True))
        assert abs(value - plain) < tolerance
        assert plain_gradients[0].abs().max() > 1e-3
        for gradient, expected in zip(gradients, plain_gradients, strict=True):
            assert (gradient - expected).abs().max() < tolerance


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("name", list(LOSSES))
def test_the_ledger_keeps_the_same_of_both_readings(name: str) -> None:
    """All that a loss comes with, of every row and token: costs, entropies, gaps, shares, counts."""
    hidden, weight, rollouts, plain, unprojected = make_batch(1, torch.float64)
    scored = LOSSES[name](ScoredStudent(hidden @ weight.T, rollouts), rollouts, plain)
    read = LOSSES[name](FusedStudent(hidden, weight, rollouts), rollouts, unprojected)
    kept, expected = dict(tensors_of("", read)), dict(tensors_of("", scored))
    assert kept.keys() == expected.keys()
    assert len(kept) >= 4
    for key, tensor in kept.items():
        assert torch.allclose(tensor, expected[key], rtol=0, atol=1e-10), key


def tensors_of(name: str, value: object) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a result, and in the results it holds, by where it is."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, tuple):
        for number, one in enumerate(value):
            yield from tensors_of(f"{name}[{number}]", one)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_of(f"{name}.{field.name}", getattr(value, field.name))


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_frozen_output_layer_gets_no_gradient_and_changes_none(name: str) -> None:
    batch = make_batch(3, torch.float64)
    (_, [gradient, _]), (_, [alone]) = (run(LOSSES[name], batch, True, train_head=way) for way in (True, False))
    assert torch.equal(gradient, alone)


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("fused_reading", [True, False])
def test_no_gradient_flows_into_an_expert(name: str, fused_reading: bool) -> None:
    hidden, weight, rollouts, *terms = make_batch(3, torch.float64)
    experts = [term.expert for term in terms[0 if not fused_reading else 1]]
    said = [
        value.requires_grad_()
        for expert in experts
        for value in vars(expert).values()
        if isinstance(value, Tensor) and value.is_floating_point()
    ]
    assert len(said) == 3  # the teacher's, and the remote top-K with its tail
    student_states = hidden.clone().requires_grad_()
    student: Student = FusedStudent(student_states, weight, rollouts)
    if not fused_reading:
        student = ScoredStudent(student_states @ weight.T, rollouts)
    loss = LOSSES[name](student, rollouts, terms[1 if fused_reading else 0]).loss
    slopes = torch.autograd.grad(loss, [student_states, *said], allow_unused=True)
    assert [slope is not None for slope in slopes] == [True, False, False, False]


@pytest.mark.parametrize("name", ["distil", "forward_ce", "paper", "sdpo", "reverse_kl"])
@pytest.mark.parametrize("fused_reading", [True, False])
def test_experts_on_probation_alone_give_no_objective_anything(name: str, fused_reading: bool) -> None:
    hidden, weight, rollouts, plain, unprojected = make_batch(0, torch.float64)
    silent: list[list[Term]] = [
        [replace(term, weights=torch.zeros_like(term.weights)) for term in terms] for terms in (plain, unprojected)
    ]
    value, [gradient, _] = run(LOSSES[name], (hidden, weight, rollouts, silent[0], silent[1]), fused_reading)
    assert (value.item(), gradient.abs().sum().item()) == (0, 0)


def test_an_entropy_is_never_below_zero_however_sure_the_distribution_is() -> None:
    numbers = torch.Generator().manual_seed(8)
    weight = torch.randn((50, 4), generator=numbers) * 30
    hidden = weight[:24].view(4, 6, 4)
    *_, rollouts, _, _ = make_batch(3, torch.float32)
    student = FusedStudent(hidden, weight, rollouts)
    expectation = student.expect(HiddenStates(hidden, 1.0), torch.ones(len(student.ids), dtype=torch.bool))
    assert student.entropy().min() == 0
    assert expectation.entropy.min() == 0


@pytest.mark.parametrize("name", ["distil", "reverse_kl", "sdpo"])
@pytest.mark.usefixtures("tiles")
def test_scores_far_beyond_what_an_exponential_holds_are_read_alike(name: str) -> None:
    hidden, weight, rollouts, *_ = make_batch(6, torch.float64)
    shown, rollouts = hidden.flip(0) * 500, replace(rollouts, sampler_logprobs=rollouts.sampler_logprobs * 500)
    hidden = hidden * 500
    assert (hidden @ weight.T).abs().max() > 1_000
    here = torch.ones(4)
    plain: list[Term] = [WholeTerm("teacher", FullVocabulary(tempered_logprobs(shown @ weight.T, 1.0)), here)]
    unprojected: list[Term] = [WholeTerm("teacher", HiddenStates(shown, 1.0), here)]
    batch = hidden, weight, rollouts, plain, unprojected
    (expected, slopes), (value, gradients) = (run(LOSSES[name], batch, way) for way in (False, True))
    assert value.isfinite()
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)
    for gradient, slope in zip(gradients, slopes, strict=True):
        assert torch.allclose(gradient, slope, atol=1e-8)  # differences of numbers in the hundred thousands


def test_a_real_vocabulary_in_single_precision_is_equal_to_one_part_in_a_hundred_thousand() -> None:
    batch = make_batch(7, torch.float32, vocabulary=49_152, width=64)
    (plain, [expected]), (value, [gradient]) = (run(distil, batch, way, train_head=False) for way in (False, True))
    assert abs(value - plain) < 1e-5
    assert (gradient - expected).abs().max() < 1e-5


def test_a_teacher_that_is_the_student_costs_exactly_nothing() -> None:
    hidden, weight, rollouts, *_ = make_batch(0, torch.float32)
    rollouts = replace(rollouts, temperature=torch.ones(4))
    result = forward_ce_loss(
        FusedStudent(hidden, weight, rollouts),
        rollouts,
        [WholeTerm("teacher", HiddenStates(hidden, 1.0), torch.ones(4))],
        24,
    )
    assert result.cost.abs().max() < 1e-6


@pytest.mark.usefixtures("tiles")
def test_what_is_reported_beside_the_loss_is_the_same() -> None:
    hidden, weight, rollouts, plain, unprojected = make_batch(2, torch.float64)
    one, two = ScoredStudent(hidden @ weight.T, rollouts), FusedStudent(hidden, weight, rollouts)
    assert torch.allclose(one.entropy(), two.entropy())
    assert torch.allclose(one.action_logprobs, two.action_logprobs)
    pairs = (
        (forward_ce_loss(one, rollouts, plain, 24), forward_ce_loss(two, rollouts, unprojected, 24)),
        (reverse_kl_loss(one, rollouts, plain[:1], 24), reverse_kl_loss(two, rollouts, unprojected[:1], 24)),
        (sdpo_loss(one, rollouts, plain[:1], 0.5, 4, 24), sdpo_loss(two, rollouts, unprojected[:1], 0.5, 4, 24)),
    )
    for left, right in pairs:
        assert torch.allclose(left.cost, right.cost)
        assert left.kl.item() == pytest.approx(right.kl.item())
        for mine, theirs in zip(left.parts, right.parts, strict=True):
            assert mine.gap.item() == pytest.approx(theirs.gap.item())
            assert mine.num_compared == theirs.num_compared
            assert torch.allclose(mine.row_local, theirs.row_local)


@pytest.mark.usefixtures("tiles")
def test_a_tail_the_student_hardly_gives_anything_keeps_its_digits() -> None:
    weight = torch.tensor([[30.0], [29.0], [0.0], [0.0]])
    rollouts = make_rollouts(
        torch.zeros((1, 1), dtype=torch.long), torch.ones((1, 1), dtype=torch.bool), weight.T[None]
    )
    expert = TopK(torch.tensor([[[0, 1]]]), torch.tensor([[[0.5, 0.4]]]).log(), torch.tensor([[0.1]]).log())
    slopes = []
    for way in (True, False):
        hidden = torch.ones((1, 1, 1)).requires_grad_()
        head = weight.clone().requires_grad_()
        student = FusedStudent(hidden, head, rollouts) if way else ScoredStudent(hidden @ head.T, rollouts)
        result = forward_ce_loss(student, rollouts, [WholeTerm("remote", expert, torch.ones(1))], 1)
        slopes.append(torch.autograd.grad(result.loss, head)[0])
    assert slopes[0][2:].flatten().tolist() == pytest.approx([-0.05, -0.05], rel=1e-4)
    assert torch.allclose(slopes[0], slopes[1], rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.usefixtures("tiles")
def test_half_precision_weights_are_computed_with_in_single_precision(name: str) -> None:
    hidden, weight, rollouts, _, terms = make_batch(4, torch.float32)
    exactly = FusedStudent(hidden.bfloat16().float(), weight.bfloat16().float(), rollouts)
    exact = LOSSES[name](exactly, rollouts, terms).loss
    half = LOSSES[name](FusedStudent(hidden.bfloat16(), weight.bfloat16(), rollouts), rollouts, terms).loss
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact.item(), rel=1e-5)


def test_no_tensor_over_the_vocabulary_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor that any operation makes on the way, forwards and backwards, is smaller than [N, V]."""
    monkeypatch.setattr(fused, "TILE_ROWS", 64)
    hidden, weight, rollouts, _, terms = make_batch(5, torch.float32, vocabulary=5_000, width=8)
    largest = 0

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for one in result if isinstance(result, tuple | list) else [result]:
                if isinstance(one, Tensor) and one.data_ptr() != weight.data_ptr():
                    largest = max(largest, one.numel())
            return result

    hidden = hidden.requires_grad_()
    with Watch():  # type: ignore[no-untyped-call]
        torch.autograd.backward(distil(FusedStudent(hidden, weight, rollouts), rollouts, terms).loss)
    assert largest < int(rollouts.action_mask.sum()) * 5_000 / 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_states_that_are_no_numbers_are_refused_by_row(value: float) -> None:
    hidden, weight, rollouts, _, terms = make_batch(6, torch.float32)
    bad = hidden.clone()
    bad[1, 0, 2] = value
    with pytest.raises(ValueError, match="row 1, step 0: the student's logits"):
        FusedStudent(bad, weight, rollouts)
    shown = terms[0].expert
    assert isinstance(shown, HiddenStates)
    worse = shown.hidden.clone()
    worse[2, 0, 0] = value
    term = replace(terms[0], expert=HiddenStates(worse, 0.5))
    with pytest.raises(ValueError, match="row 2, step 0: teacher: the expert's logprobs are NaN"):
        forward_ce_loss(FusedStudent(hidden, weight, rollouts), rollouts, [term], 24)


@pytest.mark.usefixtures("tiles")
def test_any_number_of_top_tokens_will_do_and_as_many_as_there_are_leave_no_others() -> None:
    hidden, weight, rollouts, plain, unprojected = make_batch(2, torch.float64)
    for top_k in (1, VOCABULARY - 1, VOCABULARY, VOCABULARY + 1):
        one = sdpo_loss(ScoredStudent(hidden @ weight.T, rollouts), rollouts, plain[:1], 0.5, top_k, 24)
        two = sdpo_loss(FusedStudent(hidden, weight, rollouts), rollouts, unprojected[:1], 0.5, top_k, 24)
        assert one.loss.item() == pytest.approx(two.loss.item())
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        sdpo_loss(FusedStudent(hidden, weight, rollouts), rollouts, unprojected[:1], 0.5, 0, 24)


def test_what_does_not_fit_is_refused() -> None:
    hidden, weight, rollouts, plain, terms = make_batch(6, torch.float32)
    student = FusedStudent(hidden, weight, rollouts)
    with pytest.raises(ValueError, match="hidden has shape"):
        FusedStudent(hidden[:, :, :-1], weight, rollouts)
    with pytest.raises(ValueError, match="outside the vocabulary of 23"):
        FusedStudent(hidden, weight, replace(rollouts, token_ids=rollouts.token_ids + 23))
    with pytest.raises(ValueError, match="needs a ScoredStudent"):
        forward_ce_loss(student, rollouts, plain, 24)
    with pytest.raises(ValueError, match="needs a FusedStudent"):
        forward_ce_loss(ScoredStudent(hidden @ weight.T, rollouts), rollouts, terms, 24)
    shown = terms[0].expert
    assert isinstance(shown, HiddenStates)
    for expert, problem in (
        (HiddenStates(shown.hidden[:1], 0.5), "teacher: hidden has shape"),
        (HiddenStates(shown.hidden[..., :2], 0.5), "the expert's hidden has shape"),
        (HiddenStates(shown.hidden, 0.0), "teacher: temperature must be above 0"),
    ):
        with pytest.raises(ValueError, match=problem):
            forward_ce_loss(student, rollouts, [replace(terms[0], expert=expert)], 24)
