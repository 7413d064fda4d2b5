"""What a score says."""

import pytest

from services.contracts.answers import passes


@pytest.mark.parametrize(("score", "passed"), [(None, False), (0.0, False), (0.5, False), (0.501, True), (1.0, True)])
def test_a_score_passes_above_a_half_and_not_at_it(score: float | None, passed: bool) -> None:
    assert passes(score) is passed
