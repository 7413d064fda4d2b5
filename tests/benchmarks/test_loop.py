"""The product one source at a time: what is measured, what is run again, and what is written of runs that ended."""

import json
from pathlib import Path

import pytest

from benchmarks.loop import Budget, Run, main, result_path
from services.contracts.evaluations import EvaluationDetail
from tests.store.stats.test_estimates import measured

BASE = measured("base", {0.0: [0, 0], 0.5: [1, 0]}, {0.0: [0], 0.5: [2]})
AFTER = measured("v1", {0.0: [1, 0], 0.5: [3, 0]}, {0.0: [1], 0.5: [2]})
BUDGET = {"num_updates": 4, "num_tasks": 2, "num_samples": 4, "temperatures": [0.0, 0.5]}
ASKED = ["--leave-one-in", "people", "--seeds", "0", "--updates", "4", "--tasks", "2", "--samples", "4"]


def put(folder: Path, run: Run | None, found: EvaluationDetail, num_updates: int) -> None:
    facts = {"num_updates": num_updates, "training_seconds": 60.0, "evaluation_seconds": 30.0, "budget": BUDGET}
    document = facts | {"evaluation": found.model_dump(mode="json")}
    result_path(folder, "heldout", run).write_text(json.dumps(document))


def ask(folder: Path, *more: str) -> list[str]:
    return [*ASKED, "--temperatures", "0", "0.5", "--folder", str(folder), "--report", str(folder), *more]


def test_runs_that_have_ended_are_not_run_again_and_their_table_and_figure_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, None, BASE, 0)
    put(tmp_path, Run("distil", None, 0, "people"), AFTER, 3)
    assert main(ask(tmp_path)) == 0
    written = (tmp_path / "leave_one_in.md").read_text()
    assert "| people | 3 of 4 | +0.375 [" in written
    assert "2 a kind of the heldout tasks at temperatures 0, 0.5, 4 answers each above 0" in written
    assert str(tmp_path) not in written
    assert (tmp_path / "leave_one_in.png").exists()
    assert "one-in-people-seed0: 3 updates in 60 s" in capsys.readouterr().out


def test_a_result_of_another_budget_is_not_compared_with_the_rest(tmp_path: Path) -> None:
    put(tmp_path, None, BASE, 0)
    with pytest.raises(SystemExit, match="was made with another budget"):
        main(ask(tmp_path, "--updates", "5"))


def test_temperatures_are_chosen_on_half_as_many_validation_tasks_as_are_measured() -> None:
    few = Budget(4, 5, 8, (0.0, 0.5)).wants("heldout")
    assert (few.num_tasks, few.num_validation_tasks, few.temperatures, few.num_samples) == (5, 3, [0.0, 0.5], 8)
    every = Budget(4, None, 8, (0.0,)).wants("heldout")
    assert (every.num_tasks, every.num_validation_tasks) == (None, 15)
