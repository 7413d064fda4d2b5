"""What people read: golden lines of the report, the progress and a task file's faults."""

import io
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from rich.console import Console

from services.cli.commands import starter
from services.cli.output import measures, report
from services.cli.output.progress import Progress
from services.contracts.evaluations import EvaluationDetail, EvaluationStatus, TaskResult
from services.contracts.status import LoopState, PassRate, ProcessState, Status, TaskCount, UpdateSummary
from services.contracts.tasks import Split
from services.runtime.errors import InvalidInput
from services.store.stats.estimates import choose_best

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def status(**changes: object) -> Status:
    """A loop after two updates."""
    content = {
        "lineage": "main",
        "model": "tiny",
        "serving": "v1",
        "loop": LoopState(sampling=True, training=False, max_updates=9),
        "tasks": [TaskCount(domain="math", split="train", num_tasks=3)],
        "backlog": 8,
        "waits_for": ["training is off"],
        "groups": {"sampled": 2, "dead": 1},
        "rollouts": {},
        "consultations": {},
        "lessons": {},
        "corrections": {},
        "num_updates": 2,
        "last_updates": [
            UpdateSummary(id=UUID(int=2), number=2, metrics={"kl": 0.25, "loss": 1, "other": 3}, applied_at=NOW),
            UpdateSummary(id=UUID(int=1), number=1, metrics={"loss": 1.23456}, applied_at=NOW),
        ],
        "pass_rates": [PassRate(domain="math", num_judged=16, pass_rate=0.5)],
        "processes": [
            ProcessState(
                name="trainer", pid=1, activity="paused", counters={}, started_at=NOW, beat_at=datetime.now(UTC)
            )
        ],
    }
    return Status.model_validate(content | changes)


def result(number: int, num_passed: int, family: str = "f") -> TaskResult:
    return TaskResult(
        task_id=UUID(int=number),
        key=str(number),
        domain="math",
        family=family,
        temperature=1.0,
        num_judged=4,
        num_passed=num_passed,
        num_unjudged=0,
        mean_tokens=3.0,
    )


def evaluation(results: list[TaskResult]) -> EvaluationDetail:
    return EvaluationDetail(
        id=UUID(int=1),
        lineage_id=UUID(int=2),
        policy_version="base",
        split=Split.TRAIN,
        status=EvaluationStatus.DONE,
        settings={},
        num_rollouts=4,
        num_settled=4,
        created_at=NOW,
        finished_at=NOW,
        results=results,
    )


def test_the_status_in_words() -> None:
    assert list(report.status_lines(status())) == [
        "lineage main, model tiny, serving v1",
        "sampling on, training off, until update 9",
        "tasks: math train 3",
        "groups: 1 dead, 2 sampled",
        "rollouts: none",
        "consultations: none",
        "lessons: none",
        "corrections: none",
        "backlog: 8 rollouts sampled or planned, not yet trained on",
        "waits: training is off",
        "updates: 2",
        "  update 1: loss 1.235",
        "  update 2: loss 1, kl 0.25",
        "pass rate of the newest train rollouts: math 0.50 of 16",
        "trainer: paused (0 s ago)",
    ]


def test_an_update_in_one_line() -> None:
    shown = status()
    line = "update 2: loss 1, kl 0.25; train pass rate math 0.50"
    assert report.update_line(shown.last_updates[0], shown) == line
    unknown = report.update_line(shown.last_updates[1], status(pass_rates=[]))
    assert unknown == "update 1: loss 1.235; train pass rate not known yet"


def at(temperature: float, results: list[TaskResult]) -> list[TaskResult]:
    return [one.model_copy(update={"temperature": temperature}) for one in results]


def test_a_comparison_begins_with_each_version_at_its_best_temperature() -> None:
    low, high = [result(1, 1), result(2, 0, "g")], [result(1, 2), result(2, 1, "g")]
    before, after = (
        evaluation(results).model_copy(update={"best": choose_best(results, results)})
        for results in (at(0.5, high) + at(1.0, low), at(0.5, high) + at(1.0, high))
    )
    told = list(measures.comparison(before, after))
    assert told[0] == "base less base, each at its best temperature on validation tasks:"
    assert told[1] == "kind         figure          before         after  rise, with its 95 % interval over families"
    assert told[2].startswith("math         pass@1    0.375 at 0.5  0.375 at 0.5  +0.000 [-")
    assert told[2].endswith("] not reliable (2 families)")
    assert told[4:6] == [
        "both at the same temperature T:",
        "kind         figure       T  before   after  rise, with its 95 % interval over families",
    ]
    assert told[6].startswith("math         pass@1     0.5   0.375   0.375  +0.000 [-")
    assert told[7].startswith("math         pass@1       1   0.125   0.375  +0.250 [-")
    assert told[9].startswith("math         pass@4       1   0.500   1.000  +0.500 [")


