"""How well a score tells right from wrong, by numbers worked out by hand."""

from uuid import UUID

import pytest

from services.store.stats.calibration import (
    Auc,
    Judged,
    estimate_chance,
    find_auc,
    find_brier,
    find_look,
    find_look_by_age,
)

T_OF_TWO = 1.885618
"""Student's quantile of .9 with two degrees of freedom, from a table."""


def answers(*scores: tuple[int, float, bool]) -> list[Judged]:
    return [Judged(UUID(int=task), score, passed) for task, score, passed in scores]


def test_the_auc_is_the_mean_over_tasks_of_the_pairs_within_them() -> None:
    # task 1: passed .9 .5, failed .7 .1, above in 3 of 4 pairs; task 2: 1 of 1; task 3: passed .4, failed .4, half.
    # Mean 3/4; deviations 0, 1/4, -1/4: variance 1/16, so the error is √(1/48)
    auc = find_auc(
        answers(
            *((1, 0.9, True), (1, 0.5, True), (1, 0.7, False), (1, 0.1, False)),
            *((2, 0.3, True), (2, 0.2, False), (3, 0.4, True), (3, 0.4, False)),
        ),
        0.1,
    )
    assert auc is not None
    assert (auc.mean, auc.num_tasks) == (0.75, 3)
    assert 0.75 - T_OF_TWO / 48**0.5 > 0.1 ** (1 / 3)
    assert auc.low == pytest.approx(0.1 ** (1 / 3)), "three tasks show no more, however they fall out"


def test_the_bound_is_students_over_tasks() -> None:
    # shares 1, 1, 0: mean 2/3, variance 1/3, error 1/3
    auc = find_auc(
        answers((1, 0.9, True), (1, 0.3, False), (2, 0.8, True), (2, 0.6, False), (3, 0.5, True), (3, 0.7, False)), 0.1
    )
    assert auc is not None
    assert auc.mean == pytest.approx(2 / 3)
    assert auc.low == pytest.approx(2 / 3 - T_OF_TWO / 3)


def test_repeating_every_answer_within_its_task_changes_no_bound() -> None:
    once = answers((1, 0.9, True), (1, 0.3, False), (2, 0.8, True), (2, 0.6, False), (3, 0.5, True), (3, 0.7, False))
    assert find_auc(once * 4, 0.1) == find_auc(once, 0.1)


def test_a_score_that_only_knows_which_task_is_easy_ranks_nothing_within_a_task() -> None:
    # of all 144 pairs of a passed and a failed answer 81 are in the right order, 9 in the wrong one: .75 pooled
    easy = [(n, 0.9, passed) for n in range(3) for passed in (True, True, True, False)]
    hard = [(n, 0.1, passed) for n in range(3, 6) for passed in (True, False, False, False)]
    auc = find_auc(answers(*easy, *hard), 0.1)
    assert auc is not None
    assert (auc.mean, auc.num_tasks) == (0.5, 6)
    one_sided = answers(*((n, 0.9, True) for n in range(9)), *((20 + n, 0.1, False) for n in range(9)))
    assert find_auc(one_sided, 0.1) is None
    assert find_auc([], 0.1) is None


def test_one_task_gives_no_bound_and_before_the_first_look_there_is_none() -> None:
    one = answers((1, 0.9, True), (1, 0.1, False), (1, 0.2, False))
    assert find_auc(one, 0.1) == Auc(1.0, None, 1)
    assert find_auc([*one, *answers((2, 0.1, True), (2, 0.9, False))], None) == Auc(0.5, None, 2)


@pytest.mark.parametrize(("num_tasks", "is_above_half"), [(2, False), (3, False), (4, True), (10, True)])
def test_a_perfect_order_shows_as_much_as_so_many_tasks_can(num_tasks: int, is_above_half: bool) -> None:
    auc = find_auc(
        answers(*((n, 0.9, True) for n in range(num_tasks)), *((n, 0, False) for n in range(num_tasks))), 0.1
    )
    assert auc is not None
    assert auc.low == pytest.approx(0.1 ** (1 / num_tasks))
    assert (auc.low is not None and auc.low > 0.5) is is_above_half


def test_a_score_that_ranks_the_wrong_way_round_is_below_a_half() -> None:
    assert find_auc(answers(*((n, 0.1, True) for n in range(9)), *((n, 0.9, False) for n in range(9))), 0.1) == Auc(
        0.0, 0.0, 9
    )


@pytest.mark.parametrize(
    ("num_answers", "look", "error"),
    [(15, 15, None), (16, 16, 0.05), (31, 16, 0.05), (32, 32, 0.1 / 6), (1000, 512, 0.1 / 42), (1024, 1024, 0.1 / 56)],
)
def test_looks_come_with_doubled_answers_and_share_the_error(num_answers: int, look: int, error: float | None) -> None:
    assert find_look(num_answers) == (look, error if error is None else pytest.approx(error))


@pytest.mark.parametrize(
    ("seconds", "look", "error"),
    [(0, 60, 0.1 / 12), (119, 60, 0.1 / 12), (120, 120, 0.1 / 20), (1000, 960, 0.1 / 56)],
)
def test_looks_at_many_answers_come_with_doubled_age_and_share_the_error_with_those_by_number(
    seconds: float, look: float, error: float
) -> None:
    """By number there were looks at 16 and 32 of the 64 answers, which have .1/2 and .1/6."""
    age, share = find_look_by_age(seconds, num_answers=64)
    assert age == look
    assert share == pytest.approx(error)


def test_brier_is_the_mean_square_beside_that_of_always_saying_the_mean() -> None:
    # squares .01, .04, .25, .09; three of four passed
    brier, of_mean = find_brier(answers((1, 0.9, True), (2, 0.8, True), (3, 0.5, True), (4, 0.3, False)))
    assert brier == pytest.approx(0.39 / 4)
    assert of_mean == pytest.approx(0.1875)
    with pytest.raises(ValueError, match="no judged"):
        find_brier([])


def test_the_chance_behind_a_score_rises_with_it_and_pools_what_is_out_of_order() -> None:
    # .2 failed, .4 passed, .6 failed, .8 passed: .4 and .6 are pooled to a half
    seen = answers((1, 0.2, False), (2, 0.4, True), (3, 0.6, False), (4, 0.8, True))
    assert [estimate_chance(seen, score) for score in (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)] == pytest.approx(
        [0, 0, 0.5, 0.5, 0.5, 0.75, 1, 1]
    )
    tied = answers((1, 0.9, True), (2, 0.9, True), (3, 0.9, False))
    assert estimate_chance(tied, 0.95) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="no judged"):
        estimate_chance([], 0.5)
