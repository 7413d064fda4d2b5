"""A temperature's normaliser lies between its bounds, whatever the tokens outside the likeliest K are."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.policy.engines.tempering import bound_normaliser

LOGITS = st.lists(st.floats(-30, 10), min_size=2, max_size=40)
TEMPERATURES = st.sampled_from([0.05, 0.3, 0.5, 0.9, 1.0, 1.1, 1.7, 5.0])


def normalise(logits: list[float]) -> list[float]:
    best = max(logits)
    total = best + math.log(math.fsum(math.exp(one - best) for one in logits))
    return sorted((one - total for one in logits), reverse=True)


def temper(logprobs: list[float], temperature: float) -> float:
    """log Z, from all of them."""
    best = logprobs[0] / temperature
    return best + math.log(math.fsum(math.exp(one / temperature - best) for one in logprobs))


@given(LOGITS, TEMPERATURES, st.integers(1, 40))
def test_the_true_normaliser_is_within_the_bounds(logits: list[float], temperature: float, num_known: int) -> None:
    logprobs = normalise(logits)
    bounds = bound_normaliser(logprobs[:num_known], len(logprobs), temperature)
    assert abs(temper(logprobs, temperature) - bounds.middle) <= bounds.error + 1e-9


@given(LOGITS, TEMPERATURES)
def test_with_the_whole_vocabulary_nothing_is_uncertain(logits: list[float], temperature: float) -> None:
    logprobs = normalise(logits)
    bounds = bound_normaliser(logprobs, len(logprobs), temperature)
    assert bounds.error == 0
    assert bounds.middle == pytest.approx(temper(logprobs, temperature), abs=1e-9)


@given(LOGITS, TEMPERATURES, st.integers(1, 39), st.integers(0, 10))
def test_the_tail_is_what_is_not_reported(
    logits: list[float], temperature: float, num_reported: int, num_spare: int
) -> None:
    logprobs = normalise(logits)
    known = logprobs[: num_reported + num_spare]
    log_z = temper(logprobs, temperature)
    outside = [math.exp(one / temperature - log_z) for one in logprobs[num_reported:]]
    told = bound_normaliser(known, len(logprobs), temperature).log_tail(log_z, known[num_reported:], temperature)
    assert math.exp(told) == pytest.approx(math.fsum(outside), abs=2e-6)


def test_a_tail_too_small_for_a_difference_is_told_by_the_tokens_in_it() -> None:
    logprobs = [0.0, -40.0, -41.0]
    bounds = bound_normaliser(logprobs, 50_000, 1.0)
    told = bounds.log_tail(0.0, logprobs[1:], 1.0)
    assert -40.0 < told < -29.0  # between the two that are known, and as many again as the vocabulary could hold


def test_at_low_temperatures_a_few_likely_tokens_say_enough() -> None:
    logprobs = normalise([-0.5 * rank for rank in range(60)])
    assert bound_normaliser(logprobs[:20], 50_000, 0.5).error < 2e-5
