"""From a solution and its tests to jobs, and from their outcomes to verdicts."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sandbox.contract import (
    MAX_PROGRAM_TESTS,
    MAX_SITTINGS,
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
from sandbox.inside.judge_finding import CALLS, PROGRAM, TESTS_FILE
from sandbox.inside.judge_tests import ASKED, LOADED, SOLUTION_FILE, TERMS_FILE, Terms
from sandbox.inside.wire import Job, Outcome, Role
from sandbox.server.languages import Toolchain, make_job
from sandbox.server.results import make_result

_REPORT_BYTES = {False: 16 << 20, True: 2 << 20}
"""Kept output of the tests' process: without live objects, and with them, where it may be the solution's."""
_BYTES_PER_CHAR = 8
"""At most six bytes, as JSON escapes them; the rest is for fields that are no text."""
_MAX_LINES = 2 * MAX_PROGRAM_TESTS + 4
_LEAST_SECONDS = 0.1
"""Left, or no session is begun."""
_TESTS_MEMORY_BYTES = 512 << 20
_MAX_SHOWN = 2000
_LOST = {
    Status.MEMORY: (Verdict.MEMORY, "the solution used up its memory"),
    Status.TIMEOUT: (Verdict.TIMEOUT, "the solution used up its time"),
}
_JudgeStatus = Literal["judged", "not_loaded", "not_compiled", "tests_failed_to_load", "sandbox_error"]


class _Ended(BaseModel):
    """How one test went, as the tests' process writes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    verdict: Verdict | Literal["lost"]
    message: str
    input: str
    expected: str
    got: str
    trace: str
    needs_live_objects: bool


