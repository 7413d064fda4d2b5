"""The process of the tests: finds them, runs one after another against the solution, and says how each went.

The tests are their author's, who asks for the verdict, and are believed; what the solution answers is data. With live
objects the solution is loaded here instead, and could then forge a verdict. Only the standard library.
"""

import ast
import builtins
import io
import json
import linecache
import os
import sys
import traceback
import types
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final, NoReturn

from sandbox.judge_codec import Broken, ChannelClosed, Json, NotInTime, shorten, show
from sandbox.judge_remote import LoadError, NeedsLiveObjects, RemoteError, Solution

TESTS_FILE: Final = "tests.py"
"""Their code, or a list of calls as JSON."""
SOLUTION_FILE: Final = "solution.py"
"""Only where the solution is loaded here."""
TERMS_FILE: Final = "judge.json"
"""A `Terms`."""
CALLS: Final = "calls"
PROGRAM: Final = "program"
_EQUAL, _TRUE = "__judge_equal__", "__judge_true__"


@dataclass(frozen=True)
class Terms:
    """What to judge by."""

    kind: str
    """What the tests are: CALLS or PROGRAM."""
    entry_point: str
    """Empty if there is none."""
    seconds: float
    """That the solution has for an answer."""
    first: int = 0
    """The tests before this one have their verdicts, from an earlier process of the solution."""
    lost: tuple[int, ...] = ()
    """Those of them that ended it."""


@dataclass(frozen=True)
class Line:
    """How one test went, as written to the server; `verdict` is a word of the contract, or "lost" when the solution's
    process ended under the test."""

    number: int
    name: str
    verdict: str
    message: str = ""
    input: str = ""
    expected: str = ""
    got: str = ""
    trace: str = ""


class Failed(AssertionError):
    """An assertion did not hold."""

    def __init__(self, message: str, expected: str = "", got: str = "") -> None:
        super().__init__(message)
        self.expected, self.got = expected, got


class _LastCall:
    """What the solution was last asked; the input of a test that fails."""

    def __init__(self) -> None:
        self.text = ""

    def note(self, call: str) -> None:
        self.text = call


def judge(folder: str, channel: int, *, live: bool) -> NoReturn:
    """Write all names, then for each test its number before it begins, and how it went after. Ends the process.

    `load_error` is written when the solution did not come so far, null if it ended or did not answer; `tests_error`
    when the tests did not.
    """
    report = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    sys.stdout = io.StringIO()

    def say(content: dict[str, Json]) -> None:
        data = memoryview(json.dumps(content).encode("ascii") + b"\n")
        while data:
            data = data[os.write(report, data) :]

    last = _LastCall()
    try:
        with open(f"{folder}/{TERMS_FILE}", encoding="utf-8") as file:
            terms = Terms(**json.load(file))
        solution = _load_live(folder) if live else _connect(channel, terms.seconds, last)
        tests = _find_tests(folder, terms, solution)
        say({"tests": [test.name for test in tests]})
        for number, test in enumerate(tests[: terms.first]):
            _do_again(test, is_lost=number in terms.lost)
        for number, test in enumerate(tests[terms.first :], terms.first):
            say({"begin": number})
            last.text = ""
            line, goes_on = _run_test(number, test, last)
            say({"end": asdict(line)})
            if not goes_on:
                break
    except LoadError as error:
        say({"load_error": str(error)})
    except (ChannelClosed, NotInTime):
        say({"load_error": None})
    except Broken as error:
        say({"load_error": f"the solution's process sent what means nothing: {error}"})
    except RemoteError as error:
        say({"load_error": f"it failed before the first test: {error.trace}"})
    except Exception as error:  # noqa: BLE001 -- the tests' own
        is_lacking = isinstance(error, ImportError) and error.name == "solution"
        what = "load_error" if is_lacking else "tests_error"
        say({what: shorten(traceback.format_exc(limit=-3))})
    finally:
        os._exit(0)


def _connect(channel: int, seconds: float, last: _LastCall) -> types.ModuleType:
    solution = Solution(channel, seconds, last)
    solution.load()
    return _RemoteModule(solution)


class _RemoteModule(types.ModuleType):
    """The module `solution`, and what its names stand for."""

    def __init__(self, solution: Solution) -> None:
        super().__init__("solution")
        self.__dict__["_solution"] = solution
        self.__dict__["__all__"] = list(solution.names)
        self.__dict__["__file__"] = SOLUTION_FILE

    def __getattr__(self, name: str) -> object:
        solution: Solution = self.__dict__["_solution"]
        return solution.name(name)


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


