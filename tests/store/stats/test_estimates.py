"""The report's figures, against numbers worked out by hand."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from uuid import UUID

import pytest

from services.contracts.evaluations import EvaluationDetail, EvaluationStatus, TaskResult
from services.contracts.tasks import Split
from services.store.stats.estimates import (
    DIFFERENCE_OF_SHARES,
    SHARE,
    Interval,
    by_temperature,
    choose_best,
    headline,
    paired_difference,
    pass_at_k,
    say,
    score,
    t_interval,
)


def result(
    number: int, family: str, num_passed: int, num_judged: int = 4, temperature: float = 1.0, domain: str = "math"
) -> TaskResult:
    return TaskResult(
        task_id=UUID(int=number),
        key=str(number),
        domain=domain,
        family=family,
        temperature=temperature,
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


def drawn(passes: Mapping[float, Sequence[int]], num_samples: int = 4) -> list[TaskResult]:
    """By temperature, how many answers to each of the tasks passed; every task is a family, and at 0 has one answer."""
    return [
        result(number, f"f{number}", num_passed, num_samples if temperature > 0 else 1, temperature)
        for temperature, counts in passes.items()
        for number, num_passed in enumerate(counts)
    ]


def measured(
    version: str,
    passes: Mapping[float, Sequence[int]],
    validation: Mapping[float, Sequence[int]] | None,
    status: EvaluationStatus = EvaluationStatus.DONE,
) -> EvaluationDetail:
    results, beside = drawn(passes), None if validation is None else drawn(validation)
    now = datetime.now(UTC)
    return EvaluationDetail(
        id=UUID(int=1),
        lineage_id=UUID(int=2),
        policy_version=version,
        split=Split.VALIDATION if validation is None else Split.HELDOUT,
        status=status,
        settings={},
        num_rollouts=0,
        num_settled=0,
        created_at=now,
        finished_at=now,
        results=results,
        validation_results=beside or [],
        best=choose_best(results, beside),
    )


def test_the_best_temperature_is_chosen_on_validation_and_not_on_the_tasks_that_are_measured() -> None:
    held = drawn({0.0: [1, 1], 0.5: [0, 0], 1.0: [0, 0]})
    validation = drawn({0.0: [0, 1], 0.5: [3, 4], 1.0: [2, 2]})  # .5, .875, .5
    first, second = choose_best(held, validation)
    assert (first.k, first.temperature, first.num_tasks, first.reason) == (1, 0.5, 2, None)
    assert (second.k, second.temperature) == (4, 0.5)


def test_ties_go_to_the_lower_temperature() -> None:
    validation = drawn({0.25: [1, 2], 0.5: [2, 1], 1.0: [0, 3]})  # .375 each, the sums rounded differently
    [best, *_] = choose_best(validation, validation)
    assert best.temperature == 0.25


def test_a_temperature_is_chosen_on_the_tasks_that_were_judged_at_all_of_them() -> None:
    """At .5 the hard task has no verdict; over the other one alone greedy is as good."""
    validation = [t for t in drawn({0.0: [1, 0], 0.5: [4, 0]}) if (t.key, t.temperature) != ("1", 0.5)]
    [best, *_] = choose_best(validation, validation)
    assert (best.temperature, best.num_tasks) == (0.0, 1)


def test_pass_at_k_has_a_best_temperature_of_its_own() -> None:
    """Greedy passes one task of two; at 1 each passes half of its answers, so four answers to each nearly always."""
    validation = drawn({0.0: [1, 0], 1.0: [2, 1]})  # pass@1 .5 and .375; pass@4 .5 and 1
    assert [(best.k, best.temperature) for best in choose_best(validation, validation)] == [(1, 0.0), (4, 1.0)]


def test_greedy_answers_are_all_the_same_so_that_pass_at_k_is_pass_at_1() -> None:
    greedy = drawn({0.0: [1, 0]})
    at_1, at_4 = score(greedy, 1), score(greedy, 4)
    assert at_1 is not None
    assert at_1 == at_4
    assert at_1.mean == 0.5


@pytest.mark.parametrize(
    ("held", "validation", "reason"),
    [
        ({0.0: [1], 1.0: [4]}, {}, "no validation tasks"),
        ({1.0: [4]}, {1.0: [4]}, "one temperature only"),
        ({0.0: [1], 1.0: [4]}, None, "it would be chosen on these very tasks"),
    ],
)
def test_where_no_temperature_could_be_chosen_the_reason_is_given(
    held: Mapping[float, Sequence[int]], validation: Mapping[float, Sequence[int]] | None, reason: str
) -> None:
    base, trained = (measured(name, held, validation) for name in ("base", "v1"))
    assert {(best.temperature, best.reason) for best in base.best} == {(None, reason)}
    assert {(change.rise, change.before, change.reason) for change in headline(base, trained)} == {(None, None, reason)}


def test_a_model_that_only_became_more_certain_rises_at_temperature_1_and_not_in_the_headline() -> None:
    """Five families. At 1 the trained version passes as often as the base does at .5: rises .5, .25, .5, .25, .5."""
    base = {0.5: [3, 2, 4, 1, 2], 1.0: [1, 1, 2, 0, 0]}
    trained = {0.5: [3, 2, 4, 1, 2], 1.0: [3, 2, 4, 1, 2]}
    before, after = measured("base", base, base), measured("v1", trained, trained)
    at_1 = next(c for c in by_temperature(before.results, after.results) if (c.k, c.after_temperature) == (1, 1.0))
    assert at_1.rise is not None
    assert at_1.rise.mean == pytest.approx(0.4)
    half = 2.7764451051977987 * math.sqrt((3 * 0.1**2 + 2 * 0.15**2) / 4 / 5)
    assert at_1.rise.low == pytest.approx(0.4 - half) == pytest.approx(0.23, abs=1e-3)
    best = headline(before, after)[0]
    assert (best.k, best.before_temperature, best.after_temperature) == (1, 0.5, 0.5)
    assert best.rise is not None
    assert (best.rise.mean, best.num_families) == (0.0, 5)


def test_the_headline_is_best_trained_less_best_base_over_families() -> None:
    """Base at .5: 1/4, 2/4, 0; trained greedy: 1, 1, 0. Rises .75, .5, 0: mean 5/12, t(2) 4.3027."""
    base = measured("base", {0.0: [0, 0, 0], 0.5: [1, 2, 0], 1.0: [0, 1, 0]}, {0.0: [0], 0.5: [3], 1.0: [1]})
    trained = measured("v1", {0.0: [1, 1, 0], 0.5: [2, 2, 1], 1.0: [1, 1, 0]}, {0.0: [1], 0.5: [3], 1.0: [2]})
    first, second = headline(base, trained)
    assert (first.k, first.before_temperature, first.after_temperature) == (1, 0.5, 0.0)
    assert first.before is not None
    assert first.after is not None
    assert first.rise is not None
    assert first.before.mean == pytest.approx(0.25)
    assert first.after.mean == pytest.approx(2 / 3)
    deviation = math.sqrt(((0.75 - 5 / 12) ** 2 + (0.5 - 5 / 12) ** 2 + (5 / 12) ** 2) / 2)
    assert first.rise.mean == pytest.approx(5 / 12)
    assert first.rise.low == pytest.approx(5 / 12 - 4.302652729911275 * deviation / math.sqrt(3))
    # pass@4 on validation: the base reaches 1 at .5 first, the trained version greedily.
    assert (second.k, second.before_temperature, second.after_temperature) == (4, 0.5, 0.0)
    assert second.rise is not None
    assert second.rise.mean == 0.0


def test_versions_measured_at_different_temperatures_have_no_headline() -> None:
    old = measured("base", {0.5: [1], 1.0: [1]}, {0.5: [1], 1.0: [1]})
    new = measured("v1", {0.0: [1], 0.5: [1], 1.0: [1]}, {0.0: [1], 0.5: [1], 1.0: [1]})
    running = measured("v1", {0.5: [1], 1.0: [1]}, {0.5: [1], 1.0: [1]}, EvaluationStatus.RUNNING)
    assert {change.reason for change in headline(old, new)} == {"measured at different temperatures"}
    assert {change.reason for change in headline(old, running)} == {"not finished"}
