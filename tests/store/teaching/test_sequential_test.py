"""The sequential test of a measurement, by numbers worked out by hand and by simulation."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import astuple

import numpy as np
import pytest

from services.contracts.measurements import LOOKS
from services.store.teaching.sequential_test import (
    LEVEL,
    Bounds,
    Decision,
    decide,
    find_bounds,
    grow,
    mixing_gain,
    one_sided,
    samples_excess,
    top_k_excess,
)


def test_a_bet_on_a_higher_mean_gains_with_each_higher_gap() -> None:
    # the shares 1/32, 3/32 .. 31/32 have the mean 1/2, their squares 1/3 - 1/3072. Against the mean 0: 1 + share where
    # the gap is 1, 1 - share where it is -1. Against -1/3 a gap of 1 pays (1 + 1) / (1 - 1/3) = 3 times the stake
    squares = 1 / 3 - 1 / 3072

    assert grow(np.array([1.0]), 0.0) == pytest.approx(1.5)
    assert grow(np.array([1.0, -1.0]), 0.0) == pytest.approx(1 - squares)
    assert grow(np.array([1.0, 1.0]), 0.0) == pytest.approx(1 + 2 / 2 + squares)
    assert grow(np.array([1.0]), -1 / 3) == pytest.approx(1 - 0.5 + 3 * 0.5)


def test_a_bound_is_the_mean_against_which_the_capital_reaches_one_over_the_level() -> None:
    # one gap of 1, level 1/2: the capital doubles where 1/2 + 1/2 * 2 / (1 + mean) = 2, at -1/3; betting on a lower
    # mean only loses. The upper bound is at level .1: the capital is 10 times its start where 1 + mean is 1/9.5
    assert LEVEL == 0.1
    assert astuple(find_bounds([1.0], 0.5)) == pytest.approx((1, -1 / 3, 1))
    assert astuple(find_bounds([-1.0], 0.5)) == pytest.approx((-1, -1, 1 - 1 / 9.5))


def test_eight_tasks_decide_for_the_largest_gap_alone() -> None:
    # gaps of 1: the mean of (1 + share)^8 is about (2^9 - 1) / 9 = 56.8; gaps of 1/2: (1.5^9 - 1) / 4.5 = 8.3 of 8,
    # and (1.5^17 - 1) / 8.5 = 116 of 16 tasks
    assert find_bounds([1.0] * 8, 1 / 50).low > 0 > find_bounds([1.0] * 8, 1 / 60).low
    assert find_bounds([0.5] * 8, 1 / 8).low > 0 > find_bounds([0.5] * 8, 1 / 10).low
    assert find_bounds([0.5] * 16, 1 / 100).low > 0


def test_bounds_of_values_without_ends_are_so_many_standard_errors_of_students_t_from_the_mean() -> None:
    # mean 0, standard deviation sqrt(2), 2 values: standard error 1; the level .2 shared over four looks below, .1
    # above: t(.95) with one degree of freedom is 6.3138, t(.975) 12.7062
    assert astuple(one_sided([-1.0, 1.0], level=0.2)) == pytest.approx((0, -6.3138, 12.7062), abs=1e-4)


def test_one_task_has_no_bounds() -> None:
    with pytest.raises(ValueError, match="no bounds from 1"):
        one_sided([0.5], 0.1)


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


def draw(rng: np.random.Generator, rates: Sequence[float]) -> tuple[float, float]:
    """Gap and net of one task, of four answers of student, teacher and control each."""
    student, teacher, control = rng.binomial(4, np.clip(rates, 0, 1)) / 4
    return float(teacher - student), float(teacher - control)


def measure(rng: np.random.Generator, rates_of: Callable[[], Sequence[float]], level: float) -> Decision:
    tasks: list[tuple[float, float]] = []
    for look in LOOKS:
        tasks += [draw(rng, rates_of()) for _ in range(look - len(tasks))]
        gaps, nets = zip(*tasks, strict=True)
        found = decide(find_bounds(gaps, level), find_bounds(nets, level), is_last=look == LOOKS[-1])
        if found is not Decision.GO_ON:
            return found
    raise AssertionError("the last look decides")


def share_teaching(seed: int, rates_of: Callable[[np.random.Generator], Sequence[float]], level: float) -> float:
    rng = np.random.default_rng(seed)
    found = [measure(rng, lambda: rates_of(rng), level) for _ in range(300)]
    return sum(one is Decision.TEACHES for one in found) / len(found)


def useless(rng: np.random.Generator) -> Sequence[float]:
    """Teacher and student alike, and a bad control."""
    rate = rng.random()
    return rate, rate, 0.0


def ruining(rng: np.random.Generator) -> Sequence[float]:
    """From .9 to 1, and to 0 on one task in ten: no gap on average."""
    return 0.9, 0.0 if rng.random() < 0.1 else 1.0, 0.0


def teaching(rng: np.random.Generator) -> Sequence[float]:
    """What own successes were measured to be on 18 to 24 tasks: a gap of .2 that differs by task as widely as a
    standard error of about .08 says, above a control that does harm."""
    rate = rng.random()
    return rate, rate + rng.normal(0.28, 0.3), rate + rng.normal(-0.1, 0.2)  # .28 is cut to .2 where rates end


@pytest.mark.parametrize("rates_of", [useless, ruining])
def test_what_has_no_gap_passes_in_at_most_a_tenth_of_all_measurements_however_its_gaps_are_spread(
    rates_of: Callable[[np.random.Generator], Sequence[float]],
) -> None:
    assert share_teaching(5, rates_of, LEVEL) <= LEVEL


@pytest.mark.parametrize(("num_shared", "least"), [(1, 0.95), (2, 0.9), (8, 0.75)])
def test_a_gap_of_two_tenths_passes_in_so_many_measurements_by_how_many_share_the_level(
    num_shared: int, least: float
) -> None:
    drawn = np.array([draw(rng, teaching(rng)) for rng in [np.random.default_rng(6)] for _ in range(5000)])
    assert np.mean(drawn[:, 0]) == pytest.approx(0.2, abs=0.02)
    assert np.std(drawn[:, 0]) == pytest.approx(0.36, abs=0.02)

    assert share_teaching(6, teaching, LEVEL / num_shared) >= least


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
