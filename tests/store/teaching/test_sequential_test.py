"""The sequential test of a measurement, by numbers worked out by hand and by simulation."""

import itertools
import math
import random
from collections.abc import Callable

import pytest

from services.contracts.measurements import LOOKS
from services.store.teaching.sequential_test import (
    LEVEL,
    Bounds,
    Decision,
    decide,
    mixing_gain,
    one_sided,
    samples_excess,
    top_k_excess,
)


def test_bounds_are_so_many_standard_errors_of_students_t_from_the_mean() -> None:
    # mean 0, standard deviation sqrt(2), 2 values: standard error 1; t(.95) with one degree of freedom is 6.3138
    found = one_sided([-1.0, 1.0], level=0.05, largest=None)

    assert found.mean == 0.0
    assert found.high == pytest.approx(6.3138, abs=1e-4)
    assert found.low == pytest.approx(-6.3138, abs=1e-4)


def test_bounds_of_pass_rates_do_not_leave_minus_one_to_one() -> None:
    assert one_sided([-1.0, 1.0], level=0.05) == Bounds(0.0, -1.0, 1.0)


def test_the_level_is_shared_over_the_looks() -> None:
    # 8 values of mean .25: four of .5 and four of 0, standard deviation .26726, standard error .09449;
    # t(1 - .1/3) with 7 degrees of freedom is 2.1695
    found = one_sided([0.5, 0.0] * 4)

    assert found.low == pytest.approx(0.25 - 2.1695 * 0.09449, abs=1e-4)


def test_values_that_are_all_alike_have_the_bounds_of_the_widest_spread() -> None:
    # all gaps 1 of 8 tasks: share 1, Wilson's lower end 1 / (1 + z^2 / 8) with z(1 - .1/3) = 1.83391
    found = one_sided([1.0] * 8)

    assert found.low == pytest.approx(2 / (1 + 1.83391**2 / 8) - 1, abs=1e-4)
    assert found.high == pytest.approx(1.0)


def test_one_task_has_no_bounds() -> None:
    with pytest.raises(ValueError, match="no bounds from 1"):
        one_sided([0.5])


@pytest.mark.parametrize(
    ("gap", "net", "is_last", "decision"),
    [
        (Bounds(0.3, 0.1, 0.5), Bounds(0.4, 0.2, 0.6), False, Decision.TEACHES),
        (Bounds(0.3, 0.1, 0.5), None, False, Decision.TEACHES),
        (Bounds(0.3, 0.1, 0.5), Bounds(0.1, -0.1, 0.3), False, Decision.GO_ON),
        (Bounds(0.3, 0.1, 0.5), Bounds(0.1, -0.1, 0.3), True, Decision.DOES_NOT_TEACH),
        (Bounds(0.3, 0.1, 0.5), Bounds(-0.2, -0.4, 0.0), False, Decision.DOES_NOT_TEACH),
        (Bounds(-0.3, -0.5, -0.1), Bounds(0.4, 0.2, 0.6), False, Decision.DOES_NOT_TEACH),
        (Bounds(0.0, -0.1, 0.1), None, False, Decision.GO_ON),
    ],
)
def test_a_source_teaches_only_while_gap_and_net_are_above_zero(
    gap: Bounds, net: Bounds | None, is_last: bool, decision: Decision
) -> None:
    assert decide(gap, net, is_last=is_last) is decision


def draw_gap(rng: random.Random, rate_of: Callable[[], tuple[float, float, float]]) -> tuple[float, float]:
    """Gap and net of one task: 4 answers of the student, 8 of the teacher and of the control."""
    student, teacher, control = rate_of()
    passes = [
        sum(rng.random() < rate for _ in range(size)) / size
        for rate, size in ((student, 4), (teacher, 8), (control, 8))
    ]
    return passes[1] - passes[0], passes[1] - passes[2]


def measure(rng: random.Random, rate_of: Callable[[], tuple[float, float, float]]) -> Decision:
    tasks: list[tuple[float, float]] = []
    for look in LOOKS:
        tasks += [draw_gap(rng, rate_of) for _ in range(look - len(tasks))]
        gaps, nets = zip(*tasks, strict=True)
        found = decide(one_sided(gaps), one_sided(nets), is_last=look == LOOKS[-1])
        if found is not Decision.GO_ON:
            return found
    raise AssertionError("the last look decides")