def _explain(error: BaseException, first_path: str) -> str:
    """The traceback from the first line of a file on."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != first_path:
        trace = trace.tb_next
    return shorten("".join(traceback.format_exception(type(error), error, trace)))


@dataclass(frozen=True)
class _Test:
    name: str
    run: Callable[[], None]
    above: Callable[[], None] | None = None
    """For a statement of a program: what stands between it and the test before. It is part of `run`."""


def _do_again(test: _Test, *, is_lost: bool) -> None:
    """Bring a new process of the solution to where the earlier one was: statements build on those above them, other
    tests on none. Raises ChannelClosed, NotInTime, Broken."""
    if test.above is None:
        return
    try:
        (test.above if is_lost else test.run)()
    except (ChannelClosed, NotInTime, Broken):
        raise
    except BaseException:  # noqa: BLE001, S110 -- it has its verdict
        pass


def _run_test(number: int, test: _Test, last: _LastCall) -> tuple[Line, bool]:
    """How it went, and whether the solution can still be asked."""

    def line(verdict: str, message: str = "", *, expected: str = "", got: str = "", trace: str = "") -> Line:
        return Line(number, test.name, verdict, shorten(message), last.text, expected, got, trace)

    try:
        test.run()
    except Failed as error:
        return line("failed", str(error), expected=error.expected, got=error.got), True
    except NotInTime:
        return line("timeout", "the solution did not answer in time"), False
    except ChannelClosed:
        return line("lost"), False
    except Broken as error:
        return line("error", f"the solution's process sent what means nothing: {error}"), False
    except NeedsLiveObjects as error:
        return line("error", f"the test needs live objects: it {error}"), True
    except RemoteError as error:
        return line("error", f"{error.kind}: {error}" if error.kind else str(error), trace=error.trace), True
    except AssertionError as error:
        return line("failed", str(error)), True
    except BaseException as error:  # noqa: BLE001 -- whatever it is, the test did not pass
        if type(error).__name__ == "SkipTest":  # of unittest, which is only there when the tests load it
            return line("not_run", f"skipped: {error}"), True
        return line("error", f"{type(error).__name__}: {error}", trace=_explain(error, TESTS_FILE)), True
    return Line(number, test.name, "passed"), True


def _find_tests(folder: str, terms: Terms, solution: types.ModuleType) -> list[_Test]:
    with open(f"{folder}/{TESTS_FILE}", encoding="utf-8") as file:
        source = file.read()
    if terms.kind == CALLS:
        return [_make_call(case, solution) for case in json.loads(source)]
    return _find_in_program(source, terms.entry_point, solution)


def _make_call(case: dict[str, Json], solution: types.ModuleType) -> _Test:
    """A call with plain values; of `Class.method` on a new object of the class."""
    function, args, kwargs, expected = str(case["function"]), case["args"], case["kwargs"], case["expected"]
    assert isinstance(args, list)
    assert isinstance(kwargs, dict)

    def test() -> None:
        owner, _, method = function.rpartition(".")
        target = getattr(getattr(solution, owner)(), method) if owner else getattr(solution, function)
        got = target(*args, **kwargs)
        if not _equals(got, expected):
            raise Failed("wrong answer", show(expected), show(got))

    shown = ", ".join([*map(show, args), *(f"{key}={show(value)}" for key, value in kwargs.items())])
    return _Test(shorten(f"{function}({shown})"), test)


def _equals(got: object, expected: object) -> bool:
    """Equal as plain data: numbers to a relative 1e-6 where one is a float, tuples as lists, True never 1."""
    if isinstance(got, bool) or isinstance(expected, bool):
        return got is expected
    if isinstance(got, int | float) and isinstance(expected, int | float):
        if isinstance(got, int) and isinstance(expected, int):
            return got == expected
        return got == expected or abs(got - expected) <= 1e-6 * max(1.0, abs(got), abs(expected))
    if isinstance(got, list | tuple) and isinstance(expected, list | tuple):
        return len(got) == len(expected) and all(map(_equals, got, expected))
    if isinstance(got, dict) and isinstance(expected, dict):
        return got.keys() == expected.keys() and all(_equals(got[key], expected[key]) for key in expected)
    return type(got) is type(expected) and got == expected


class _Rewriter(ast.NodeTransformer):
    """Turns assertions into calls that say what was expected and what came."""

    def __init__(self, source: str) -> None:
        self._source = source

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        self.generic_visit(node)
        text = ast.Constant(shorten(ast.get_source_segment(self._source, node) or ""))
        message = ast.Lambda(
            ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[]),
            node.msg or ast.Constant(None),
        )
        match node.test:
            case ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]):
                expected_first = isinstance(left, ast.Constant) and not isinstance(right, ast.Constant)
                arguments = [left, right, ast.Constant(expected_first), text, message]
                name = _EQUAL
            case test:
                arguments = [test, text, message]
                name = _TRUE
        call = ast.Expr(ast.Call(ast.Name(name, ast.Load()), arguments, []))
        return ast.fix_missing_locations(ast.copy_location(call, node))


def _check_equal(left: object, right: object, expected_first: bool, source: str, message: Callable[[], object]) -> None:
    if not left == right:  # noqa: SIM201 -- as it was written
        expected, got = (left, right) if expected_first else (right, left)
        raise Failed(_message(message, source), show(expected), show(got))


def _check_true(value: object, source: str, message: Callable[[], object]) -> None:
    if not value:
        raise Failed(_message(message, source))


def _message(message: Callable[[], object], source: str) -> str:
    text = message()
    return source if text is None else str(text)


def _find_in_program(source: str, entry_point: str, solution: types.ModuleType) -> list[_Test]:
    tree = ast.parse(source, TESTS_FILE)
    linecache.cache[TESTS_FILE] = (len(source), None, source.splitlines(keepends=True), TESTS_FILE)
    module = types.ModuleType("tests")
    sys.modules["tests"], sys.modules["solution"] = module, solution
    names = module.__dict__
    names.update({_EQUAL: _check_equal, _TRUE: _check_true, "__file__": TESTS_FILE})
    for name in _free_names(tree) & set(getattr(solution, "__all__", vars(solution))):
        names[name] = getattr(solution, name)
    if entry_point:
        try:
            names["candidate"] = getattr(solution, entry_point)
        except AttributeError:
            raise LoadError(f"the solution defines no {entry_point}") from None
    has_check = bool(entry_point) and any(
        isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body
    )
    named = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    if has_check or any(name.startswith(("test", "Test")) for name in named) or _has_unittest(tree):
        _execute(_Rewriter(source).visit(tree).body, names)
        check = [_Test("check", lambda: names["check"](names["candidate"]))] if has_check else []
        return check + _collect(named, names)
    return _find_statements(tree, source, names)


def _find_statements(tree: ast.Module, source: str, names: dict[str, object]) -> list[_Test]:
    """A test for each assertion, bare call, or loop and the like with an assertion in it. What stands above the first
    is executed now; what stands between two belongs to the second."""
    is_test = [
        (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
        or (not isinstance(node, _DEFINITIONS) and any(isinstance(below, ast.Assert) for below in ast.walk(node)))
        for node in tree.body
    ]
    titles = [f"line {node.lineno}: {shorten(ast.get_source_segment(source, node) or '')}" for node in tree.body]
    statements = _Rewriter(source).visit(tree).body
    numbers = [number for number, test in enumerate(is_test) if test]
    if not numbers:
        _execute(statements, names)
        return []
    _execute(statements[: numbers[0]], names)
    starts = [numbers[0], *(number + 1 for number in numbers)]
    return [
        _Test(titles[end], _executor(statements[start : end + 1], names), _executor(statements[start:end], names))
        for start, end in zip(starts, numbers, strict=False)
    ]


def _executor(statements: list[ast.stmt], names: dict[str, object]) -> Callable[[], None]:
    return lambda: _execute(statements, names)


_DEFINITIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _has_unittest(tree: ast.Module) -> bool:
    return any(
        isinstance(node, ast.ClassDef) and any("TestCase" in ast.dump(base) for base in node.bases)
        for node in tree.body
    )


def _free_names(tree: ast.Module) -> set[str]:
    """Names the tests use and that are no builtins; what they define themselves is set over them later."""
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return used - set(dir(builtins))


def _execute(statements: list[ast.stmt], names: dict[str, object]) -> None:
    exec(compile(ast.Module(statements, []), TESTS_FILE, "exec", dont_inherit=True), names)  # noqa: S102


def _collect(named: list[str], names: dict[str, object]) -> list[_Test]:
    tests: list[_Test] = []
    for name in named:
        found = names.get(name)
        if isinstance(found, type) and hasattr(found, "assertEqual"):  # a unittest.TestCase
            methods = [method for method in dir(found) if method.startswith("test")]
            tests += [_Test(f"{name}.{method}", _make_case(found, method)) for method in methods]
        elif isinstance(found, type) and name.startswith("Test"):
            methods = [method for method in vars(found) if method.startswith("test")]
            tests += [_Test(f"{name}.{method}", _make_method(found, method)) for method in methods]
        elif isinstance(found, types.FunctionType) and name.startswith("test"):
            tests.append(_Test(name, found))
    return tests


def _make_case(owner: type, method: str) -> Callable[[], None]:
    """One test of a unittest.TestCase, with what its class sets up."""

    def test() -> None:
        owner.setUpClass()  # type: ignore[attr-defined]
        try:
            owner(method).debug()
        finally:
            owner.tearDownClass()  # type: ignore[attr-defined]

    return test


def _make_method(owner: type, method: str) -> Callable[[], None]:
    def test() -> None:
        case = owner()
        getattr(case, "setup_method", lambda: None)()
        getattr(case, method)()

    return test
