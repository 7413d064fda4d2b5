"""Finds the tests in the caller's source: calls, functions, classes, `check`, or statements; each becomes a function.

Decides which names the tests take from the solution: those they use and neither define themselves nor have from Python.
Only the standard library.
"""

import ast
import builtins
import functools
import importlib
import json
import linecache
import math
import re
import symtable
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from sandbox.inside.judge_codec import Json, shorten, show
from sandbox.inside.judge_remote import LoadError, Solution, SolutionModule, show_call

TESTS_FILE: Final = "tests.py"
"""Their code, or a list of calls as JSON."""
CALLS: Final = "calls"
PROGRAM: Final = "program"
_EQUAL, _TRUE = "__judge_equal__", "__judge_true__"
_LOAD_TESTS: Final = "load_tests"
"""The hook by which a module chooses its own tests in unittest."""
RELATIVE_ERROR: Final = 1e-6
ABSOLUTE_ERROR: Final = 1e-12
"""Left by sums of numbers that cancel out."""


_DEFINITIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_Definition: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, types.TracebackType | None]


class Failed(AssertionError):
    """An assertion did not hold."""

    def __init__(self, message: str, expected: str = "", got: str = "") -> None:
        super().__init__(message)
        self.expected, self.got = expected, got


@dataclass(frozen=True)
class Test:
    name: str
    run: Callable[[], None]
    above: Callable[[], None] | None = None
    """For a statement of a program: the code between it and the previous test, which is part of `run`."""


def find_tests(folder: str, kind: str, entry_point: str, solution: Solution | types.ModuleType) -> list[Test]:
    """The tests in order, after running code above the first. Raises LoadError, SyntaxError, that code's errors."""
    with open(f"{folder}/{TESTS_FILE}", encoding="utf-8") as file:
        source = file.read()
    if kind == CALLS:
        module = solution if isinstance(solution, types.ModuleType) else SolutionModule(solution, frozenset())
        return [_make_call(case, module) for case in json.loads(source)]
    return _find_in_program(source, entry_point, solution)


def _make_call(case: dict[str, Json], solution: types.ModuleType) -> Test:
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

    return Test(show_call(function, args, kwargs), test)


def _equals(got: object, expected: object) -> bool:
    """Equal as plain data: to a small error where a float is expected, tuples as lists, True never 1."""
    if isinstance(got, bool) or isinstance(expected, bool):
        return got is expected
    if isinstance(got, int | float) and isinstance(expected, float):
        return got == expected or _is_close(got, expected)
    if isinstance(got, int | float) and isinstance(expected, int):
        return got == expected
    if isinstance(got, list | tuple) and isinstance(expected, list | tuple):
        return len(got) == len(expected) and all(map(_equals, got, expected))
    if isinstance(got, dict) and isinstance(expected, dict):
        return got.keys() == expected.keys() and all(_equals(got[key], expected[key]) for key in expected)
    return type(got) is type(expected) and got == expected


def _is_close(got: float, expected: float) -> bool:
    """The tolerance depends on the expected value alone; infinity has none."""
    try:
        error = abs(float(got) - expected)
    except OverflowError:  # an integer beyond all floats
        return False
    return math.isfinite(expected) and error <= max(RELATIVE_ERROR * abs(expected), ABSOLUTE_ERROR)


class _Texts:
    """Source text by position; `ast.get_source_segment` scans the whole source on each call."""

    def __init__(self, source: str) -> None:
        self._lines = [line.encode() for line in re.split("\r\n|\r|\n", source)]

    def of(self, node: ast.stmt) -> str:
        first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        lines = self._lines[first : last + 1]
        lines[-1] = lines[-1][: node.end_col_offset]
        lines[0] = lines[0][node.col_offset :]
        return shorten(b"\n".join(lines).decode(errors="replace"))


class _Rewriter(ast.NodeTransformer):
    """Turns assertions into calls that report the expected and the actual value."""

    def __init__(self, texts: _Texts) -> None:
        self._texts = texts

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        self.generic_visit(node)
        text = ast.Constant(self._texts.of(node))
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


