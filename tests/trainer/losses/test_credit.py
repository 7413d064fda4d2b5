import math
from dataclasses import replace

import pytest
import torch

from tests.trainer.losses.tabular import DEFAULT, PROPOSITION_1
from trainer.losses.credit import (
    LeaveOneOut,
    Reach,
    Scale,
    cost_to_go,
    leave_one_out,
    scaled_return,
    update_position_mean,
)

COST = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
EVERY_STEP = torch.ones(1, 4, dtype=torch.bool)
TOOL_TURN = torch.tensor([[True, False, True, True]])


def test_cost_to_go_leaves_out_the_present_step() -> None:
    assert cost_to_go(COST, EVERY_STEP).tolist() == [[14.0, 12.0, 8.0, 0.0]]


def test_cost_to_go_discounts_from_the_next_step_on() -> None:
    assert cost_to_go(COST, EVERY_STEP, gamma=0.5).tolist() == [[6.0, 8.0, 8.0, 0.0]]


def test_gamma_zero_charges_the_next_action_alone() -> None:
    assert cost_to_go(COST, EVERY_STEP, gamma=0.0).tolist() == [[2.0, 4.0, 8.0, 0.0]]


def test_a_tool_turn_is_neither_charged_nor_discounted() -> None:
    assert cost_to_go(COST, TOOL_TURN).tolist() == [[12.0, 12.0, 8.0, 0.0]]
    assert cost_to_go(COST, TOOL_TURN, gamma=0.5).tolist() == [[8.0, 8.0, 8.0, 0.0]]


def test_a_cost_off_the_mask_may_be_anything() -> None:
    assert cost_to_go(torch.tensor([[1.0, math.nan, 4.0, 8.0]]), TOOL_TURN).tolist() == [[12.0, 12.0, 8.0, 0.0]]


def test_mean_to_go_divides_by_the_action_tokens_that_follow() -> None:
    assert scaled_return(COST, EVERY_STEP, DEFAULT)[0].tolist() == pytest.approx([14 / 3, 6.0, 8.0, 0.0])
    assert scaled_return(COST, TOOL_TURN, DEFAULT)[0].tolist() == [6.0, 6.0, 8.0, 0.0]


def test_room_left_divides_by_the_tokens_that_could_still_come() -> None:
    room = replace(DEFAULT, scale=Scale.ROOM_LEFT, max_tokens=8)
    assert scaled_return(COST, EVERY_STEP, room)[0].tolist() == pytest.approx([14 / 7, 12 / 6, 8 / 5, 0.0])


def test_room_left_at_the_limit_charges_nothing() -> None:
    room = replace(DEFAULT, scale=Scale.ROOM_LEFT, max_tokens=4)
    assert scaled_return(COST, EVERY_STEP, room)[0, 3] == 0.0


def test_a_rollout_longer_than_its_limit_has_no_room_left() -> None:
    room = replace(DEFAULT, scale=Scale.ROOM_LEFT, max_tokens=3)
    assert scaled_return(COST, EVERY_STEP, room)[0].tolist() == pytest.approx([14 / 2, 12 / 1, 8 / 1, 0.0])


@pytest.mark.parametrize(
    ("scale", "value"), [(Scale.NONE, 13.0), (Scale.MEAN_TO_GO, 13 / 3), (Scale.ROOM_LEFT, 13 / 8)]
)
def test_the_whole_rollouts_return_is_one_number_everywhere(scale: Scale, value: float) -> None:
    whole = replace(PROPOSITION_1, scale=scale, reach=Reach.WHOLE_ROLLOUT, max_tokens=8)
    assert scaled_return(COST, TOOL_TURN, whole)[0].tolist() == pytest.approx([value] * 4)


def siblings(group: list[int], half: list[int], fallback: list[float]) -> LeaveOneOut:
    return LeaveOneOut(torch.tensor(group), torch.tensor(half), torch.tensor(fallback))


RETURNS = torch.tensor([[2.0, 1.0], [4.0, 0.0], [9.0, 5.0]])
USABLE = torch.tensor([True, True, True])


def test_the_baseline_is_the_siblings_mean_and_never_ones_own() -> None:
    result = leave_one_out(RETURNS, USABLE, siblings([0, 0, 0], [0, 0, 0], [7.0, 7.0]))
    assert result.tolist() == [[6.5, 2.5], [5.5, 3.0], [3.0, 0.5]]


def test_another_groups_rollouts_are_no_siblings() -> None:
    result = leave_one_out(RETURNS, USABLE, siblings([0, 0, 1], [0, 0, 0], [7.0, 8.0]))
    assert result.tolist() == [[4.0, 0.0], [2.0, 1.0], [7.0, 8.0]]


def test_the_other_half_of_a_group_leaves_the_mean() -> None:
    result = leave_one_out(RETURNS, USABLE, siblings([0, 0, 0], [0, 1, 0], [7.0, 8.0]))
    assert result.tolist() == [[9.0, 5.0], [7.0, 8.0], [2.0, 1.0]]


def test_a_sibling_without_a_cost_to_go_leaves_the_mean_but_an_ended_one_counts_zero() -> None:
    usable = torch.tensor([True, False, True])
    result = leave_one_out(RETURNS, usable, siblings([0, 0, 0], [0, 0, 0], [7.0, 8.0]))
    assert result[0].tolist() == [9.0, 5.0]
    ended = torch.tensor([[2.0, 1.0], [0.0, 0.0], [9.0, 5.0]])
    result = leave_one_out(ended, USABLE, siblings([0, 0, 0], [0, 0, 0], [7.0, 8.0]))
    assert result[0].tolist() == [4.5, 2.5]


def test_the_position_mean_moves_at_its_rate_and_an_ended_rollout_counts_zero() -> None:
    before = torch.tensor([1.0, 1.0, 1.0])
    returns = torch.tensor([[3.0, 5.0], [100.0, 100.0], [1.0, 0.0]])
    usable = torch.tensor([True, False, True])
    assert update_position_mean(before, returns, usable, rate=0.25).tolist() == [1.25, 1.375, 0.75]
    assert update_position_mean(before, returns, torch.zeros(3, dtype=torch.bool), rate=0.5).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("weight", value) for value in (0.0, -1.0, math.nan)),
        *(("clip", value) for value in (0.0, -1.0, math.nan)),
        *(("gamma", value) for value in (-0.1, 1.1, math.nan)),
    ],
)
def test_a_setting_that_means_nothing_is_refused(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=setting):
        replace(DEFAULT, **{setting: value})  # type: ignore[arg-type]


def test_a_whole_rollouts_return_cannot_be_discounted() -> None:
    with pytest.raises(ValueError, match="gamma must be 1"):
        replace(DEFAULT, reach=Reach.WHOLE_ROLLOUT, gamma=0.9)
