"""How well a score tells right from wrong, by numbers worked out by hand."""

from uuid import UUID

import pytest

from services.store.views.calibration import Judged, estimate_chance, find_auc, find_brier

T_OF_TWO = 1.885618
"""Student's quantile of .9 with two degrees of freedom, from a table."""


def answers(*scores: tuple[int, float, bool]) -> list[Judged]:
    return [Judged(UUID(int=task), score, passed) for task, score, passed in scores]


def test_the_auc_of_one_answer_a_task_has_delongs_bound() -> None:
    # of 9 pairs the passed answers are above in 3 + 3 + 2. Placements: 1, 1, 2/3 and 2/3, 1, 1, each with variance
    # 1/27, so the error is √(2/81)
    auc = find_auc(
        answers((1, 0.9, True), (2, 0.8, True), (3, 0.4, True), (4, 0.7, False), (5, 0.3, False), (6, 0, False))
    )
    assert auc is not None
    assert auc.mean == pytest.approx(8 / 9)
    assert 8 / 9 - T_OF_TWO * (2 / 81) ** 0.5 > 0.1 ** (1 / 3)
    assert auc.low == pytest.approx(0.1 ** (1 / 3)), "three pairs show no more, however they fall out"


def test_answers_to_one_task_are_no_independent_evidence() -> None:
    # passed .9 .8 .5 and failed .3 .6 .7 of three tasks with both: AUC 7/9; deviations by task (2, 2, -4)/9 and
    # (2, -1, -1)/9; Obuchowski's variance (12/81)/3 + (3/81)/3 + 2 (9/81)/9 = 7/81
    auc = find_auc(
        answers((1, 0.9, True), (1, 0.3, False), (2, 0.8, True), (2, 0.6, False), (3, 0.5, True), (3, 0.7, False))
    )
    assert auc is not None
    assert auc.mean == pytest.approx(7 / 9)
    assert auc.low == pytest.approx(7 / 9 - T_OF_TWO * (7 / 81) ** 0.5)


def test_repeating_every_answer_within_its_task_changes_no_bound() -> None:
    once = answers((1, 0.9, True), (1, 0.3, False), (2, 0.8, True), (2, 0.6, False), (3, 0.5, True), (3, 0.7, False))
    assert find_auc(once * 4) == find_auc(once)


def test_ties_count_half() -> None:
    auc = find_auc(answers((1, 0.5, True), (2, 0.5, False), (3, 0.5, True), (4, 0.5, False)))
    assert auc is not None
    assert auc.mean == 0.5
    assert auc.low == pytest.approx(0.1**0.5)
    half = find_auc(answers((1, 0.9, True), (2, 0.9, False), (3, 0.9, True), (4, 0.1, False)))
    assert half is not None
    assert half.mean == 0.75


def test_verdicts_of_one_kind_have_no_auc() -> None:
    assert find_auc(answers((1, 0.9, True), (2, 0.1, True))) is None
    assert find_auc(answers((1, 0.9, False))) is None
    assert find_auc([]) is None


def test_one_task_of_a_kind_gives_no_bound() -> None:
    auc = find_auc(answers((1, 0.9, True), (2, 0.1, False), (3, 0.2, False)))
    assert auc is not None
    assert (auc.mean, auc.low) == (1.0, None)


@pytest.mark.parametrize(("num_tasks", "is_above_half"), [(2, False), (3, False), (4, True), (10, True)])
def test_a_perfect_order_shows_as_much_as_so_many_pairs_can(num_tasks: int, is_above_half: bool) -> None:
    perfect = [(n, 0.9, True) for n in range(num_tasks)] + [(100 + n, 0.1, False) for n in range(num_tasks)]
    auc = find_auc(answers(*perfect))
    assert auc is not None
    assert auc.low == pytest.approx(0.1 ** (1 / num_tasks))
    assert (auc.low is not None and auc.low > 0.5) is is_above_half
    unbalanced = find_auc(answers(*perfect, *((200 + n, 0.9, True) for n in range(20))))
    assert unbalanced is not None
    assert unbalanced.low == auc.low, "more of one kind alone make no more pairs"


def test_a_score_that_ranks_the_wrong_way_round_is_below_a_half() -> None:
    auc = find_auc(answers(*((n, 0.1, True) for n in range(9)), *((20 + n, 0.9, False) for n in range(9))))
    assert auc is not None
    assert (auc.mean, auc.low) == (0.0, 0.0)


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
