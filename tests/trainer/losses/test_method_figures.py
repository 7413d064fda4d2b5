"""Figures behind the defaults: how near each choice of credit comes to the exact gradient, how quiet the baseline is.

The instances are drawn here; the figures are literals.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trainer.losses.tabular import PROPOSITION_1, Tabular, whole_term
from trainer.losses.credit import CostKind, Credit, LeaveOneOut, Scale, cost_to_go, leave_one_out

TABULAR = Tabular.make(vocabulary=3, length=4)
NOTHING = 1e-12  # a weight of the future term that leaves the local term alone


def gradient(student: Tensor, expert: Tensor, credit: Credit) -> Tensor:
    return TABULAR.expected_gradient(
        student,
        [(index,) for index in range(len(TABULAR.sequences))],
        lambda states: [whole_term(expert[states])],
        lambda states, siblings: torch.zeros(states.shape),
        credit,
    )


def cosine(left: Tensor, right: Tensor) -> float:
    return float(torch.cosine_similarity(left.flatten(), right.flatten(), dim=0))


@pytest.mark.parametrize(
    ("credit", "whole", "future"),
    [
        (replace(PROPOSITION_1, gamma=0.9), 0.999, 0.995),
        (replace(PROPOSITION_1, gamma=0.5), 0.980, 0.895),
        (replace(PROPOSITION_1, gamma=0.0), 0.940, 0.691),  # the next token alone
        (replace(PROPOSITION_1, scale=Scale.MEAN_TO_GO), 0.959, 0.945),
        (replace(PROPOSITION_1, weight=NOTHING), 0.885, None),  # tokenwise
    ],
    ids=["gamma .9", "gamma .5", "next token", "mean to go", "tokenwise"],
)
def test_how_near_each_choice_of_credit_comes_to_the_exact_gradient(
    credit: Credit, whole: float, future: float | None
) -> None:
    """The mean cosine over twelve random models, of the whole gradient and of the future part alone."""
    found = []
    for seed in range(100, 112):
        numbers = np.random.default_rng(seed)
        size = (len(TABULAR.prefixes), 3)
        student = torch.tensor(numbers.normal(size=size))
        expert = torch.tensor(numbers.normal(size=size) * 1.5).log_softmax(-1)
        exact, own = gradient(student, expert, PROPOSITION_1), gradient(student, expert, credit)
        local = gradient(student, expert, replace(PROPOSITION_1, weight=NOTHING))
        found.append((cosine(own, exact), cosine(own - local, exact - local)))
    means = np.mean(found, axis=0)
    assert means[0] == pytest.approx(whole, abs=5e-4)
    if future is not None:
        assert means[1] == pytest.approx(future, abs=5e-4)


def test_kl_in_place_of_ce_leaves_the_local_gradient_alone() -> None:
    student, expert = TABULAR.random_table(1), TABULAR.random_table(2).log_softmax(-1)
    tokenwise = replace(PROPOSITION_1, weight=NOTHING)
    change = gradient(student, expert, replace(tokenwise, cost=CostKind.KL)) - gradient(student, expert, tokenwise)
    assert change.abs().max() < 1e-10


def test_siblings_as_baseline_leave_little_of_the_future_terms_noise() -> None:
    """Second moment of the future term against none: six tokens, groups of eight; near that of the exact values."""
    numbers = np.random.default_rng(0)
    found = {}
    for length in (16, 64, 256):
        student = torch.tensor(numbers.normal(size=(6, 6))).softmax(-1)
        expert = torch.tensor(numbers.normal(size=(6, 6)) * 1.5).softmax(-1)
        draws = [(numbers.integers(6, size=8), numbers.random((8, length))) for _ in range(1500 // 8)]
        start = torch.tensor(np.concatenate([first for first, _ in draws]))
        chance = torch.tensor(np.concatenate([uniform for _, uniform in draws]))
        states = torch.zeros((len(start), length), dtype=torch.long)
        states[:, 0] = start
        for step in range(length - 1):
            passed = chance[:, step, None] > student.cumsum(1)[states[:, step]]
            states[:, step + 1] = passed.sum(1).clamp(max=5)
        costs = -(expert * student.log()).sum(-1)
        every_token = torch.ones(states.shape, dtype=torch.bool)
        returns = cost_to_go(costs[states], every_token)
        group = torch.arange(len(states)) // 8
        siblings = LeaveOneOut(group, torch.zeros_like(group), torch.zeros(length))
        expected = leave_one_out(returns, every_token[:, 0], siblings)
        exact = torch.zeros((length, 6), dtype=torch.float64)
        for step in range(length - 2, -1, -1):
            exact[step] = student @ (costs + exact[step + 1])
        chosen = torch.cat([states[:, 1:], states[:, -1:]], 1)
        score = 1 - 2 * student[states, chosen] + student.square().sum(-1)[states]
        score[:, -1] = 0
        moments = [
            (score * (returns - baseline).square()).sum() / (score * returns.square()).sum()
            for baseline in (expected, exact[torch.arange(length), states])
        ]
        found[length] = moments[0].item()
        # the mean of seven siblings is noisier than the exact value by a seventh
        assert (moments[0] / moments[1]).item() == pytest.approx(8 / 7, abs=0.03)
    assert found == pytest.approx({16: 3.6e-3, 64: 2.4e-3, 256: 2.2e-4}, rel=0.03)
