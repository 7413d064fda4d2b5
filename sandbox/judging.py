"""From a solution and its tests to jobs, and from what comes back to verdicts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from sandbox.contract import (
    CallTests,
    Compilation,
    JudgeMode,
    JudgeRequest,
    JudgeResult,
    Level,
    Limits,
    ProgramTests,
    RunRequest,
    RunResult,
    Status,
    StdioTest,
    TestVerdict,
    Verdict,
)
from sandbox.judge_tests import SOLUTION_FILE, TERMS_FILE, TESTS_FILE
from sandbox.languages import Toolchain, make_job
from sandbox.results import make_result
from sandbox.wire import Ending, Job, Outcome, Role

REPORT_BYTES = 1 << 20
"""Kept of what the tests' process says."""
_TESTS_MEMORY_BYTES = 512 << 20
_MAX_SHOWN = 2000
_LOST = {
    Status.MEMORY: (Verdict.MEMORY, "the solution used up its memory"),
    Status.TIMEOUT: (Verdict.TIMEOUT, "the solution used up its time"),
}
_JudgeStatus = Literal["judged", "not_loaded", "not_compiled", "tests_failed_to_load", "sandbox_error"]


def make_judge_job(request: JudgeRequest, toolchain: Toolchain) -> Job:
    """The run of the tests, with the solution's as its partner; or both in one where the tests need live objects."""
    tests = request.tests
    assert isinstance(tests, ProgramTests | CallTests)
    limits = request.limits.model_copy(update={"output_bytes": REPORT_BYTES})
    if isinstance(tests, ProgramTests):
        code, entry_point, live = tests.code, tests.entry_point, tests.live_objects
        if code.startswith("["):
            code = "\n" + code  # a list of calls begins so
    else:
        code, entry_point, live = json.dumps([case.model_dump(mode="json") for case in tests.cases]), "", False
    terms = json.dumps({"entry_point": entry_point, "seconds": request.test_seconds}).encode()
    solution = request.solution.encode()
    files = {TERMS_FILE: terms, **({SOLUTION_FILE: solution} if live else {})}
    base = make_job(RunRequest(code=code, language=request.language, limits=limits), toolchain)
    tests_job = replace(base, files=files, main_file=TESTS_FILE, role=Role.LIVE_TESTS if live else Role.TESTS)
    if live:
        return tests_job
    alone = make_job(RunRequest(code="", language=request.language, limits=request.limits), toolchain)
    partner = replace(alone, code=solution, main_file=SOLUTION_FILE, role=Role.SOLUTION)
    # its own process's time: the tests' is bounded by wall time, and it is they who notice when the solution's is up
    return replace(
        tests_job,
        partner=partner,
        wall_seconds=request.limits.wall_seconds + 1,
        memory_bytes=max(_TESTS_MEMORY_BYTES, request.limits.memory_bytes),
    )


@dataclass
class _Report:
    """What the tests' process wrote, up to where it broke off."""

    names: list[str] = field(default_factory=list)
    begun: int = -1
    verdicts: dict[int, TestVerdict] = field(default_factory=dict)
    lost_on: int | None = None
    load_error: str | None = None
    tests_error: str | None = None
    lost_at_load: str | None = None


def _read_report(text: str) -> _Report:
    """Read line by line; a line that is cut off at the end is left out."""
    report = _Report()
    for line in text.splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            break
        if "tests" in content:
            report.names = content["tests"]
        elif "begin" in content:
            report.begun = content["begin"]
        elif "end" in content and content["verdict"] == "lost":
            report.lost_on = content["end"]
            report.verdicts[report.lost_on] = _make_verdict({**content, "verdict": "error"})
        elif "end" in content:
            report.verdicts[content["end"]] = _make_verdict(content)
        else:
            report.load_error = content.get("load_error", report.load_error)
            report.tests_error = content.get("tests_error", report.tests_error)
            report.lost_at_load = content.get("lost", report.lost_at_load)
    return report


def _make_verdict(content: Mapping[str, str]) -> TestVerdict:
    return TestVerdict(
        name=content["name"],
        verdict=Verdict(content["verdict"]),
        message=content["message"],
        input=content["input"],
        expected=content["expected"],
        got=content["got"],
        traceback=content["trace"],
    )