class _Line(BaseModel):
    """A line written by the tests' process; one of these."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    phase: Literal["loaded", "asked"] | None = None
    tests: tuple[str, ...] | None = Field(None, max_length=MAX_PROGRAM_TESTS)
    begin: int | None = None
    end: _Ended | None = None
    load_error: str | None = None
    tests_error: str | None = None
    needs_live_objects: bool = False


def _read_lines(report: bytes) -> list[_Line]:
    """Line by line, up to where it breaks off; with live objects a solution may have written anything."""
    lines: list[_Line] = []
    for text in report.split(b"\n", _MAX_LINES)[:_MAX_LINES]:
        try:
            line = _Line.model_validate_json(text)
        except ValidationError:
            break
        if not line.model_fields_set:
            break
        lines.append(line)
    return lines


class JudgeSession:
    """The judging of one Python solution. Each session has a new process of the solution; where a test ends it, or gets
    no answer from it, the tests that follow have another session, as long as time is left.

    Take a job from `next_job` and give its outcome to `take`, until there is none; then read `result`.
    """

    def __init__(self, request: JudgeRequest, toolchain: Toolchain, level: Level) -> None:
        assert isinstance(request.tests, ProgramTests | CallTests)
        self._request = request
        self._tests = request.tests
        self._toolchain = toolchain
        self._level = level
        self._live = isinstance(request.tests, ProgramTests) and request.tests.live_objects
        self._names: tuple[str, ...] = ()
        self._verdicts: dict[int, TestVerdict] = {}
        self._lost: list[int] = []
        self._num_sittings = 0
        self._wall_seconds = self._cpu_seconds = 0.0
        self._stdout = self._stderr = ""
        self._problem: tuple[_JudgeStatus, str] | None = None
        self._needs_live_objects = False
        self._was_asked = self._live
        self._stopped = ""

    def next_job(self) -> Job | None:
        """The run of the tests, and of the solution as its partner; with live objects one run. None at the end."""
        if self._problem is not None or (self._num_sittings and len(self._verdicts) >= len(self._names)):
            return None
        limits = self._request.limits
        wall_seconds = limits.wall_seconds - self._wall_seconds
        cpu_seconds = limits.cpu_seconds - self._cpu_seconds
        if self._num_sittings and not self._stopped:
            if min(wall_seconds, cpu_seconds) < _LEAST_SECONDS:
                self._stopped = "no time was left for it"
            elif self._num_sittings == MAX_SITTINGS:
                self._stopped = f"the solution's process had ended {MAX_SITTINGS} times"
        if self._stopped:
            return None
        return self._make_job(wall_seconds, cpu_seconds)

    def _make_job(self, wall_seconds: float, cpu_seconds: float) -> Job:
        request, tests = self._request, self._tests
        solution = request.solution.encode()
        if isinstance(tests, ProgramTests):
            kind, code, entry_point = PROGRAM, tests.code, tests.entry_point
        else:
            kind, code, entry_point = CALLS, json.dumps([case.model_dump(mode="json") for case in tests.cases]), ""
        report_bytes = _REPORT_BYTES[self._live]
        terms = Terms(
            kind,
            entry_point,
            request.test_seconds,
            MAX_PROGRAM_TESTS,
            report_bytes // _BYTES_PER_CHAR,
            first=len(self._verdicts),
            lost=tuple(self._lost),
        )
        alone = make_job(RunRequest(code="", language=request.language, limits=request.limits), self._toolchain)
        alone = replace(alone, wall_seconds=wall_seconds, cpu_seconds=cpu_seconds)
        tests_job = replace(
            alone,
            code=code.encode(),
            files={TERMS_FILE: json.dumps(asdict(terms)).encode(), **({SOLUTION_FILE: solution} if self._live else {})},
            main_file=TESTS_FILE,
            output_bytes=report_bytes,
            role=Role.LIVE_TESTS if self._live else Role.TESTS,
        )
        if self._live:
            return tests_job
        # the tests' own time is bounded by wall time, and it is they who notice when the solution's is up
        return replace(
            tests_job,
            partner=replace(alone, code=solution, main_file=SOLUTION_FILE, role=Role.SOLUTION),
            wall_seconds=wall_seconds + 1,
            cpu_seconds=request.limits.cpu_seconds,
            memory_bytes=max(_TESTS_MEMORY_BYTES, request.limits.memory_bytes),
        )

    def take(self, outcome: Outcome) -> None:
        """Read the output of the session's tests, and the reason for its end."""
        limits = self._request.limits
        solution = make_result(outcome.partner or outcome, limits, self._level)
        self._num_sittings += 1
        self._wall_seconds += solution.wall_seconds
        self._cpu_seconds += solution.cpu_seconds
        if not self._live:
            self._stdout = (self._stdout + solution.stdout)[: limits.output_bytes]
        self._stderr = (self._stderr + solution.stderr)[: limits.output_bytes]
        tests = make_result(outcome, limits, self._level)
        if tests.status == Status.SANDBOX_ERROR:
            self._problem = ("sandbox_error", tests.reason)
            return
        lines = _read_lines(outcome.stdout)
        self._was_asked |= any(line.phase == ASKED for line in lines)
        names = next((line.tests for line in lines if line.tests is not None), None)
        if names is None and self._num_sittings == 1:
            self._problem = self._explain_no_tests(lines, tests, solution)
        elif self._num_sittings == 1 and names == ():
            self._problem = ("tests_failed_to_load", "there is no test in the tests")
        elif names is None or (self._num_sittings > 1 and names != self._names):
            self._stopped = "the solution could not be brought to it again"
        else:
            self._names = names
            self._take_verdicts(lines, tests, solution)

    def _take_verdicts(self, lines: list[_Line], tests: RunResult, solution: RunResult) -> None:
        # a test of which no end is told has ended its own process, or was ended; one that saw the solution end tells it
        broken_off = self._explain_solution(solution) if self._live else _explain_tests(tests)
        first = number = len(self._verdicts)
        for line in lines:
            if line.begin is not None and line.begin == len(self._verdicts) < len(self._names):
                number = line.begin
                verdict, message = broken_off
                self._verdicts[number] = TestVerdict(name=self._names[number], verdict=verdict, message=message)
            elif line.end is not None and line.end.number == number == len(self._verdicts) - 1:
                self._verdicts[number] = _make_verdict(self._names[number], line.end, self._explain_solution(solution))
        if len(self._verdicts) == first:
            self._stopped = "the solution could not be brought to it again"
        self._lost.append(len(self._verdicts) - 1)

    def result(self) -> JudgeResult:
        """The verdict of every test."""
        judged = list(self._verdicts.values())
        problem = self._problem
        if not self._was_asked and _is_passed(judged):
            problem = ("tests_failed_to_load", "the tests passed without asking the solution anything")
        status, reason = problem or ("judged", "the tests were run")
        if problem:
            judged = []
        else:
            left = self._names[len(judged) :]
            judged += [TestVerdict(name=name, verdict=Verdict.NOT_RUN, message=self._stopped) for name in left]
        return JudgeResult(
            status=status,
            reason=reason,
            passed=_is_passed(judged),
            tests=tuple(judged),
            mode=JudgeMode.ONE_PROCESS if self._live else JudgeMode.TWO_PROCESSES,
            stdout=self._stdout,
            stderr=self._stderr,
            wall_seconds=self._wall_seconds,
            cpu_seconds=self._cpu_seconds,
            isolation=self._level,
            needs_live_objects=self._needs_live_objects or any(test.needs_live_objects for test in judged),
        )

    def _explain_no_tests(self, lines: list[_Line], tests: RunResult, solution: RunResult) -> tuple[_JudgeStatus, str]:
        """Decide whether the tests or the solution ended the tests' process. It is the tests' own fault only if the
        solution was loaded and not yet called; from then on an answer may be the cause."""
        said = lines[-1] if lines else _Line()
        self._needs_live_objects = said.needs_live_objects
        if said.tests_error is not None:
            return "tests_failed_to_load", said.tests_error
        if "load_error" in said.model_fields_set or self._live:
            return "not_loaded", said.load_error or self._explain_solution(solution)[1]
        phases = {line.phase for line in lines}
        if ASKED in phases:
            return "not_loaded", f"after the solution's first answers {_explain_tests(tests)[1]}"
        if LOADED in phases:
            return "tests_failed_to_load", f"before the first of them {_explain_tests(tests)[1]}"
        return "not_loaded", self._explain_solution(solution)[1]

    def _explain_solution(self, solution: RunResult) -> tuple[Verdict, str]:
        """The verdict when the solution's process ended during a test."""
        if solution.status in _LOST:
            return _LOST[solution.status]
        who = "the process" if self._live else "the solution's process"
        return Verdict.ERROR, f"{who} {solution.reason}, in the middle of it"


