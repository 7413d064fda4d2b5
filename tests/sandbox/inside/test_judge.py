"""Judging: each test gets its verdict, and no solution gets one it has not earned."""

import asyncio
import textwrap

import pytest
from pydantic import ValidationError

from sandbox.contract import (
    CallTest,
    CallTests,
    JudgeMode,
    JudgeRequest,
    JudgeResult,
    Language,
    Level,
    Limits,
    ProgramTests,
    Status,
    StdioTest,
    StdioTests,
    Verdict,
)
from sandbox.server import runner
from sandbox.settings import SandboxSettings
from tests.sandbox.conftest import SandboxServer
from tests.sandbox.inside.judge_client import ask, program, words

pytestmark = pytest.mark.integration

CHECK = "def check(candidate):\n    assert candidate(2, 3) == 5\n    assert candidate(-1, 1) == 0\n"

# what a verdict says


def test_a_right_solution_passes_its_check(sandbox: SandboxServer) -> None:
    result = ask(sandbox, "def add(a, b): return a + b", program(CHECK, "add"))
    assert (result.status, result.passed, words(result)) == ("judged", True, [Verdict.PASSED])
    assert (result.mode, result.isolation) == (JudgeMode.TWO_PROCESSES, sandbox.health().level)


def test_a_failed_test_says_input_expected_and_got(sandbox: SandboxServer) -> None:
    (verdict,) = ask(sandbox, "def add(a, b): return a * b", program(CHECK, "add")).tests
    assert (verdict.verdict, verdict.input, verdict.expected, verdict.got) == (Verdict.FAILED, "add(2, 3)", "5", "6")


def test_an_error_says_its_traceback_from_the_solution_on(sandbox: SandboxServer) -> None:
    (verdict,) = ask(sandbox, "def add(a, b):\n    return 1 / 0", program(CHECK, "add")).tests
    assert (verdict.verdict, verdict.message) == (Verdict.ERROR, "ZeroDivisionError: division by zero")
    assert 'File "/box/solution.py", line 2, in add' in verdict.traceback
    assert "judge" not in verdict.traceback


def test_each_assertion_at_top_level_is_a_test(sandbox: SandboxServer) -> None:
    tests = "x = 1\nassert add(x, 1) == 2\nassert 4 == add(x, 2), 'no'\nassert add(x, 0)"
    result = ask(sandbox, "def add(a, b): return a + b", program(tests))
    assert words(result) == [Verdict.PASSED, Verdict.FAILED, Verdict.PASSED]
    assert (result.tests[1].message, result.tests[1].expected, result.tests[1].got) == ("no", "4", "3")
    assert not result.passed


def test_functions_classes_and_unittest_are_found(sandbox: SandboxServer) -> None:
    tests = """
    import unittest
    from solution import add

    def test_function():
        assert add(1, 2) == 3

    class TestPlain:
        def test_method(self):
            assert add("a", "b") == "ab"

    class Case(unittest.TestCase):
        def setUp(self):
            self.number = 3
        def test_case(self):
            self.assertEqual(add(1, self.number), 5)
        def test_raises(self):
            with self.assertRaises(TypeError):
                add(1, "a")
    """
    result = ask(sandbox, "def add(a, b): return a + b", program(tests))
    assert {test.name: test.verdict for test in result.tests} == {
        "test_function": Verdict.PASSED,
        "TestPlain.test_method": Verdict.PASSED,
        "Case.test_case": Verdict.FAILED,
        "Case.test_raises": Verdict.PASSED,
    }


def test_calls_with_plain_values_are_compared_as_data(sandbox: SandboxServer) -> None:
    cases = (
        CallTest(function="f", args=([1, 2],), expected=[1, 2]),
        CallTest(function="f", args=(0.1,), kwargs={"more": 0.2}, expected=0.3),
        CallTest(function="f", args=(True,), expected=1),
        CallTest(function="Solution.double", args=(4,), expected=8),
        CallTest(function="missing", expected=None),
    )
    solution = """
    def f(value, more=None): return tuple(value) if isinstance(value, list) else value + more if more else value
    class Solution:
        def double(self, n): return n * 2
    """
    result = ask(sandbox, solution, CallTests(cases=cases))
    assert words(result) == [Verdict.PASSED, Verdict.PASSED, Verdict.FAILED, Verdict.PASSED, Verdict.ERROR]
    assert result.tests[0].name == "f([1, 2])"


