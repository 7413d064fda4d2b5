"""The report's figures, against numbers worked out by hand."""

import math
from uuid import UUID

import pytest

from services.contracts.evaluations import TaskResult
from services.store.statistics import paired_difference, pass_at_k, score, t_interval


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
    interval = t_interval([0.1, 0.2, 0.3])
    half = 4.302652729911275 * 0.1 / math.sqrt(3)
    assert interval.mean == pytest.approx(0.2)
    assert interval.low == pytest.approx(0.2 - half)
    assert interval.high == pytest.approx(0.2 + half)


def test_one_family_has_a_mean_but_no_interval() -> None:
    assert math.isnan(t_interval([0.5]).low)


def test_a_family_counts_once_however_many_tasks_it_has() -> None:
    measured = score([result(1, "a", 4), result(2, "a", 4), result(3, "a", 4), result(4, "b", 0)], k=1)
    assert measured is not None
    assert measured.mean == 0.5


def test_a_paired_difference_leaves_out_tasks_measured_only_once() -> None:
    before = [result(1, "a", 0), result(2, "b", 2), result(3, "c", 4)]
    after = [result(1, "a", 2), result(2, "b", 4)]
    difference = paired_difference(before, after, k=1)
    assert difference is not None
    assert (difference.mean, difference.low, difference.high) == (0.5, 0.5, 0.5)


def test_tasks_without_enough_judged_answers_do_not_count() -> None:
    assert score([result(1, "a", 1, num_judged=1)], k=8) is None
