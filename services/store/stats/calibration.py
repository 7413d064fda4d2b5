"""How well a score tells right answers from wrong ones: the area under its ROC curve, and the chance it stands for.

A score that only knows which tasks are easy ranks answers to different tasks well and chooses among answers to one task
at random. So answers are compared within their task, and tasks are the unit. Pure functions; `store.loop.opinions`
reads what they are given.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Final
from uuid import UUID

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.special import stdtrit

ERROR: Final = 0.1
"""Of all one-sided lower ends of one AUC together, however often it is looked at."""
FIRST_LOOK: Final = 16
"""With how many answers an AUC is first judged; then whenever their number has doubled."""
FIRST_AGE: Final = 60.0
"""In seconds, the age of an expert from which on a doubling counts, where looks go by its age."""


@dataclass(frozen=True)
class Judged:
    """A score of an answer to a task, and whether the verdict on that answer is a pass."""

    task_id: UUID
    score: float
    passed: bool


@dataclass(frozen=True)
class Auc:
    """The area under the ROC curve within tasks: the chance that of two answers to one task the one that passed has the
    higher score, ties count half; the mean over the tasks that have a passed and a failed answer.

    num_tasks: those tasks. low: the one-sided lower end; None with fewer than two of them, and before the first look.
    """

    mean: float
    low: float | None
    num_tasks: int


def find_look(num_answers: int) -> tuple[int, float | None]:
    """The number of answers at the last look, and the error of its lower end; before the first, all and None.

    The verdict of a look holds until their number has doubled. The errors .1/2, .1/6, .1/12, … add up to .1.
    """
    if num_answers < FIRST_LOOK:
        return num_answers, None
    num_doubled = _count_doublings(num_answers)
    return FIRST_LOOK << num_doubled, _share_error(num_doubled)


def find_look_by_age(seconds: float, num_answers: int) -> tuple[float, float]:
    """The age of an expert in seconds at its last look, and the error of the lower end, where its answers are too many
    to be counted: they are looked at whenever the expert's age has doubled. These looks come after all those of fewer
    than `num_answers`, and share the same error with them.
    """
    num_doubled = max(0, math.floor(math.log2(max(seconds, FIRST_AGE) / FIRST_AGE)))
    return FIRST_AGE * 2**num_doubled, _share_error(_count_doublings(num_answers) + num_doubled)


def _count_doublings(num_answers: int) -> int:
    return (num_answers // FIRST_LOOK).bit_length() - 1


def _share_error(place: int) -> float:
    """The error of a look: the places 0, 1, 2, … have .1/2, .1/6, .1/12, …"""
    return ERROR / ((place + 1) * (place + 2))


def find_auc(judged: Sequence[Judged], error: float | None) -> Auc | None:
    """The AUC with its bound; None where no task has both a passed and a failed answer. error: of the bound.

    The quantile is Student's over the tasks. Few tasks that agree look as if they were sure: with k tasks no bound is
    above error^(1/k), that of an event seen k times in k (Clopper and Pearson, Biometrika 26, 1934).
    """
    by_task: dict[UUID, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for one in judged:
        by_task[one.task_id][one.passed].append(one.score)
    shares = [_find_share_above(passed, failed) for failed, passed in by_task.values() if passed and failed]
    if not shares:
        return None
    mean, num = fmean(shares), len(shares)
    if error is None or num < 2:
        return Auc(mean, None, num)
    low = mean - float(stdtrit(num - 1, 1 - error)) * stdev(shares) / math.sqrt(num)
    return Auc(mean, max(0.0, min(low, error ** (1 / num))), num)


def _find_share_above(passed: Sequence[float], failed: Sequence[float]) -> float:
    """The share of pairs in which the passed answer has the higher score, ties count half."""
    return fmean((own > other) + (own == other) / 2 for own in passed for other in failed)


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