def read_verdicts(outcome: Outcome, request: JudgeRequest, level: Level) -> JudgeResult:
    """What became of every test."""
    live = outcome.partner is None
    solution = make_result(outcome.partner or outcome, request.limits, level)
    if outcome.ending == Ending.FAULT:
        return _result("sandbox_error", make_result(outcome, request.limits, level).reason, (), solution, live=live)
    report = _read_report(outcome.stdout.decode(errors="replace"))
    end = _explain_end(outcome, solution, live=live)
    if report.tests_error is not None:
        return _result("tests_failed_to_load", report.tests_error, (), solution, live=live)
    if not report.names:
        reason = report.load_error or end[1]
        if report.load_error is None and report.lost_at_load is None and outcome.ending == Ending.EXITED:
            return _result("tests_failed_to_load", "there is no test in the tests", (), solution, live=live)
        return _result("not_loaded", reason, (), solution, live=live)
    verdicts = dict(report.verdicts)
    if report.lost_on is not None:
        verdicts[report.lost_on] = _ended(verdicts[report.lost_on], end)
    elif report.begun not in verdicts:
        verdicts[report.begun] = _ended(TestVerdict(name=report.names[report.begun], verdict=Verdict.ERROR), end)
    missing = {
        number: TestVerdict(name=name, verdict=Verdict.NOT_RUN, message="the solution had ended before")
        for number, name in enumerate(report.names)
        if number not in verdicts
    }
    tests = tuple((verdicts | missing)[number] for number in range(len(report.names)))
    return _result("judged", "the tests were run", tests, solution, live=live)


def _ended(verdict: TestVerdict, end: tuple[Verdict, str]) -> TestVerdict:
    return verdict.model_copy(update={"verdict": end[0], "message": end[1]})


def _explain_end(outcome: Outcome, solution: RunResult, *, live: bool) -> tuple[Verdict, str]:
    """What it was when the tests broke off: the solution's end, or the tests' own."""
    if solution.status in _LOST:
        return _LOST[solution.status]
    if outcome.ending in (Ending.WALL, Ending.CPU):
        return Verdict.TIMEOUT, "the tests were still running when all time was up"
    if outcome.ending == Ending.MEMORY:
        return Verdict.MEMORY, "the tests used up their memory"
    who = "the process" if live else "the solution's process"
    return Verdict.ERROR, f"{who} {solution.reason}, in the middle of it"


def _result(
    status: _JudgeStatus, reason: str, tests: tuple[TestVerdict, ...], solution: RunResult, *, live: bool
) -> JudgeResult:
    return JudgeResult(
        status=status,
        reason=reason,
        passed=bool(tests) and all(test.verdict == Verdict.PASSED for test in tests),
        tests=tests,
        mode=JudgeMode.ONE_PROCESS if live else JudgeMode.TWO_PROCESSES,
        stdout="" if live else solution.stdout,
        stderr=solution.stderr,
        wall_seconds=solution.wall_seconds,
        cpu_seconds=solution.cpu_seconds,
        isolation=solution.isolation,
    )


def stdio_limits(limits: Limits, expected: str) -> Limits:
    """The limits of a run whose output has to be seen whole to be right."""
    enough = min(1 << 20, max(limits.output_bytes, 2 * len(expected.encode()) + 1024))
    return limits.model_copy(update={"output_bytes": enough})


def judge_stdio(number: int, case: StdioTest, run: RunResult) -> TestVerdict:
    """The verdict on one run by its output."""
    name = f"input {number + 1}"
    shown = {"input": _shorten(case.stdin), "expected": _shorten(case.stdout), "got": _shorten(run.stdout)}
    match run.status:
        case Status.OK if not run.stdout_truncated and _lines(run.stdout) == _lines(case.stdout):
            return TestVerdict(name=name, verdict=Verdict.PASSED)
        case Status.OK | Status.OUTPUT:
            message = "too much output" if run.stdout_truncated else "wrong output"
            return TestVerdict(name=name, verdict=Verdict.FAILED, message=message, **shown)
        case Status.TIMEOUT:
            return TestVerdict(name=name, verdict=Verdict.TIMEOUT, message=run.reason, **shown)
        case Status.MEMORY:
            return TestVerdict(name=name, verdict=Verdict.MEMORY, message=run.reason, **shown)
        case _:
            trace = _shorten(run.stderr)
            return TestVerdict(name=name, verdict=Verdict.ERROR, message=run.reason, traceback=trace, **shown)


def join_stdio(
    tests: list[TestVerdict], runs: list[RunResult], level: Level, compilation: Compilation | None
) -> JudgeResult:
    """The result of all runs; a fault of the sandbox in one of them is not a verdict."""
    status: _JudgeStatus = "judged"
    reason = "the tests were run"
    if compilation is not None and compilation.status == Status.NOT_COMPILED:
        status, reason = "not_compiled", compilation.reason
    faults = [run.reason for run in runs if run.status == Status.SANDBOX_ERROR]
    if faults:
        status, reason = "sandbox_error", faults[0]
    judged = tuple(tests) if status == "judged" else ()
    return JudgeResult(
        status=status,
        reason=reason,
        passed=bool(judged) and all(test.verdict == Verdict.PASSED for test in judged),
        tests=judged,
        mode=JudgeMode.TWO_PROCESSES,
        stdout="",
        stderr="",
        wall_seconds=sum(run.wall_seconds for run in runs),
        cpu_seconds=sum(run.cpu_seconds for run in runs),
        isolation=level,
        compilation=compilation,
    )


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]} …"
