"""What a version must pass before it serves: numbers in, checks out."""

import math

import pytest

from services.contracts.policies import GateReport
from trainer.loop import gate


def test_a_single_bad_weight_fails() -> None:
    assert gate.check_finite(0).passed
    assert not gate.check_finite(1).passed


def test_a_probe_fails_beyond_its_tolerance() -> None:
    assert gate.check_probe(0.001, tolerance=0.001, num_tokens=10).passed
    assert not gate.check_probe(0.0011, tolerance=0.001, num_tokens=10).passed


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_fails_and_can_still_be_stored(value: float) -> None:
    check = gate.check_kl("kl_base", value, bound=1.0)
    assert not check.passed
    assert GateReport.model_validate_json(GateReport(checks=[check]).model_dump_json()).checks == [check]


@pytest.mark.parametrize(("new", "old", "passed"), [(10, 40, True), (9, 40, False), (40, 10, True), (41, 10, False)])
def test_answers_may_become_four_times_longer_or_shorter_and_no_more(new: float, old: float, passed: bool) -> None:
    assert gate.check_length(new, old, ratio=4).passed is passed


def test_empty_answers_count_as_one_token() -> None:
    assert gate.check_length(0, 3, ratio=4).value == 3


def test_a_report_passes_only_if_every_check_does() -> None:
    assert GateReport(checks=[gate.check_finite(0)]).passed
    assert not GateReport(checks=[gate.check_finite(0), gate.check_finite(2)]).passed
