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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Final, NoReturn

from sandbox.judge_codec import Broken, ChannelClosed, Json, NotInTime, shorten, show
from sandbox.judge_remote import LoadError, NeedsLiveObjects, RemoteError, Solution

TESTS_FILE: Final = "tests.py"
"""Their code, or a list of calls as JSON."""
SOLUTION_FILE: Final = "solution.py"
"""Only where the solution is loaded here."""
TERMS_FILE: Final = "judge.json"
"""`entry_point`, empty if there is none, and the `seconds` that the solution has for an answer."""
_EQUAL, _TRUE = "__judge_equal__", "__judge_true__"


@dataclass
class Line:
    """How one test went, as written to the server; `verdict` is a word of the contract, or "lost" when the solution's
    process ended under the test."""

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
    """Write a line for each test: its name before it begins, how it went after. Ends the process."""
    report = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    sys.stdout = io.StringIO()

    def say(content: dict[str, Json]) -> None:
        data = memoryview(json.dumps(content).encode("ascii") + b"\n")
        while data:
            data = data[os.write(report, data) :]

    code = 0
    last = _LastCall()
    try:
        with open(f"{folder}/{TERMS_FILE}", encoding="utf-8") as file:
            terms = json.load(file)
        entry_point, seconds = str(terms["entry_point"]), float(terms["seconds"])
        solution = _load_live(folder) if live else _connect(channel, seconds, last)
        tests = _find_tests(folder, entry_point, solution)
        say({"tests": [name for name, _ in tests]})
        for number, (name, test) in enumerate(tests):
            say({"begin": number})
            last.text = ""
            line, goes_on = _run_test(name, test, last)
            say({"end": number, **asdict(line)})
            if not goes_on:
                break
    except LoadError as error:
        say({"load_error": str(error)})
    except (ChannelClosed, NotInTime) as error:
        say({"lost": type(error).__name__})
    except Broken as error:
        say({"load_error": f"the solution's process sent what means nothing: {error}"})
    except Exception:  # noqa: BLE001 -- the tests' own
        say({"tests_error": shorten(traceback.format_exc(limit=-3))})
    finally:
        os._exit(code)


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
    if isinstance(error, RemoteError) and error.trace:
        return error.trace
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != first_path:
        trace = trace.tb_next
    return shorten("".join(traceback.format_exception(type(error), error, trace)))


def _run_test(name: str, test: Callable[[], None], last: _LastCall) -> tuple[Line, bool]:
    """How it went, and whether the solution can still be asked."""
    try:
        test()
    except Failed as error:
        return Line(name, "failed", shorten(str(error)), last.text, error.expected, error.got), True
    except NotInTime:
        return Line(name, "timeout", "the solution did not answer in time", last.text), False
    except ChannelClosed:
        return Line(name, "lost", "", last.text), False
    except Broken as error:
        return Line(name, "error", f"the solution's process sent what means nothing: {error}", last.text), False
    except NeedsLiveObjects as error:
        return Line(name, "error", f"the test needs live objects: it {error}", last.text), True
    except AssertionError as error:
        is_remote = isinstance(error, RemoteError)
        trace = _explain(error, TESTS_FILE) if is_remote else ""
        return Line(name, "error" if is_remote else "failed", shorten(str(error)), last.text, trace=trace), True
    except BaseException as error:  # noqa: BLE001 -- whatever it is, the test did not pass
        if type(error).__name__ == "SkipTest":  # of unittest, which is only there when the tests load it
            return Line(name, "not_run", f"skipped: {error}"), True
        message = f"{getattr(error, 'kind', '') or type(error).__name__}: {error}"
        return Line(name, "error", shorten(message), last.text, trace=_explain(error, TESTS_FILE)), True
    return Line(name, "passed"), True


_Tests = list[tuple[str, Callable[[], None]]]


def _find_tests(folder: str, entry_point: str, solution: types.ModuleType) -> _Tests:
    with open(f"{folder}/{TESTS_FILE}", encoding="utf-8") as file:
        source = file.read()
    if source.startswith("["):
        return [_make_call(case, solution) for case in json.loads(source)]
    return list(_find_in_program(source, entry_point, solution))


def _make_call(case: dict[str, Json], solution: types.ModuleType) -> tuple[str, Callable[[], None]]:
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
    return shorten(f"{function}({shown})"), test


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


def _find_in_program(
    source: str, entry_point: str, solution: types.ModuleType
) -> Iterator[tuple[str, Callable[[], None]]]:
    tree = ast.parse(source, TESTS_FILE)
    linecache.cache[TESTS_FILE] = (len(source), None, source.splitlines(keepends=True), TESTS_FILE)
    module = types.ModuleType("tests")
    sys.modules["tests"], sys.modules["solution"] = module, solution
    names = module.__dict__
    names.update({_EQUAL: _check_equal, _TRUE: _check_true, "__file__": TESTS_FILE})
    for name in _free_names(tree) & set(getattr(solution, "__all__", vars(solution))):
        names[name] = getattr(solution, name)
    if entry_point:
        names["candidate"] = getattr(solution, entry_point)
    has_check = any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body)
    named = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    statements = _Rewriter(source).visit(tree).body
    is_statement_test = [isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) for node in statements]
    if any(name.startswith(("test", "Test")) for name in named) or _has_unittest(tree) or (has_check and entry_point):
        _execute(statements, names)
        if has_check and entry_point:
            yield "check", lambda: names["check"](names["candidate"])
        yield from _collect(named, names)
        return
    for node, is_test in zip(statements, is_statement_test, strict=True):
        name = f"line {node.lineno}: {shorten(ast.get_source_segment(source, node) or '')}"
        if is_test:
            yield name, lambda node=node: _execute([node], names)  # type: ignore[misc]
        else:
            _execute([node], names)


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


def _collect(named: list[str], names: dict[str, object]) -> _Tests:
    tests: _Tests = []
    for name in named:
        found = names.get(name)
        if isinstance(found, type) and hasattr(found, "assertEqual"):  # a unittest.TestCase
            methods = [method for method in dir(found) if method.startswith("test")]
            tests += [(f"{name}.{method}", found(method).debug) for method in methods]
        elif isinstance(found, type) and name.startswith("Test"):
            methods = [method for method in vars(found) if method.startswith("test")]
            tests += [(f"{name}.{method}", _make_method(found, method)) for method in methods]
        elif isinstance(found, types.FunctionType) and name.startswith("test"):
            tests.append((name, found))
    return tests


def _make_method(owner: type, method: str) -> Callable[[], None]:
    def test() -> None:
        case = owner()
        getattr(case, "setup_method", lambda: None)()
        getattr(case, method)()

    return test