@pytest.mark.parametrize("with_control", [True, False], ids=["control alike", "control at zero"])
def test_a_source_without_a_gap_passes_in_at_most_a_tenth_of_all_measurements(with_control: bool) -> None:
    rng = random.Random(5)

    def rates() -> tuple[float, float, float]:
        rate = rng.random()
        return rate, rate, rate if with_control else 0.0

    found = [measure(rng, rates) for _ in range(1000)]

    assert sum(one is Decision.TEACHES for one in found) <= LEVEL * len(found)


def test_a_source_with_a_gap_of_three_tenths_passes_in_nine_of_ten_measurements() -> None:
    rng = random.Random(6)

    def rates() -> tuple[float, float, float]:
        rate = 0.7 * rng.random()
        return rate, rate + 0.3, rate

    found = [measure(rng, rates) for _ in range(300)]

    assert sum(one is Decision.TEACHES for one in found) >= 0.9 * len(found)


def test_mixing_gains_what_the_expert_finds_likelier_in_the_better_rollout() -> None:
    # scores 1 and 0: each less the other is +1 and -1. Ratios 2 and 1/2 in the first: (2 - 1) + (.5 - 1) = .5;
    # 1/4 in the second: -.75. Mean of 1 * .5 and -1 * -.75: .625
    ratios = [[math.log(2), math.log(0.5)], [math.log(0.25)]]
    gain = mixing_gain([1.0, 0.0], [[top_k_excess(one - 2.0, 0.1, -2.0) for one in own] for own in ratios])

    assert gain == pytest.approx(0.625)


def test_a_top_k_is_counted_up_to_a_ratio_and_outside_it_as_its_tail_allows() -> None:
    assert top_k_excess(0.0, 0.0, math.log(0.01)) == pytest.approx(4.0), "100 times as likely counts 5 times"
    assert top_k_excess(None, 0.05, math.log(0.2)) == pytest.approx(0.05 / 0.2 - 1)
    assert top_k_excess(None, 0.0, math.log(0.2)) == -1.0
    assert top_k_excess(None, 0.0, -math.inf) == -1.0


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_policys_own_top_k_gains_nothing_whatever_was_drawn(k: int) -> None:
    policy = [0.5, 0.25, 0.15, 0.1]
    tail = sum(policy[k:])

    for place, chance in enumerate(policy):
        expert = math.log(chance) if place < k else None
        assert top_k_excess(expert, tail, math.log(chance)) == pytest.approx(0.0)


def test_samples_count_their_share_less_what_the_policys_own_samples_give() -> None:
    # two samples at a token of .1: shares 0, .5 and 1 are 0, 5 and 10 times as likely, counted 0, 5 and 5; the policy's
    # own give these with .81, .18 and .01: .95 on average
    found = [samples_excess(num, 2, math.log(0.1)) for num in (0, 1, 2)]

    assert found == pytest.approx([-0.95, 4.05, 4.05])
    assert samples_excess(3, 3, 0.0) == 0.0
    assert samples_excess(0, 1, -math.inf) == pytest.approx(0.0)


@pytest.mark.parametrize("num_samples", [1, 2, 4])
@pytest.mark.parametrize("chance", [0.02, 0.1, 0.5, 0.9])
def test_the_policys_own_samples_gain_nothing_on_average(num_samples: int, chance: float) -> None:
    # every outcome of so many samples, each a hit or a miss, with its probability
    mean = 0.0
    for outcome in itertools.product((0, 1), repeat=num_samples):
        probability = math.prod(chance if hit else 1 - chance for hit in outcome)
        mean += probability * samples_excess(sum(outcome), num_samples, math.log(chance))

    assert mean == pytest.approx(0.0, abs=1e-12)


def test_a_rollout_without_siblings_has_no_gain() -> None:
    with pytest.raises(ValueError, match="needs siblings"):
        mixing_gain([1.0], [[0.0]])
