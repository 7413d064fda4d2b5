"""The process of the tests: finds them, runs each in turn against the solution and reports how it went.

The tests come from the author, who asks for the verdict, and are trusted; the solution's answers are data. With live
objects the solution is loaded in this process and could then forge a verdict. Only the standard library.
"""

import contextlib
import io
import json
import os
import sys
import traceback
import types
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final, NoReturn

from sandbox.inside.judge_codec import MAX_TEXT, Broken, ChannelClosed, Json, NotInTime, shorten, trace_from
from sandbox.inside.judge_finding import TESTS_FILE, Failed, Test, find_tests
from sandbox.inside.judge_remote import Lacking, LoadError, NeedsLiveObjects, RemoteError, Solution, SolutionObject
from sandbox.inside.kernel import write_whole

SOLUTION_FILE: Final = "solution.py"
"""Only where the solution is loaded here."""
TERMS_FILE: Final = "judge.json"
"""A `Terms`."""
LOADED: Final = "loaded"
ASKED: Final = "asked"
TEXTS_PER_TEST: Final = 6
"""Its name, and those of a `Line`."""


@dataclass(frozen=True)
class Terms:
    """The tests and how to compare results."""

    kind: str
    """The kind of tests: CALLS or PROGRAM."""
    entry_point: str
    """Empty if there is none."""
    seconds: float
    """That the solution has for an answer."""
    max_tests: int
    report_chars: int
    """That all texts of the report together may have."""
    first: int = 0
    """The tests before this one have their verdicts, from an earlier process of the solution."""
    lost: tuple[int, ...] = ()
    """Those of them that ended it."""


@dataclass(frozen=True)
class Line:
    """How one test went, as written to the server; `verdict` is a word of the contract, or "lost" when the solution's
    process ended under the test."""

    number: int
    verdict: str
    message: str = ""
    input: str = ""
    expected: str = ""
    got: str = ""
    trace: str = ""
    needs_live_objects: bool = False


class _Report:
    """Reports to the server, one JSON line per test. For a failing test, the last call is its input."""

    def __init__(self) -> None:
        self._descriptor = os.dup(1)
        self.last_call = ""

    def say(self, content: dict[str, Json]) -> None:
        # a lone surrogate, which the server would refuse, becomes a question mark
        write_whole(self._descriptor, json.dumps(content, ensure_ascii=False).encode("utf-8", "replace") + b"\n")

    def begin(self) -> None:
        self.say({"phase": ASKED})

    def note(self, call: str) -> None:
        self.last_call = call


def judge(folder: str, channel: int, *, live: bool) -> NoReturn:
    """Write that the solution is loaded, when it is first asked something, and all names; then for each test its number
    before it begins, and how it went after. Ends the process.

    Instead of the names, `load_error` is written when it is the solution that kept the tests from beginning, null if it
    ended or did not answer; `tests_error` when it is the tests.
    """
    report = _Report()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    sys.stdout = io.StringIO()
    connection: Solution | None = None
    try:
        with open(f"{folder}/{TERMS_FILE}", encoding="utf-8") as file:
            terms = Terms(**json.load(file))
        if live:
            solution: Solution | types.ModuleType = _load_live(folder)
        else:
            solution = connection = Solution(channel, terms.seconds, report)
            connection.load()
        report.say({"phase": LOADED})
        tests = find_tests(folder, terms.kind, terms.entry_point, solution)
        _raise_failure(connection)
        _judge_all(tests, terms, connection, report)
    except BaseException as error:  # noqa: BLE001 -- the tests' own, or the solution's: told to the server
        report.say(_blame(error, connection))
    finally:
        os._exit(0)