def test_objects_of_the_solution_can_be_used_from_its_tests(sandbox: SandboxServer) -> None:
    solution = """
    class Stack:
        def __init__(self): self.items = []
        def push(self, value): self.items.append(value); return self
        def pop(self): return self.items.pop()
        def __len__(self): return len(self.items)
        def __iter__(self): return iter(self.items)
        def __getitem__(self, index): return self.items[index]
    class Empty(IndexError): pass
    def fail(): raise Empty("nothing")
    def count(n):
        yield from range(n)
    def size(stack): return len(stack)
    """
    tests = """
    def test_stack():
        stack = Stack()
        stack.push(1).push("two")
        assert len(stack) == 2 and list(stack) == [1, "two"] and stack[1] == "two" and 1 in stack
        assert stack.items == [1, "two"]
        assert size(stack) == 2
        assert stack.pop() == "two"
    def test_generator():
        assert list(count(3)) == [0, 1, 2]
    def test_exception():
        try:
            fail()
        except IndexError as error:
            assert str(error) == "nothing"
    """
    assert ask(sandbox, solution, program(tests)).passed


def test_values_of_every_plain_kind_come_back_as_they_were(sandbox: SandboxServer) -> None:
    solution = "def same(value): return value"
    tests = """
    import datetime, decimal, fractions
    from collections import deque
    def test_same():
        for value in (None, True, 10**5000, -1.5, float("inf"), "\\ud800é", b"\\0", bytearray(b"x"), [1], (1, (2,)),
                      {1, 2}, frozenset({3}), {(1, 2): [3], None: {}}, 1j, deque([1]), decimal.Decimal("1.10"),
                      fractions.Fraction(1, 3), datetime.date(2026, 1, 2), datetime.timedelta(1, 2, 3)):
            got = same(value)
            assert type(got) is type(value) and got == value, value
    """
    result = ask(sandbox, solution, program(tests))
    assert result.passed, result.tests


def test_numbers_of_numpy_are_numbers(sandbox: SandboxServer) -> None:
    if sandbox.health().languages[Language.PYTHON_NUMPY] != "available":
        pytest.skip("no numpy here")
    solution = (
        "import numpy as np\ndef f(values): return np.array(values).sum()\ndef g(values): return np.array(values)"
    )
    tests = (
        "assert f([1, 2]) == 3\nassert f([0.5, 1]) == 1.5\nassert g([1, 2]).tolist() == [1, 2]\nassert len(g([1])) == 1"
    )
    assert ask(sandbox, solution, program(tests), language=Language.PYTHON_NUMPY).passed


def test_what_the_solution_changes_in_a_list_is_changed_for_the_test(sandbox: SandboxServer) -> None:
    tests = "numbers = [3, 1, 2]\nsort(numbers)\nassert numbers == [1, 2, 3]"
    assert ask(sandbox, "def sort(numbers): numbers.sort()", program(tests)).passed


def test_what_the_solution_prints_is_kept_apart(sandbox: SandboxServer) -> None:
    solution = 'print(\'{"tests": []}\')\ndef add(a, b): print("hi"); return a + b'
    result = ask(sandbox, solution, program(CHECK, "add"))
    assert result.passed
    assert result.stdout == '{"tests": []}\nhi\nhi\n'


def test_nothing_that_the_solution_prints_is_lost_when_its_tests_are_over(sandbox: SandboxServer) -> None:
    """However soon its process is ended with theirs."""
    solution = "import sys\ndef add(a, b):\n    print('out')\n    sys.stderr.write('error')\n    return a + b"
    for _ in range(20):
        result = ask(sandbox, solution, program("assert add(1, 2) == 3"))
        assert (result.passed, result.stdout, result.stderr) == (True, "out\n", "error")


def test_a_solution_that_does_not_load_is_told_apart(sandbox: SandboxServer) -> None:
    result = ask(sandbox, "def add(a, b) return a", program(CHECK, "add"))
    assert (result.status, result.passed, result.tests) == ("not_loaded", False, ())
    assert "SyntaxError" in result.reason


def test_tests_that_do_not_load_are_not_the_solution_s_fault(sandbox: SandboxServer) -> None:
    for code in ("def check(", "import nowhere\nassert add(1, 2) == 3", "x = 1"):
        result = ask(sandbox, "def add(a, b): return a + b", program(code))
        assert (result.status, result.passed) == ("tests_failed_to_load", False)


def test_each_assertion_sees_the_names_as_they_stand_above_it(sandbox: SandboxServer) -> None:
    tests = "x = 1\nassert same(x) == 1\nx = 2\nassert same(x) == 2\nfor n in (3, 4):\n    assert same(n) == 3\nx = 3"
    result = ask(sandbox, "def same(value): return value", program(tests))
    assert words(result) == [Verdict.PASSED, Verdict.PASSED, Verdict.FAILED]
    assert (result.tests[2].expected, result.tests[2].got) == ("3", "4")