def _find_in_program(source: str, entry_point: str, solution: Solution | types.ModuleType) -> list[Test]:
    tree = ast.parse(source, TESTS_FILE)
    wanted = _free_names(symtable.symtable(source, TESTS_FILE, "exec")) | ({entry_point} - {""})
    if isinstance(solution, Solution):
        solution.uses_classes = _uses_classes(tree, wanted)
        given: types.ModuleType = SolutionModule(solution, wanted)
        found = wanted & solution.names
    else:
        given = solution
        found = wanted & vars(solution).keys()
    linecache.cache[TESTS_FILE] = (len(source), None, source.splitlines(keepends=True), TESTS_FILE)
    module = types.ModuleType("tests")
    sys.modules["tests"], sys.modules["solution"] = module, given
    names = module.__dict__
    names.update({_EQUAL: _check_equal, _TRUE: _check_true, "__file__": TESTS_FILE, "__builtins__": builtins})
    if entry_point and entry_point not in found:
        raise LoadError(f"the solution defines no {entry_point}")
    names.update({name: getattr(given, name) for name in found})
    if entry_point:
        names["candidate"] = names[entry_point]
    definitions = list(_definitions(tree.body))
    named = list(dict.fromkeys(node.name for node in definitions))
    has_check = bool(entry_point) and any(
        isinstance(node, ast.FunctionDef) and node.name == "check" for node in definitions
    )
    is_found = any(name.startswith(("test", "Test")) or name == _LOAD_TESTS for name in named)
    if has_check or is_found or _has_unittest(definitions):
        tree.body = [node for node in tree.body if not _is_main(node)]
        _execute(_Rewriter(_Texts(source)).visit(tree).body, names)
        check = [Test("check", lambda: _finish(names["check"](names["candidate"])))] if has_check else []
        return check + _collect(named, module)
    names["__name__"] = "__main__"
    return _find_statements(tree, source, names)


def _definitions(statements: Sequence[ast.AST]) -> Iterator[_Definition]:
    """Functions and classes, also those below an `if`, `try`, or the like."""
    for node in statements:
        if isinstance(node, _DEFINITIONS):
            yield node
        elif isinstance(node, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _definitions(list(ast.iter_child_nodes(node)))


def _find_statements(tree: ast.Module, source: str, names: dict[str, object]) -> list[Test]:
    """One test for each assertion, bare call, or compound statement that contains either. Code above the first
    test runs now; code between two tests belongs to the second."""
    is_test = [
        isinstance(node, ast.Assert | ast.Expr | ast.For | ast.While | ast.If | ast.With | ast.Try | ast.Match)
        and any(isinstance(below, ast.Assert | ast.Call) for below in ast.walk(node))
        for node in tree.body
    ]
    texts = _Texts(source)
    titles = [f"line {node.lineno}: {texts.of(node)}" for node in tree.body]
    statements = _Rewriter(texts).visit(tree).body
    numbers = [number for number, test in enumerate(is_test) if test]
    if not numbers:
        _execute(statements, names)
        return []
    _execute(statements[: numbers[0]], names)
    starts = [numbers[0], *(number + 1 for number in numbers)]
    return [
        Test(titles[end], _executor(statements[start : end + 1], names), _executor(statements[start:end], names))
        for start, end in zip(starts, numbers, strict=False)
    ]


def _executor(statements: list[ast.stmt], names: dict[str, object]) -> Callable[[], None]:
    return lambda: _execute(statements, names)


def _has_unittest(definitions: Sequence[_Definition]) -> bool:
    return any(
        isinstance(node, ast.ClassDef) and any("TestCase" in ast.dump(base) for base in node.bases)
        for node in definitions
    )


def _is_main(node: ast.stmt) -> bool:
    """Whether it is `unittest.main()`, which would run the tests on its own and end the process."""
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call):
        return False
    return ast.unparse(node.value.func) == "unittest.main"


def _free_names(module: symtable.SymbolTable) -> frozenset[str]:
    """The names the tests use, do not define anywhere for the whole module, and do not have from Python: the only ones
    the solution may fill without being asked for them by name."""
    bound = {name.get_name() for name in module.get_symbols() if name.is_assigned() or name.is_imported()}
    used = {name.get_name() for name in module.get_symbols() if name.is_referenced()}
    tables = module.get_children()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for name in table.get_symbols():
            # a name the class binds may have been read from the module before
            if name.is_referenced() and (name.is_global() or table.get_type() == "class"):
                used.add(name.get_name())
            if name.is_declared_global() and (name.is_assigned() or name.is_imported()):
                bound.add(name.get_name())
    return frozenset(name for name in used - bound - set(dir(builtins)) if not name.startswith("__"))


