"""What losses and updates cost: that both measurements run and say what they compare. No time is asserted."""

import re

import pytest

from benchmarks import loss, update

pytestmark = pytest.mark.integration


def test_the_losses_are_measured_beside_the_plain_version_of_the_same_objective(
    capsys: pytest.CaptureFixture[str],
) -> None:
    contenders = ["plain distil", "fused distil", "plain forward_ce", "fused forward_ce"]
    assert loss.main(["--vocabulary", "2000", "--tokens", "64", "--repeats", "1", "--contenders", *contenders]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "V = 2,000, 64 tokens, H = 64"
    assert [line.split("  ")[1] for line in lines[1:]] == contenders
    for line in (lines[2], lines[4]):
        found = re.search(r"x \d+\.\d+ time, x \d+\.\d+ memory  \(loss off by (\S+)\)", line)
        assert found is not None
        assert float(found[1]) < 1e-5


def test_fewer_tokens_than_rollouts_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        loss.main(["--tokens", "4"])
    assert "at least one each" in capsys.readouterr().err


def test_an_update_is_measured_with_the_trainer_that_trains(capsys: pytest.CaptureFixture[str]) -> None:
    sides = ["ours", "ours, plain loss"]
    assert update.main(["--model", "tiny", "--tokens", "8", "--updates", "1", "--sides", *sides]) == 0
    report = capsys.readouterr().out.splitlines()[-len(sides) :]
    assert [line.split("  ")[0] for line in report] == sides
    assert all("tokens/s" in line and "MiB over the model" in line for line in report)