def test_what_a_unittest_class_sets_up_is_there(sandbox: SandboxServer) -> None:
    tests = """
    import unittest
    class Case(unittest.TestCase):
        @classmethod
        def setUpClass(cls): cls.expected = 3
        def test_case(self): self.assertEqual(add(1, 2), self.expected)
        @unittest.skip("later")
        def test_skipped(self): pass
    """
    result = ask(sandbox, "def add(a, b): return a + b", program(tests))
    assert (words(result), result.passed) == ([Verdict.PASSED, Verdict.SKIPPED], True)


@pytest.mark.parametrize(
    "tests",
    [program(CHECK, "add"), program("from solution import add\nassert add(1, 2) == 3"), program("assert x() == 3")],
)
def test_a_solution_that_lacks_what_is_tested_is_at_fault_itself(sandbox: SandboxServer, tests: ProgramTests) -> None:
    result = ask(sandbox, "def plus(a, b): return a + b", tests)
    assert result.status in ("not_loaded", "judged")
    assert not result.passed
    assert "add" in result.reason or words(result) == [Verdict.ERROR]


CASES = CallTests(cases=tuple(CallTest(function="f", args=(n,), expected=n) for n in range(3)))


def test_a_test_without_an_answer_in_time_costs_only_itself(sandbox: SandboxServer) -> None:
    slow = "import time\ndef f(n):\n    if n == 1: time.sleep(600)\n    return n"
    result = ask(sandbox, slow, CASES, test_seconds=5)
    assert words(result) == [Verdict.PASSED, Verdict.TIMEOUT, Verdict.PASSED]
    assert result.tests[1].input == "f(1)"


def test_a_test_that_ends_the_solution_costs_only_itself(sandbox: SandboxServer) -> None:
    exits = "import os\ndef f(n):\n    if n == 1: os._exit(0)\n    return n"
    result = ask(sandbox, exits, CASES)
    assert words(result) == [Verdict.PASSED, Verdict.ERROR, Verdict.PASSED]
    assert "the solution's process ended with exit code 0" in result.tests[1].message


def test_a_test_that_takes_all_memory_costs_only_itself(sandbox: SandboxServer) -> None:
    greedy = "data = []\ndef f(n):\n    while n == 1: data.append(bytearray(1 << 20))\n    return n"
    result = ask(sandbox, greedy, CASES, limits=Limits(wall_seconds=60, cpu_seconds=30, memory_bytes=96 << 20))
    assert words(result)[::2] == [Verdict.PASSED, Verdict.PASSED]
    # without a cgroup an allocation fails, which the solution may survive
    assert words(result)[1] in (Verdict.MEMORY, Verdict.ERROR)


def test_without_time_left_the_tests_that_follow_are_not_run(sandbox: SandboxServer) -> None:
    busy = "def f(n):\n    while n == 1: pass\n    return n"
    result = ask(sandbox, busy, CASES, limits=Limits(wall_seconds=6, cpu_seconds=30))
    assert words(result) == [Verdict.PASSED, Verdict.TIMEOUT, Verdict.NOT_RUN]
    assert result.tests[2].message == "no time was left for it"
    result = ask(sandbox, busy, CASES, limits=Limits(wall_seconds=30, cpu_seconds=2))
    assert words(result) == [Verdict.PASSED, Verdict.TIMEOUT, Verdict.NOT_RUN]


def test_what_stood_above_a_lost_test_is_done_again_for_those_below(sandbox: SandboxServer) -> None:
    solution = """
    import os
    items = []
    def push(n): items.append(n); return len(items)
    def die(): os._exit(3)
    """
    tests = "push(1)\nsize = push(2)\nassert size == 2\ndie()\nassert push(3) == 3\nassert push(4) == 4"
    result = ask(sandbox, solution, program(tests))
    assert words(result) == [Verdict.PASSED, Verdict.PASSED, Verdict.ERROR, Verdict.PASSED, Verdict.PASSED]


def test_tests_that_need_live_objects_say_so_and_get_a_weaker_mode_by_name(sandbox: SandboxServer) -> None:
    solution = """
    class Vector:
        def __init__(self, x): self.x = x
        def __add__(self, other): return Vector(self.x + other.x)
        def __eq__(self, other): return self.x == other.x
    def apply(function, value): return function(value)
    """
    tests = "assert Vector(1) + Vector(2) == Vector(3)\nassert apply(lambda n: n + 1, 1) == 2"
    apart = ask(sandbox, solution, program(tests))
    assert words(apart) == [Verdict.ERROR, Verdict.ERROR]
    assert all("live objects" in test.message for test in apart.tests)
    together = ask(sandbox, solution, program(tests, live_objects=True))
    assert (together.passed, together.mode) == (True, JudgeMode.ONE_PROCESS)


