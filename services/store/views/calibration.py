"""How well a score tells right answers from wrong ones: the area under its ROC curve, and the chance it stands for.

Answers to one task are alike, so the task is the unit of the bound. Pure functions; `store.loop.opinions` reads what
they are given.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final
from uuid import UUID

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.special import stdtrit
from scipy.stats import rankdata

ERROR: Final = 0.1
"""Of the one-sided lower end of an AUC."""


@dataclass(frozen=True)
class Judged:
    """A score of an answer to a task, and whether the verdict on that answer is a pass."""

    task_id: UUID
    score: float
    passed: bool


@dataclass(frozen=True)
class Auc:
    """The area under the ROC curve: the chance that a passed answer has the higher score, ties count half.

    low: its one-sided 90 % lower end; None with fewer than two tasks that have a passed answer, or a failed one.
    """

    mean: float
    low: float | None


def find_auc(judged: Sequence[Judged]) -> Auc | None:
    """The AUC with its bound; None where no answer passed, or all did.

    The variance is that of Obuchowski for clustered data (Biometrics 53, 1997, p. 567), which is DeLong's where every
    task has one answer; its quantile is Student's, with the tasks of the rarer kind less one degrees of freedom. So few
    tasks can look as if they were sure: with k disjoint pairs of a passed and a failed answer no bound is above
    .1^(1/k), that of an event seen k times in k (Clopper and Pearson, Biometrika 26, 1934).
    """
    passed = [one for one in judged if one.passed]
    failed = [one for one in judged if not one.passed]
    if not passed or not failed:
        return None
    above = _place(passed, failed)
    below = 1 - _place(failed, passed)
    mean = float(np.mean(above))
    tasks = sorted({one.task_id for one in judged})
    won, lost = _sum_by_task(passed, above - mean, tasks), _sum_by_task(failed, below - mean, tasks)
    num_won, num_lost = len({one.task_id for one in passed}), len({one.task_id for one in failed})
    if min(num_won, num_lost) < 2:
        return Auc(mean, None)
    variance = (
        num_won / (num_won - 1) * float(won @ won) / len(passed) ** 2
        + num_lost / (num_lost - 1) * float(lost @ lost) / len(failed) ** 2
        + 2 * len(tasks) / (len(tasks) - 1) * float(won @ lost) / (len(passed) * len(failed))
    )
    quantile = float(stdtrit(min(num_won, num_lost) - 1, 1 - ERROR))
    low = mean - quantile * math.sqrt(max(0.0, variance))
    return Auc(mean, max(0.0, min(low, ERROR ** (1 / _count_pairs(num_won, num_lost, len(tasks))))))


def _place(ones: Sequence[Judged], others: Sequence[Judged]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The share of the others that each one is above, ties count half."""
    own, theirs = np.array([one.score for one in ones]), np.array([one.score for one in others])
    ranks = rankdata(np.concatenate([own, theirs]))[: len(own)]
    placed: np.ndarray[tuple[int], np.dtype[np.float64]] = (ranks - rankdata(own)) / len(theirs)
    return placed


def _sum_by_task(
    judged: Sequence[Judged], values: np.ndarray[tuple[int], np.dtype[np.float64]], tasks: Sequence[UUID]
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    sums: dict[UUID, float] = defaultdict(float)
    for one, value in zip(judged, values, strict=True):
        sums[one.task_id] += float(value)
    return np.array([sums[task] for task in tasks])


def _count_pairs(num_won: int, num_lost: int, num_tasks: int) -> int:
    """The most pairs of a passed and a failed answer in which no task is met twice: a task with both makes one."""
    both = num_won + num_lost - num_tasks
    return both + min(num_won - both, num_lost - both)


def find_brier(judged: Sequence[Judged]) -> tuple[float, float]:
    """The mean square of score less verdict (Brier, Monthly Weather Review 78, 1950), and that of the forecast that
    always says the share that passed. Raises ValueError without answers."""
    if not judged:
        raise ValueError("no judged answers")
    share = fmean(one.passed for one in judged)
    return fmean((one.score - one.passed) ** 2 for one in judged), share * (1 - share)


def estimate_chance(judged: Sequence[Judged], score: float) -> float:
    """The chance that an answer of this score is right: the rising function of the score that fits the verdicts best
    in squares (isotonic regression), between the scores seen in a straight line. Raises ValueError without answers."""
    by_score: dict[float, list[bool]] = defaultdict(list)
    for one in judged:
        by_score[one.score].append(one.passed)
    if not by_score:
        raise ValueError("no judged answers")
    scores = sorted(by_score)
    shares = [fmean(by_score[one]) for one in scores]
    fitted = isotonic_regression(shares, weights=[len(by_score[one]) for one in scores]).x
    return float(np.interp(score, scores, fitted))