def _is_passed(tests: Sequence[TestVerdict]) -> bool:
    verdicts = {test.verdict for test in tests}
    return Verdict.PASSED in verdicts and verdicts <= {Verdict.PASSED, Verdict.SKIPPED}


def _explain_tests(tests: RunResult) -> tuple[Verdict, str]:
    """The verdict when the tests' process ended while it did not wait for the solution."""
    if tests.status == Status.TIMEOUT:
        return Verdict.TIMEOUT, "the tests were still busy when all time was up"
    if tests.status == Status.MEMORY:
        return Verdict.MEMORY, "the tests, with the answers they had, used up their memory"
    return Verdict.ERROR, f"the tests' own process {tests.reason}, in the middle of it"


def _make_verdict(name: str, ended: _Ended, lost: tuple[Verdict, str]) -> TestVerdict:
    verdict, message = lost if ended.verdict == "lost" else (ended.verdict, ended.message)
    return TestVerdict(
        name=name,
        verdict=verdict,
        message=message,
        input=ended.input,
        expected=ended.expected,
        got=ended.got,
        traceback=ended.trace,
        needs_live_objects=ended.needs_live_objects,
    )


def stdio_limits(limits: Limits, expected: str) -> Limits:
    """The limits of a run whose whole output is compared, including white space that does not count."""
    enough = max(limits.output_bytes, 2 * len(expected.encode()) + 1024)
    return limits.model_copy(update={"output_bytes": enough})


def judge_stdio(number: int, case: StdioTest, run: RunResult) -> TestVerdict:
    """The verdict on one run by its output."""
    name = f"input {number + 1}"
    shown = {"input": _shorten(case.stdin), "expected": _shorten(case.stdout), "got": _shorten(run.stdout)}
    match run.status:
        case Status.OK if not run.stdout_truncated and _is_same(run.stdout, case.stdout):
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


def judge_too_late(number: int) -> TestVerdict:
    """The verdict on a run that was not begun."""
    return TestVerdict(name=f"input {number + 1}", verdict=Verdict.NOT_RUN, message="no time was left for it")


def join_stdio(
    tests: list[TestVerdict], runs: list[RunResult], level: Level, compilation: Compilation | None
) -> JudgeResult:
    """The result of all runs; a fault of the sandbox in one of them is not a verdict."""
    status: _JudgeStatus = "judged"
    reason = "the tests were run"
    if runs and runs[0].status == Status.NOT_COMPILED:
        status, reason = "not_compiled", runs[0].reason
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


def _is_same(got: str, expected: str) -> bool:
    return got == expected or _lines(got) == _lines(expected)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]} …"