def _judge_all(tests: list[Test], terms: Terms, connection: Solution | None, report: _Report) -> None:
    if len(tests) > terms.max_tests:
        report.say({"tests_error": f"there are more than {terms.max_tests} tests"})
        return
    max_text = min(MAX_TEXT, terms.report_chars // (TEXTS_PER_TEST * max(1, len(tests))))
    report.say({"tests": [shorten(test.name, max_text) for test in tests]})
    for number, test in enumerate(tests[: terms.first]):
        _do_again(test, connection, is_lost=number in terms.lost)
    for number, test in enumerate(tests[terms.first :], terms.first):
        report.say({"begin": number})
        report.last_call = ""
        line = _run_test(number, test, connection, lambda: report.last_call)
        texts = {key: shorten(text, max_text) for key, text in asdict(line).items() if isinstance(text, str)}
        report.say({"end": {**asdict(line), **texts}})
        if connection is not None and connection.failure is not None:
            break


def _raise_failure(connection: Solution | None) -> None:
    """Raise the error that ended the exchange; tests may have caught it. Raises ChannelClosed, NotInTime, Broken."""
    if connection is not None and connection.failure is not None:
        raise connection.failure


def _blame(error: BaseException, connection: Solution | None) -> dict[str, Json]:
    """Decide whether the tests or the solution kept any test from starting.

    Once the solution has answered anything, later errors may stem from that answer: they count as the solution's.
    So does an undefined name, since the solution chooses its names.
    """
    if connection is not None and connection.failure is not None:
        error = connection.failure
    match error:
        case LoadError():
            return {"load_error": str(error)}
        case ChannelClosed() | NotInTime():
            return {"load_error": None}
        case Broken():
            return {"load_error": f"the solution's process sent an unreadable message: {error}"}
        case RemoteError():
            return {"load_error": f"it failed before the first test: {error.trace}"}
    need = _needs_live_objects(error, connection)
    if need:
        return {
            "load_error": f"code before the first test needs live objects: it {need}",
            "needs_live_objects": True,
        }
    trace = shorten(traceback.format_exc(limit=-3))
    if isinstance(error, ImportError) and error.name not in (None, "solution"):
        return {"tests_error": trace}
    is_lacking = isinstance(error, ImportError | Lacking | NameError)
    was_asked = connection is not None and connection.was_asked
    return {"load_error" if is_lacking or was_asked or trace_from(error, SOLUTION_FILE) else "tests_error": trace}


def _needs_live_objects(error: BaseException | None, connection: Solution | None) -> str:
    """The first operation of the tests that needs live objects; empty if there was none."""
    if connection is not None and connection.needed is not None:
        return str(connection.needed)
    if isinstance(error, NeedsLiveObjects):
        return str(error)
    # Python or a library could not use the stand-in as the tests intended
    if isinstance(error, TypeError | ValueError) and any(text in str(error) for text in _ABOUT_STAND_INS):
        return f"ends in {type(error).__name__}: {error}"
    return ""


_ABOUT_STAND_INS: Final = (SolutionObject.__name__, "a coroutine was expected, got <coroutine")


def _load_live(folder: str) -> types.ModuleType:
    """Load the solution into this process. Raises LoadError."""
    path = f"{folder}/{SOLUTION_FILE}"
    module = types.ModuleType("solution")
    module.__file__ = path
    sys.modules["solution"] = module
    try:
        with open(path, "rb") as file:
            exec(compile(file.read(), path, "exec", dont_inherit=True), module.__dict__)  # noqa: S102
    except BaseException as error:  # noqa: BLE001 -- told to the server
        raise LoadError(_explain(error, path)) from None
    return module


def _explain(error: BaseException, path: str) -> str:
    """The exception, with its traceback from the first line of a file on."""
    return shorten("".join(traceback.format_exception(type(error), error, trace_from(error, path))))


def _do_again(test: Test, connection: Solution | None, *, is_lost: bool) -> None:
    """Bring a new process of the solution to where the earlier one was: statements build on those above them, other
    tests on none. Raises ChannelClosed, NotInTime, Broken."""
    if test.above is None:
        return
    with contextlib.suppress(BaseException):  # it has its verdict
        (test.above if is_lost else test.run)()
    _raise_failure(connection)


def _run_test(number: int, test: Test, connection: Solution | None, input_of: Callable[[], str]) -> Line:
    """The verdict of a test. The fate of the solution's process counts first, then operations that need live objects,
    because a test may catch either."""
    if connection is not None:
        connection.needed = None
    try:
        test.run()
        error: BaseException | None = None
    except BaseException as raised:  # noqa: BLE001 -- any exception fails the test
        error = raised
    failure = connection.failure if connection is not None else None
    need = "" if failure is not None else _needs_live_objects(error, connection)

    def line(verdict: str, message: str = "", **more: str) -> Line:
        return Line(number, verdict, message, input_of(), needs_live_objects=bool(need), **more)

    if need:
        return line("error", f"the test needs live objects: it {need}")
    match failure if failure is not None else error:
        case None:
            return Line(number, "passed")
        case NotInTime():
            return line("timeout", "the solution did not answer in time")
        case ChannelClosed():
            return line("lost")
        case Broken() as broken:
            return line("error", f"the solution's process sent an unreadable message: {broken}")
        case Failed() as failed:
            return line("failed", str(failed), expected=failed.expected, got=failed.got)
        case RemoteError() as remote:
            return line("error", f"{remote.kind}: {remote}" if remote.kind else str(remote), trace=remote.trace)
        case AssertionError() as failed:
            return line("failed", str(failed))
        case BaseException() as other:
            if type(other).__name__ == "SkipTest":  # of unittest, which is only there when the tests load it
                return line("skipped", str(other))
            return line("error", f"{type(other).__name__}: {other}", trace=_explain(other, TESTS_FILE))
