"""Logprobs at a temperature, made from the likeliest logprobs at temperature 1.

A vLLM server scores given tokens at temperature 1 only. At temperature T the logprob of token v is l_v / T - log Z,
with Z = sum_v exp(l_v / T). The K likeliest tokens bound Z from both sides: the others share the mass that is left,
and none of them is likelier than the last of the K; the bounds are the extremes of sum_v p_v^(1/T) under that.
Pure. Numbers are natural logs.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MASS_ERROR: Final = 1e-6
"""How far the mass of logprobs that were computed and sent in float32 may be from 1."""


@dataclass(frozen=True)
class Normaliser:
    """Z at a temperature as far as it is known: the K tokens' part, and bounds of the rest. In units of exp(`unit`)."""

    unit: float
    known: float
    rest_low: float
    rest_high: float

    @property
    def middle(self) -> float:
        """The estimate of log Z that is never further off than `error`."""
        low, high = self.known + self.rest_low, self.known + self.rest_high
        return self.unit + (math.log(low) + math.log(high)) / 2

    @property
    def error(self) -> float:
        """How far the middle may be off, in nats."""
        return math.log((self.known + self.rest_high) / (self.known + self.rest_low)) / 2

    def log_tail(self, log_normaliser: float, spare: Sequence[float], temperature: float) -> float:
        """The log of the probability outside the tokens that are reported, where Z is exp(log_normaliser).

        spare: logprobs at temperature 1 of those of the K that are not reported.
        """
        whole = math.exp(log_normaliser - self.unit)
        rest = min(max(whole - self.known, self.rest_low), self.rest_high)
        outside = math.fsum([rest, *(math.exp(one / temperature - self.unit) for one in spare)])
        return min(0.0, math.log(max(outside / whole, sys.float_info.min)))


def bound_normaliser(top_logprobs: Sequence[float], vocab_size: int, temperature: float) -> Normaliser:
    """Z from the K likeliest logprobs at temperature 1, likeliest first. Shapes: top_logprobs [K], 1 <= K <= V."""
    power, best, least = 1 / temperature, top_logprobs[0], top_logprobs[-1]
    unit = best * power  # against underflow at small temperatures
    known = math.fsum(math.exp(one * power - unit) for one in top_logprobs)
    num_others = vocab_size - len(top_logprobs)
    if num_others == 0:
        return Normaliser(unit, known, 0.0, 0.0)
    left, most = 1 - math.fsum(map(math.exp, top_logprobs)), num_others * math.exp(least)
    lower, upper = (min(max(left + error, 0.0), most) for error in (-MASS_ERROR, MASS_ERROR))

    def spread(mass: float) -> float:
        """All others equally likely."""
        return num_others * math.exp(math.log(mass / num_others) * power - unit) if mass else 0.0

    def packed(mass: float) -> float:
        """As few others as can be, each as likely as the last of the K."""
        return mass * math.exp(least * (power - 1) - unit)

    if power > 1:
        return Normaliser(unit, known, spread(lower), packed(upper))
    return Normaliser(unit, known, packed(lower), spread(upper))
