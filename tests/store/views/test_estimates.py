"""The report's figures, against numbers worked out by hand."""

import math
from uuid import UUID

import pytest

from services.contracts.evaluations import TaskResult
from services.store.views.estimates import (
    DIFFERENCE_OF_SHARES,
    SHARE,
    Interval,
    paired_difference,
    pass_at_k,
    say,
    score,
    t_interval,
)


def result(number: int, family: str, num_passed: int, num_judged: int = 4) -> TaskResult:
    return TaskResult(
        task_id=UUID(int=number),
        key=str(number),
        domain="math",
        family=family,
        num_judged=num_judged,
        num_passed=num_passed,
        num_unjudged=0,
        mean_tokens=3.0,
    )


def test_pass_at_k_is_one_minus_the_chance_that_k_draws_without_replacement_all_fail() -> None:
    assert pass_at_k(4, 1, 1) == 0.25
    assert pass_at_k(4, 1, 2) == pytest.approx(1 - 3 / 6)
    assert pass_at_k(8, 3, 8) == 1.0
    assert pass_at_k(8, 0, 8) == 0.0


def test_pass_at_k_refuses_more_draws_than_samples() -> None:
    with pytest.raises(ValueError, match="pass@9"):
        pass_at_k(8, 1, 9)


def test_the_interval_of_three_values_uses_students_t_with_two_degrees_of_freedom() -> None:
    interval = t_interval([0.1, 0.2, 0.3], DIFFERENCE_OF_SHARES)
    half = 4.302652729911275 * 0.1 / math.sqrt(3)
    assert interval.mean == pytest.approx(0.2)
    assert interval.low == pytest.approx(0.2 - half)
    assert interval.high == pytest.approx(0.2 + half)


def test_one_family_has_a_mean_but_no_interval() -> None:
    interval = t_interval([0.5], SHARE)
    assert math.isnan(interval.low)
    assert say(interval) == "0.500 (no interval)"


def test_an_interval_of_shares_ends_where_shares_end() -> None:
    found = t_interval([0.0, 1.0], SHARE)
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)
    assert say(found) == "0.500 [0.000, 1.000] not reliable"
    rise = t_interval([1.0, -0.5, 1.0], DIFFERENCE_OF_SHARES)
    assert (rise.high, rise.is_reliable) == (1.0, False)


@pytest.mark.parametrize("value", [0.0, 0.3, 0.5, 1.0])
def test_values_that_are_all_alike_still_leave_doubt(value: float) -> None:
    few, many = t_interval([value] * 2, SHARE), t_interval([value] * 50, SHARE)
    assert few.low <= many.low <= value <= many.high <= few.high
    assert few.high - few.low > many.high - many.low > 0.05
    assert few.high - few.low > 0.6
    assert (few.is_reliable, many.is_reliable) == (False, True)


def test_all_alike_at_the_end_is_wilsons_interval_of_as_many_trials() -> None:
    found = t_interval([1.0] * 10, SHARE)
    z = 1.959963984540054
    assert found.low == pytest.approx(1 / (1 + z**2 / 10))  # Wilson's lower end where all of 10 passed
    assert found.high == pytest.approx(1.0)


def test_a_difference_is_said_with_its_sign() -> None:
    assert say(Interval(0.25, 0.125, 0.375, 9), "+") == "+0.250 [+0.125, +0.375]"


def test_a_family_counts_once_however_many_tasks_it_has() -> None:
    measured = score([result(1, "a", 4), result(2, "a", 4), result(3, "a", 4), result(4, "b", 0)], k=1)
    assert measured is not None
    assert measured.mean == 0.5


def test_a_paired_difference_leaves_out_tasks_measured_only_once() -> None:
    before = [result(1, "a", 0), result(2, "b", 2), result(3, "c", 4)]
    after = [result(1, "a", 2), result(2, "b", 4)]
    difference = paired_difference(before, after, k=1)
    assert difference is not None
    assert (difference.mean, difference.num) == (0.5, 2)
    assert difference.low < 0 < 0.5 < difference.high == pytest.approx(0.947, abs=1e-3)


def test_tasks_without_enough_judged_answers_do_not_count() -> None:
    assert score([result(1, "a", 1, num_judged=1)], k=8) is None