def test_without_a_best_temperature_the_comparison_says_why() -> None:
    results = at(0.5, [result(1, 1)]) + at(1.0, [result(1, 2)])
    measured = evaluation(results).model_copy(update={"best": choose_best(results, [])})
    told = list(measures.comparison(measured, measured))
    assert told[2] == "math         pass@1   no best temperature: no validation tasks"
    assert list(measures.scores(measured))[3] == "math         pass@1   no best temperature: no validation tasks"
    line = measures.scores_line("before", measured)
    assert line == "pass@1 before, at the best temperature: math no best temperature (no validation tasks)"


def test_scores_of_few_families_are_clipped_and_said_to_be_not_reliable() -> None:
    spread = list(measures.scores(evaluation([result(1, 0), result(2, 4, "g")])))
    assert spread[0] == "kind         figure       T  passed, with its 95 % interval over families"
    assert spread[1] == "math         pass@1       1  0.500 [0.000, 1.000] not reliable (2 families)"
    alike = list(measures.scores(evaluation([result(1, 2), result(2, 2, "g")])))
    assert alike[1] == "math         pass@1       1  0.500 [0.095, 0.905] not reliable (2 families)"


def test_a_wait_is_said_once_when_it_has_stood_for_a_while_without_an_update() -> None:
    waits, full = report.Waits(), status(waits_for=["full"])
    assert waits.to_say(full, 0.0) == []
    assert waits.to_say(full, report.WAIT_SECONDS - 1) == []
    assert waits.to_say(status(waits_for=["full"], num_updates=3), report.WAIT_SECONDS) == [], "it moved"
    stands = status(waits_for=["full"], num_updates=3)
    assert waits.to_say(stands, 2 * report.WAIT_SECONDS) == ["full"]
    assert waits.to_say(stands, 9 * report.WAIT_SECONDS) == []
    assert waits.to_say(status(waits_for=[], num_updates=3), 9 * report.WAIT_SECONDS) == []
    assert waits.to_say(stands, 10 * report.WAIT_SECONDS) == []
    assert waits.to_say(stands, 11 * report.WAIT_SECONDS) == ["full"], "it went and came again"


def test_progress_in_a_file_is_a_line_now_and_then_and_one_at_the_end() -> None:
    out = io.StringIO()
    progress = Progress(Console(file=out, width=20))
    with progress.bar("a label that is long") as bar:
        bar.set(1, 4, "doing this")
        bar.set(2, 4)
        bar.set(4, 4)
    first, last = out.getvalue().splitlines()
    assert first == "[  0:00] a label that is long: 1 of 4; doing this"
    assert last == "[  0:00] a label that is long: 4 of 4"


def test_the_time_that_is_left_counts_only_what_was_done_since_the_work_began(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with Progress(Console(file=out)).bar("runs") as bar:
        bar.set(50, 100)  # done by an earlier start
        now[0] += 60
        bar.set(60, 100)
    assert out.getvalue().splitlines()[-1] == "[  1:00] runs: 60 of 100, about 240 s left"


def test_progress_on_a_terminal_is_a_bar_that_goes_away() -> None:
    out = io.StringIO()
    progress = Progress(Console(file=out, force_terminal=True, width=100))
    with progress.bar("updates") as bar:
        bar.set(1, 4, "doing this")
    progress.say("done")
    assert "done" in out.getvalue().splitlines()[-1]


def test_a_task_file_is_read_line_by_line_and_every_bad_line_is_named(tmp_path: Path) -> None:
    good = '{"key": "k", "domain": "math", "messages": [{"role": "user", "content": "x"}]}'
    file = tmp_path / "tasks.jsonl"
    file.write_text(f"{good}\n\n{good}\n")
    assert [task.key for task in starter.read_tasks(file)] == ["k", "k"]
    file.write_text(f'{good}\n{{"key": 1}}\nnot json\n')
    with pytest.raises(starter.TaskFileInvalid) as refused:
        starter.read_tasks(file)
    assert "2 bad lines\nline 2: " in refused.value.detail
    assert "\nline 3: the line: Invalid JSON" in refused.value.detail
    file.write_text("\n")
    with pytest.raises(InvalidInput, match="has no tasks"):
        starter.read_tasks(file)
    with pytest.raises(InvalidInput, match="cannot be read"):
        starter.read_tasks(tmp_path / "none")


def test_rates_are_those_of_the_last_two_minutes() -> None:
    def at(rollouts: int) -> Status:
        return status(rollouts={"open": 90, "ready": rollouts}, consultations={"answered": 3 * rollouts})

    rates = report.Rates()
    assert rates.measure(at(0), 0) == ""
    assert rates.measure(at(10), 60) == "10 rollouts, 30 answers, 0 lessons used per minute"
    assert rates.measure(at(10), 180) == "0 rollouts, 0 answers, 0 lessons used per minute"
    assert report.activity(at(10), "10 rollouts per minute") == (
        "trainer paused; serving v1; 10 rollouts per minute; backlog 8"
    )


def test_the_status_says_how_often_updates_come() -> None:
    minutes = [
        UpdateSummary(id=UUID(int=n), number=n, metrics={}, applied_at=NOW + timedelta(minutes=n)) for n in range(1, 4)
    ]
    assert "updates: 2, the last 3 at 60 per hour" in list(report.status_lines(status(last_updates=minutes)))
    assert "updates: 2" in list(report.status_lines(status(last_updates=minutes[:1])))
