"""Judging: each test gets its verdict, and no solution gets one it has not earned."""

import pytest
from pydantic import ValidationError

from sandbox.contract import (
    CallTest,
    CallTests,
    JudgeMode,
    JudgeRequest,
    JudgeResult,
    Language,
    Limits,
    ProgramTests,
    Status,
    StdioTest,
    StdioTests,
    Verdict,
)
from tests.sandbox.conftest import SandboxServer
from tests.sandbox.judge_client import LIMITS, ask, program, words

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
    assert words(result) == [Verdict.PASSED, Verdict.NOT_RUN]


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
    result = ask(sandbox, slow, CASES, test_seconds=2)
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
    result = ask(sandbox, busy, CASES, limits=Limits(wall_seconds=3, cpu_seconds=30))
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


def test_only_python_can_be_called() -> None:
    with pytest.raises(ValidationError, match="stdio"):
        JudgeRequest(solution="", language=Language.BASH, tests=CallTests(cases=(CallTest(function="f", expected=1),)))