def _uses_classes(tree: ast.Module, wanted: frozenset[str]) -> bool:
    """Whether a name that the tests take from the solution is written as the names of classes are."""
    names, modules = set(wanted), {"solution"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or "" for alias in node.names if alias.name == "solution"}
        elif isinstance(node, ast.ImportFrom) and node.module == "solution":
            names |= {alias.name for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            names.add(node.attr)
    return any(name[:1].isupper() and (len(name) == 1 or not name.isupper()) for name in names)


def _execute(statements: list[ast.stmt], names: dict[str, object]) -> None:
    exec(compile(ast.Module(statements, []), TESTS_FILE, "exec", dont_inherit=True), names)  # noqa: S102


def _collect(named: list[str], module: types.ModuleType) -> list[Test]:
    names = module.__dict__
    tests: list[Test] = []
    has_cases = _LOAD_TESTS in named
    for name in named:
        found = names.get(name)
        if isinstance(found, type) and hasattr(found, "assertEqual"):  # a unittest.TestCase
            has_cases = True
        elif isinstance(found, type) and name.startswith("Test"):
            methods = [method for base in reversed(found.__mro__) for method in vars(base) if method.startswith("test")]
            tests += [Test(f"{name}.{method}", _make_method(found, method)) for method in dict.fromkeys(methods)]
        elif not isinstance(found, type) and callable(found) and name.startswith("test"):
            tests.append(Test(name, _make_function(found)))
    return [*tests, *(_find_cases(module) if has_cases else ())]


def _finish(returned: object) -> None:
    """Run a coroutine test to its end. A generator asserts nothing when called, so it is an error."""
    if isinstance(returned, types.CoroutineType):
        asyncio = importlib.import_module("asyncio")  # rarely wanted, and not cheap
        returned = asyncio.run(returned)
    if isinstance(returned, types.GeneratorType | types.AsyncGeneratorType):
        raise TypeError("a test that yields is not run to its end by calling it")


def _make_function(found: Callable[[], object]) -> Callable[[], None]:
    def test() -> None:
        _finish(found())

    return functools.update_wrapper(test, found)  # with the marks that unittest's decorators leave


class _Outcome:
    """Collects unittest's results for the running case. No subclass: only tests that use unittest load it."""

    failfast = shouldStop = False
    _testRunEntered = True  # or each suite would tear classes and modules down at its end
    _moduleSetUpFailed = False
    _previousTestClass: type | None = None

    def __init__(self) -> None:
        self.begin()
        self._fixture: BaseException | None = None

    def begin(self) -> None:
        self._is_passed = False
        self._problem: BaseException | None = None
        self._skip: BaseException | None = None

    def raise_problem(self) -> None:
        """Raise the case's error, or SkipTest. A case without any result belongs to a failed set-up."""
        if self._problem is not None:
            raise self._problem
        if not self._is_passed:
            raise self._skip or self._fixture or Failed("unittest did not run it")

    def keep_fixture(self) -> None:
        """Remember the error of a class's or module's set-up for its cases, which are then not run."""
        self._fixture = self._problem or self._skip or self._fixture

    def startTest(self, test: object) -> None: ...

    def stopTest(self, test: object) -> None: ...

    def addSuccess(self, test: object) -> None:
        self._is_passed = True

    def addExpectedFailure(self, test: object, error: _ExcInfo) -> None:
        self._is_passed = True

    def addUnexpectedSuccess(self, test: object) -> None:
        self._problem = self._problem or Failed("unexpected success")

    def addError(self, test: object, error: _ExcInfo) -> None:
        self._problem = self._problem or error[1]

    addFailure = addError

    def addSubTest(self, test: object, subtest: object, error: _ExcInfo | None) -> None:
        if error is not None:
            self.addError(test, error)

    def addSkip(self, test: object, reason: str) -> None:
        self._skip = importlib.import_module("unittest").SkipTest(reason)


def _find_cases(module: types.ModuleType) -> list[Test]:
    """The cases that unittest finds, run by it in its order, with the set-up and tear-down of their classes and module.
    Raises the error of `load_tests`, as text."""
    unittest = importlib.import_module("unittest")
    loader = unittest.TestLoader()
    cases = list(_flatten(loader.loadTestsFromModule(module)))
    if loader.errors:
        raise RuntimeError(loader.errors[0])
    outcome = _Outcome()
    tests = []
    for number, case in enumerate(cases):
        method = getattr(case, "_testMethodName", "")
        if not hasattr(case, "asyncSetUp") and hasattr(case, method):  # else it runs coroutines itself
            setattr(case, method, _make_function(getattr(case, method)))
        following = cases[number + 1] if number + 1 < len(cases) else None
        suite = unittest.TestSuite([case])
        tests.append(Test(f"{type(case).__name__}.{method}", _make_case(suite, case, following, outcome)))
    return tests


def _flatten(suite: Any) -> Iterator[Any]:
    for test in suite:
        if hasattr(test, "__iter__"):
            yield from _flatten(test)
        else:
            yield test


def _make_case(suite: Any, case: object, following: object, outcome: _Outcome) -> Callable[[], None]:
    kind = type(case)

    def test() -> None:
        outcome.begin()
        suite.run(outcome)
        if outcome._moduleSetUpFailed or getattr(kind, "_classSetupFailed", False):
            outcome.keep_fixture()
        if type(following) is not kind:
            suite._tearDownPreviousClass(following, outcome)
            # the previous class is torn down already, the module is not
            outcome._previousTestClass = type(kind.__name__, (), {"__module__": kind.__module__})
        if following is None:
            suite._handleModuleTearDown(outcome)
        outcome.raise_problem()

    return test


def _make_method(owner: type, method: str) -> Callable[[], None]:
    def test() -> None:
        case = owner()
        getattr(case, "setup_method", lambda: None)()
        try:
            _finish(getattr(case, method)())
        finally:
            getattr(case, "teardown_method", lambda: None)()

    return test