def test_a_function_may_be_named_like_one_of_python_s(sandbox: SandboxServer) -> None:
    solution = "def sum(a, b): return a + b + 0.5"
    for tests in (
        program("assert sum(10, 15) == 25.5", "sum"),
        program("from solution import sum\nassert sum(10, 15) == 25.5"),
        program("import solution\nassert solution.sum(10, 15) == 25.5"),
        program("def check(candidate):\n    assert candidate(10, 15) == 25.5", "sum"),
        CallTests(cases=(CallTest(function="sum", args=(10, 15), expected=25.5),)),
    ):
        assert ask(sandbox, solution, tests).passed
    # unless it is asked for by name, Python's is meant
    assert ask(sandbox, f"{solution}\ndef f(): return 3", program("assert sum([1, 2]) == f()")).passed


def test_the_names_a_program_takes_from_the_solution_are_those_it_lacks(sandbox: SandboxServer) -> None:
    solution = "limit = 3\ndef f(n): return n\ndef helper(n): return -n\nclass Box: pass"
    tests = """
    from solution import *
    def helper(n): return n + 1
    class Check:
        f = f
    def test_all():
        limit = 4
        assert helper(f(limit)) == 5
        assert Check.f(1) == 1
    def test_limit():
        assert limit == 3
        assert isinstance(Box(), Box)
    """
    result = ask(sandbox, solution, program(tests))
    assert result.passed, result


CLASSES = """
import asyncio, enum
class Broke(ValueError): pass
class Empty(Exception): pass
class Color(enum.Enum): RED = 1
class Stack:
    def __init__(self): self.items = []
    def push(self, item): self.items.append(item)
    def take(self, n):
        if n > 2: raise Broke("too much")
        raise Empty(n)
    def __len__(self): return len(self.items)
    def __repr__(self): return f"Stack({self.items})"
class Odd:
    def __contains__(self, n): return n % 2 == 1
    def __abs__(self): return 1
    def __enter__(self): return self
    def __exit__(self, *args): return False
    def __add__(self, other): return self
    def __eq__(self, other): return other == 1
def fill(items, more): items.append(1); more["a"] = 2
def numbers(n): return range(n)
def red(): return Color.RED
async def later(): return 3
"""


@pytest.mark.parametrize(
    "test",
    [
        "s = Stack()\nassert not s\ns.push(1)\nassert s and len(s) == 1",
        "assert repr(Stack()) == 'Stack([])'",
        "try: Stack().take(3)\nexcept Broke as error: assert str(error) == 'too much'",
        "try: Stack().take(3)\nexcept ValueError: pass",
        "try: Stack().take(1)\nexcept Broke: assert False\nexcept Empty: pass",
        "case.assertRaises(Broke, Stack().take, 3)",
        "with case.assertRaisesRegex(Broke, 'too'): Stack().take(3)",
        "case.assertIsInstance(Stack(), Stack)\nassert not isinstance(Stack(), Odd)",
        "assert 3 in Odd() and 2 not in Odd()",
        "assert red() is Color.RED and red() == Color.RED",
        "assert range(3) == numbers(3) and numbers(range(2)[1]) == range(1)",
        "items, more = [], {}\nfill(items=items, more=more)\nassert (items, more) == ([1], {'a': 2})",
    ],
)
def test_objects_of_the_solution_do_what_their_class_says(sandbox: SandboxServer, test: str) -> None:
    code = "import unittest\ncase = unittest.TestCase()\ndef test_it():\n" + textwrap.indent(test, "    ")
    result = ask(sandbox, CLASSES, program(code))
    assert result.passed, result.tests


@pytest.mark.parametrize(
    "test",
    [
        "assert abs(Odd()) == 1",
        "with Odd(): pass",
        "assert Odd() + Odd()",
        "assert Odd() == 1",
        "assert Odd() == Odd()",
        "assert [Odd()] == [Odd()]",
        "import asyncio\nassert asyncio.run(later()) == 3",
        "class Mine(Odd): pass",
        "fill(lambda: 3, {})",
        "float(Odd())",
        "try: Stack().take(3)\nexcept Broke as error: assert error.amount == 3",
    ],
)
def test_what_only_live_objects_can_do_is_told_by_a_flag(sandbox: SandboxServer, test: str) -> None:
    code = "def test_it():\n" + textwrap.indent(test, "    ") + "\n    assert Stack"
    result = ask(sandbox, CLASSES, program(code))
    assert words(result) == [Verdict.ERROR]
    assert result.needs_live_objects
    assert result.tests[0].needs_live_objects
    above = ask(sandbox, CLASSES, program(f"{test}\ndef test_it(): assert Stack"))
    assert (above.status, above.needs_live_objects) == ("not_loaded", True)


