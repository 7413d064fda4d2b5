"""The table of several demos, by numbers worked out by hand, and what it refuses."""

import json
from pathlib import Path

import pytest

from benchmarks.demos import main
from services.contracts.evaluations import EvaluationDetail
from tests.store.stats.test_estimates import measured

BASE = measured("base", {0.0: [0, 0], 0.5: [1, 0]}, {0.0: [0], 0.5: [2]})
AFTER = (
    measured("v1", {0.0: [1, 0], 0.5: [3, 0]}, {0.0: [1], 0.5: [2]}),
    measured("v1", {0.0: [0, 0], 0.5: [3, 1]}, {0.0: [0], 0.5: [3]}),
)
JUDGE = {
    "name": "judge",
    "share": 1.0,
    "taught": [{"domain": "math", "how": "own success", "share": 0.6, "num_lessons": 3}],
    "measured": ["own success (turns) in math, teaches: +0.30 ± 0.20"],
}


def report(folder: Path, seed: int, after: EvaluationDetail, experts: list[object]) -> str:
    path = folder / f"{seed}.json"
    sides = {"before": BASE.model_dump(mode="json"), "after": after.model_dump(mode="json")}
    run = {"plan": {"seed": seed, "minutes": 15}, "experts": experts, "num_updates": 4, "training_seconds": 60.4}
    path.write_text(json.dumps(sides | run))
    return str(path)


def test_a_row_has_both_levels_and_the_rise_over_seeds_and_families(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [report(tmp_path, seed, after, [JUDGE] * (1 - seed)) for seed, after in enumerate(AFTER)]
    assert main(paths) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| 1 | 4 | 60 |" in lines
    assert "| math | pass@1 | 0.5 | 0.125 | 0.438 | +0.312 [-1.000, +1.000] | 2 |" in lines  # .5 and .125 by family
    assert any(line.startswith("| math | pass@1 | best: 0.5 → 0, 0.5 → 0.5 | 0.125 | 0.500 | +0.375") for line in lines)
    assert "| judge | math | own success | 30% |" in lines  # .6 in one of two seeds
    assert "| judge | own success (turns) in math, teaches: +0.30 ± 0.20 | 0 |" in lines


def test_pairs_of_evaluations_give_the_same_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments: list[str] = []
    for seed, after in enumerate(AFTER):
        for name, side in (("before", BASE), ("after", after)):
            (tmp_path / f"{name}{seed}.json").write_text(side.model_dump_json())
        arguments += ["--pair", str(tmp_path / f"before{seed}.json"), str(tmp_path / f"after{seed}.json")]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| math | pass@1 | 0.5 | 0.125 | 0.438 | +0.312 [-1.000, +1.000] | 2 |" in lines
    assert not any("updates" in line for line in lines)


def test_reports_of_one_seed_and_files_that_are_none_are_refused(tmp_path: Path) -> None:
    path = report(tmp_path, 3, AFTER[0], [])
    with pytest.raises(SystemExit, match="the same seed: 3, 3"):
        main([path, path])
    other = tmp_path / "other.json"
    other.write_text("{}")
    with pytest.raises(SystemExit, match="is no demo's report"):
        main([str(other)])
    with pytest.raises(SystemExit, match="No such file"):
        main([str(tmp_path / "gone.json")])
    with pytest.raises(SystemExit, match=r"other\.json is no evaluation"):
        main(["--pair", str(other), str(other)])
    for arguments in ([], [path, "--pair", str(other), str(other)]):
        with pytest.raises(SystemExit):
            main(arguments)
