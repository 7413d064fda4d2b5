"""Places of a rollout at which a black box is asked to go on, drawn with recorded probabilities.

What a place costs is not known before training. What is known is how unlikely the policy found its own token there: a
place is drawn in proportion to that surprisal, mixed with an even share, so that every action token has a chance and an
estimate that divides by its probability is unbiased (Horvitz and Thompson, JASA 47, 1952). The draw is systematic
(Madow, Annals of Mathematical Statistics 20, 1949): always as many places, each with exactly its probability.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final

EVEN_SHARE: Final = 0.5
"""Of the weights: the rest goes by surprisal. With half of it no place is ever drawn less than half as often as evenly,
so dividing by its probability at most doubles what it counts."""


@dataclass(frozen=True)
class Places:
    """How many tokens each prefix keeps, in order, and with which probability it was drawn; no probabilities where
    every action token is asked about."""

    prefixes: list[int]
    probabilities: list[float]


def choose(
    action_mask: Sequence[bool], sampler_logprobs: Sequence[float] | None, num_places: int, start: float
) -> Places:
    """So many places before action tokens, or all there are. start: a number in [0, 1) that decides the draw.

    Where the sampler's logprobs are unknown all places are alike.
    """
    actions = [step for step, is_action in enumerate(action_mask) if is_action]
    if len(actions) <= num_places:
        return Places(actions, [])
    surprisals = [0.0 if sampler_logprobs is None else max(0.0, -sampler_logprobs[step]) for step in actions]
    probabilities = find_probabilities(surprisals, num_places)
    drawn = draw(probabilities, start)
    return Places([actions[i] for i in drawn], [probabilities[i] for i in drawn])


def find_probabilities(surprisals: Sequence[float], num_places: int) -> list[float]:
    """The chance of each place to be among the drawn, which sum to `num_places`; fewer than there are places."""
    num, total = len(surprisals), math.fsum(surprisals)
    even = EVEN_SHARE if total > 0 else 1.0
    weights = [even / num + ((1 - even) * one / total if total > 0 else 0.0) for one in surprisals]
    certain: set[int] = set()  # places so heavy that they are always drawn; the others share what is left
    while True:
        left = math.fsum(weight for i, weight in enumerate(weights) if i not in certain)
        scale = (num_places - len(certain)) / left
        more = {i for i, weight in enumerate(weights) if i not in certain and weight * scale >= 1}
        if not more:
            return [1.0 if i in certain else weight * scale for i, weight in enumerate(weights)]
        certain |= more


def draw(probabilities: Sequence[float], start: float) -> list[int]:
    """The places whose stretch of the line, each as long as its probability, holds one of start, start + 1, …"""
    ends = [*accumulate(probabilities, initial=0.0)]
    ends[-1] = round(ends[-1])  # their sum is whole but for rounding
    return [i for i, (low, high) in enumerate(pairwise(ends)) if math.ceil(high - start) > math.ceil(low - start)]