def test_a_wrong_answer_does_not_need_live_objects(sandbox: SandboxServer) -> None:
    result = ask(sandbox, "def add(a, b): return [a]", program("assert add(2, 3) == 5\nassert add(2, 3) + 1"))
    assert words(result) == [Verdict.FAILED, Verdict.ERROR]
    assert not result.needs_live_objects


def test_programs_are_judged_by_their_output(sandbox: SandboxServer) -> None:
    cases = (
        StdioTest(stdin="2\n", stdout="4"),
        StdioTest(stdin="3\n", stdout="5\n"),
        StdioTest(stdin="x\n", stdout="0\n"),
    )
    result = ask(sandbox, "print(int(input()) * 2, ' ')", StdioTests(cases=cases))
    assert words(result) == [Verdict.PASSED, Verdict.FAILED, Verdict.ERROR]
    assert (result.tests[1].input, result.tests[1].expected, result.tests[1].got) == ("3\n", "5\n", "6  \n")
    assert "ValueError" in result.tests[2].traceback


def test_only_line_feeds_end_lines_of_output(sandbox: SandboxServer) -> None:
    tests = StdioTests(cases=(StdioTest(stdout="a\nb"),))
    assert ask(sandbox, "print('a', end='\\r\\n'); print('b  ')", tests).passed
    assert words(ask(sandbox, "print('a\\x0cb')", tests)) == [Verdict.FAILED]
    assert words(ask(sandbox, "print('a\\u2028b')", tests)) == [Verdict.FAILED]


def test_a_compiled_program_is_compiled_once_for_all_inputs(sandbox: SandboxServer) -> None:
    if sandbox.health().languages[Language.CPP] != "available":
        pytest.skip("no C++ compiler here")
    solution = "#include <iostream>\nint main() { int n; std::cin >> n; std::cout << n * 2; }"
    cases = tuple(StdioTest(stdin=str(n), stdout=str(2 * n)) for n in range(4))
    result = ask(sandbox, solution, StdioTests(cases=cases), language=Language.CPP)
    assert result.passed
    assert result.compilation is not None
    broken = ask(sandbox, "int main( {", StdioTests(cases=cases), language=Language.CPP)
    assert (broken.status, broken.passed) == ("not_compiled", False)
    assert broken.compilation is not None
    assert broken.compilation.status == Status.NOT_COMPILED


def test_a_program_that_is_not_kept_was_not_compiled(sandbox: SandboxServer) -> None:
    if sandbox.health().languages[Language.CPP] != "available":
        pytest.skip("no C++ compiler here")
    tests = StdioTests(cases=(StdioTest(stdout="1"),))
    large = '#include <cstdio>\nchar a[9 << 20] = {1};\nint main(int c, char**) { printf("%d", a[c - 1]); }'
    result = ask(sandbox, large, tests, language=Language.CPP)
    assert (result.status, result.tests) == ("not_compiled", ())
    assert result.reason == "the compiler made no program, or one above 8 MiB"
    noisy = "\n".join(f'#warning "{"x" * 900}{n}"' for n in range(1100)) + "\nint main() {}"
    assert ask(sandbox, noisy, tests, language=Language.CPP).status == "not_compiled"


def test_runs_that_would_begin_too_late_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "MAX_STDIO_SECONDS", 1.0)
    cases = tuple(StdioTest(stdout="1") for _ in range(8))
    request = JudgeRequest(solution="import time; time.sleep(0.4); print(1)", tests=StdioTests(cases=cases))

    async def judge() -> JudgeResult:
        async with await runner.Runner.start(SandboxSettings(slots=1, minimum_level=Level.WEAK)) as sandbox:
            return await sandbox.judge(request)

    result = asyncio.run(judge())
    assert result.status == "judged"
    assert words(result)[0] == Verdict.PASSED
    assert words(result)[3:] == [Verdict.NOT_RUN] * 5


def test_only_python_can_be_called() -> None:
    with pytest.raises(ValidationError, match="stdio"):
        JudgeRequest(solution="", language=Language.BASH, tests=CallTests(cases=(CallTest(function="f", expected=1),)))
