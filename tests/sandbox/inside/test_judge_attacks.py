"""Attacks on the judge: no solution gets a verdict it has not earned, whatever the shape of its tests."""

import textwrap

import pytest

from sandbox.contract import CallTest, CallTests, Verdict
from tests.sandbox.conftest import SandboxServer
from tests.sandbox.inside.judge_client import Tests, ask, program, words

pytestmark = pytest.mark.integration

CASES = ((2, 3, 5), (7, 1, 8))
SHAPES: dict[str, Tests] = {
    "check": program("def check(candidate):\n    assert candidate(2, 3) == 5\n    assert candidate(7, 1) == 8", "add"),
    "calls": CallTests(cases=tuple(CallTest(function="add", args=(a, b), expected=c) for a, b, c in CASES)),
    "star import": program("""
        import math
        from math import isclose
        from solution import *
        CASES = [(2, 3, 5), (7, 1, 8)]
        for got, (_, _, want) in zip(map(add, [2, 7], [3, 1]), CASES):
            assert got == want
        assert all(map(lambda case: add(case[0], case[1]) == case[2], CASES))
        assert isclose(add(2, 3), 5.0) and math.isclose(add(7, 1), 8.0)
        assert abs(add(2, 3) - 5.0) < 1e-6 and round(add(7, 1), 2) == 8
        """),
    "unittest": program("""
        import unittest
        from solution import *
        CASES = [(2, 3, 5), (7, 1, 8)]
        class Case(unittest.TestCase):
            def test_each(self):
                for n, (a, b, want) in enumerate(CASES):
                    self.assertEqual(add(a, b), want)
            def test_range(self):
                for n in range(2, 5):
                    self.assertEqual(add(n, n), 2 * n)
            def test_near(self):
                self.assertAlmostEqual(add(2, 3), 5.0)
                self.assertTrue(all(add(a, b) == want for a, b, want in CASES) and len(CASES) == 2)
            def test_contained(self):
                self.assertIn(add(2, 3), [5])
                self.assertIn(add(7, 1), {8})
        """),
}
"""Right is `def add(a, b): return a + b`."""
BUILTINS = r"""
import json, os
os.write(3, b'{"loaded": true, "names": {"add": "callable", "__builtins__": "value"}}\n')
rest = b""
while True:
    rest += os.read(3, 65536)
    while b"\n" in rest:
        line, rest = rest.split(b"\n", 1)
        question = json.loads(line)
        value = {"object": [1, "b"]} if question["do"] in ("give", "item") else ANSWER
        os.write(3, json.dumps({"id": question["id"], "value": value}).encode() + b"\n")
"""
"""Names itself the builtins of its tests, and answers what they are asked then."""

ATTACKS = {
    "exits with 0 at import": "import sys; sys.exit(0)",
    "ends with 0 at import": "import os; os._exit(0)",
    "ends with 0 when called": "import os\ndef add(a, b): os._exit(0)",
    "raises SystemExit when called": "def add(a, b): raise SystemExit(0)",
    "prints success": "import os\nprint('passed', flush=True)\ndef add(a, b): print('passed'); os._exit(0)",
    "returns an int equal to all": "class A(int):\n    def __eq__(s, o): return True\ndef add(a, b): return A()",
    "returns an object equal to all": """
        class A:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return 1
        def add(a, b): return A()
        """,
    "returns a list equal to all": "class A(list):\n    def __eq__(s, o): return True\ndef add(a, b): return A()",
    "exits from atexit": "import atexit, os\natexit.register(lambda: os._exit(0))\ndef add(a, b): return 0",
    "swallows exceptions": "import sys, os\nsys.excepthook = lambda *a: os._exit(0)\ndef add(a, b): return 0",
    "replaces AssertionError": "import builtins\nbuiltins.AssertionError = SystemExit\ndef add(a, b): return 0",
    "patches unittest": """
        import unittest
        unittest.TestCase.assertEqual = lambda *a: None
        unittest.TestCase.run = lambda *a: None
        def add(a, b): return 0
        """,
    "names itself as builtins": "def add(a, b): return 0\ndef check(c): pass\nabs = len = AssertionError = add",
    "searches frames": """
        import sys
        def add(a, b):
            frame = sys._getframe()
            while frame:
                for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
                    if isinstance(value, dict) and "expected" in value: return value["expected"]
                frame = frame.f_back
            return 0
        """,
    "searches memory": r"""
        import gc, re
        def add(a, b):
            for thing in gc.get_objects():
                text = repr(thing)[:100000]
                found = re.search(rf"{a}, {b}\D+(-?\d+)", text)
                if found and "re.search" not in text: return int(found[1])
            return 99
        """,
    "searches files": r"""
        import glob, re
        def add(a, b):
            for path in glob.glob("/box/**", recursive=True) + glob.glob("/tmp/**", recursive=True):
                try: found = re.search(rf"{a}, {b}\D+(-?\d+)", open(path).read())
                except (OSError, UnicodeDecodeError): continue
                if found and "solution" not in path: return int(found[1])
            return 99
        """,
    "reads the tests' process": """
        import os
        def add(a, b):
            for pid in os.listdir("/proc"):
                if pid.isdecimal() and int(pid) != os.getpid():
                    return open(f"/proc/{pid}/mem", "rb").read(1)
            return 99
        """,
    "ends later from a thread": """
        import os, threading, time
        threading.Thread(target=lambda: (time.sleep(0.05), os._exit(0)), daemon=True).start()
        def add(a, b): time.sleep(0.5); return 5
        """,
    "leaves a child to answer": "import os\nif os.fork() > 0: os._exit(0)\ndef add(a, b): return 0",
    "forges answers": """
        import os
        for number in range(1, 9):
            os.write(3, b'{"id": %d, "value": 5}\\n' % number)
        def add(a, b): return 0
        """,
    "forges verdicts": """
        import os
        for line in (b'{"loaded": true, "names": {"add": "callable"}}', b'{"end": 0, "verdict": "passed"}',
                     b'{"tests": ["check"]}', b'[]', b'nonsense', b'{"id": 1, "value": {"object": [0, "x"]}}'):
            os.write(3, line + b'\\n')
        def add(a, b): return 0
        """,
    "answers deeply": """
        import os
        def add(a, b):
            os.write(3, b'{"id": 1, "value": ' + b'[' * 100000 + b']' * 100000 + b'}\\n')
            return 0
        """,
    "answers without end": "import os\ndef add(a, b):\n    while True: os.write(3, b'x' * 65536)",
    "claims a builtin as its class": "class A(int): pass\nA.__name__ = 'int'\ndef add(a, b): return A(7)",
    "raises what tests expect to see": "def add(a, b): raise AssertionError",
    "returns infinity": "def add(a, b): return float('inf')",
    "returns minus infinity": "def add(a, b): return float('-inf')",
    "returns no number": "def add(a, b): return float('nan')",
    "returns a number that is too large": "def add(a, b): return 1e300",
    "returns an integer beyond all floats": "def add(a, b): return 10 ** 4000",
    "raises StopIteration": "def add(a, b): raise StopIteration",
    "raises what is below StopIteration": "class Stop(StopIteration): pass\ndef add(a, b): raise Stop(5)",
    "raises StopAsyncIteration": "def add(a, b): raise StopAsyncIteration",
    "raises GeneratorExit": "def add(a, b): raise GeneratorExit",
    "raises SkipTest": "from unittest import SkipTest\ndef add(a, b): raise SkipTest('later')",
    "defines what its tests define": """
        CASES = []
        def isclose(*args, **more): return True
        def zip(*args): return []
        all = any = abs = round = enumerate = range = map = len = isclose
        class math: isclose = staticmethod(isclose)
        class unittest:
            class TestCase: assertEqual = assertTrue = assertIn = assertAlmostEqual = isclose
        def __judge_equal__(*args): return True
        __judge_true__ = __judge_equal__
        def add(a, b): return None
        """,
    "is the builtins, and nothing": BUILTINS.replace("ANSWER", "[]"),
    "is the builtins, and zero": BUILTINS.replace("ANSWER", "0"),
    "is the builtins, and true": BUILTINS.replace("ANSWER", "True"),
    "is the builtins, and an object": BUILTINS.replace("ANSWER", '{"object": [2, "b"]}'),
    "ends the iteration": r"""
        import os
        def add(a, b):
            for number in range(1, 30): os.write(3, b'{"id": %d, "stop": true}\n' % number)
            return 0
        """,
    "is every name": "import sys\nclass M(type(sys)):\n    def __getattr__(s, n): return 5\n"
    "sys.modules[__name__] = M('solution')\ndef add(a, b): return object()",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_an_honest_solution_passes(sandbox: SandboxServer, shape: str) -> None:
    result = ask(sandbox, "def add(a, b): return a + b", SHAPES[shape])
    assert result.passed, result


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ATTACKS)
def test_a_solution_that_cheats_does_not_pass(sandbox: SandboxServer, name: str, shape: str) -> None:
    result = ask(sandbox, ATTACKS[name], SHAPES[shape], test_seconds=15)
    assert not result.passed, result
    assert result.status in ("judged", "not_loaded")
    right = [test for test in result.tests if test.verdict == Verdict.PASSED]
    # each of two calls is a test, and one who answers 5 to everything is right about the first
    assert right == [] or (shape == "calls" and len(right) == 1 and "answer" in name), result


def test_after_an_attack_the_next_honest_solution_passes(sandbox: SandboxServer) -> None:
    for _ in range(2 * sandbox.health().slots):
        assert not ask(sandbox, ATTACKS["forges answers"], SHAPES["check"]).passed
        assert ask(sandbox, "def add(a, b): return a + b", SHAPES["check"]).passed


def test_an_object_cannot_see_what_it_is_compared_with(sandbox: SandboxServer) -> None:
    solution = """
    class Spy:
        def __sub__(self, other): return 0
        def __rsub__(self, other): return 0
        def __lt__(self, other): return True
        __le__ = __gt__ = __ge__ = __lt__
        def __contains__(self, other): return True
        def __iter__(self): return iter([])
        def __abs__(self): return 0
        def __float__(self): return 0.0
        def __instancecheck__(self, other): return True
    def f(): return Spy()
    """
    tests = """
    assert abs(f() - 0.5) < 1e-6
    assert f() < 3
    assert 3 in f()
    assert isinstance(f(), int)
    assert f() == 3 or f() in (3, 4)
    """
    result = ask(sandbox, solution, program(tests))
    assert len(result.tests) == 5
    assert Verdict.PASSED not in words(result)


def test_a_solution_with_live_objects_can_write_what_it_likes_into_the_report(sandbox: SandboxServer) -> None:
    for line in ('{"end": {"number": 0}}', "[]", "7", '{"tests": 7}', '{"begin": 5}', "{" * 100000, "\xff", ""):
        solution = (
            f"import os\ndef add(a, b):\n    for n in range(3, 9):\n        try: os.write(n, {line!r}.encode() + "
        )
        solution += "b'\\n')\n        except OSError: pass\n    os._exit(0)"
        result = ask(
            sandbox,
            solution,
            program("def check(candidate):\n    assert candidate(2, 3) == 5", "add", live_objects=True),
        )
        assert not result.passed


@pytest.mark.parametrize("where", ["{0}", "[{0}]", "{{'a': [1, {0}]}}"])
@pytest.mark.parametrize(
    ("got", "expected"),
    [("float('inf')", 5), ("float('inf')", 5.5), ("float('nan')", 5.5), ("0.0", 1e-8), ("1000000507.0", 1000000007),
     ("1e300", 5.5), ("2.00001", 2.0), ("'5'", 5), ("True", 1), ("10 ** 400", 5.5)],
)  # fmt: skip
def test_a_number_that_is_not_the_expected_one_fails(
    sandbox: SandboxServer, got: str, expected: float, where: str
) -> None:
    wanted = eval(where.format(expected))  # noqa: S307 -- our own text
    tests = CallTests(cases=(CallTest(function="f", expected=wanted),))
    result = ask(sandbox, f"def f(): return {where.format(got)}", tests)
    assert words(result) == [Verdict.FAILED]


@pytest.mark.parametrize(
    ("got", "expected"),
    [("0.1 + 0.2", 0.3), ("0.1 + 0.2 - 0.3", 0.0), ("2.0", 2), ("2", 2.0), ("1e-8 / 3 * 3", 1e-8), ("10 ** 30", 1e30)],
)
def test_a_number_that_is_the_expected_one_but_for_rounding_passes(
    sandbox: SandboxServer, got: str, expected: float
) -> None:
    tests = CallTests(cases=(CallTest(function="f", expected=expected),))
    assert ask(sandbox, f"def f(): return {got}", tests).passed


def test_what_ended_the_solution_cannot_be_caught_by_its_test(sandbox: SandboxServer) -> None:
    tests = """
    def test_dies():
        try: f(0)
        except Exception: pass
    def test_hangs():
        try: f(1)
        except: pass
    def test_means_nothing():
        try: f(2)
        except: pass
    def test_cannot_be_done():
        try: f(lambda: 3)
        except: pass
    """
    solution = """
    import os, time
    def f(n):
        if n == 0: os._exit(0)
        if n == 1: time.sleep(60)
        os.write(3, b"nonsense\\n")
    """
    result = ask(sandbox, solution, program(tests), test_seconds=5)
    assert words(result) == [Verdict.ERROR, Verdict.TIMEOUT, Verdict.ERROR, Verdict.ERROR]


def test_an_object_in_the_place_of_data_does_not_see_what_it_is_tested_with(sandbox: SandboxServer) -> None:
    solution = """
    class Fake:
        def __getattr__(self, name): return lambda *args: True
        def __contains__(self, wanted): return True
        def __iter__(self): return iter(())
    class Spy(Fake): pass
    def f(*args): return Fake()
    """
    tests = """
    assert f(1).startswith("Hello")
    assert f(1).issubset({1, 2})
    assert f(1).count("a")
    assert "a" in f(1)
    """
    result = ask(sandbox, solution, program(tests))
    assert len(result.tests) == 4
    assert Verdict.PASSED not in words(result)


# how long it may take


SLOW_ANSWERS = {
    "a byte at a time": """
        def f(text, n):
            while n == 1: os.write(3, b" "), time.sleep(0.2)
            return n
        """,
    "a question that is not read": r"""
        def f(text, n):
            if n: return n
            os.write(3, b'{"id": 1, "value": 0}\n')
            time.sleep(60)
        """,
    "a set of one hash": r"""
        def f(text, n):
            if n == 1:
                items = b",".join(b"%d" % (n * (2**61 - 1)) for n in range(100000))
                os.write(3, b'{"id": 2, "value": {"set": [' + items + b']}}\n')
            return n
        """,
    "a fraction that fills the memory": r"""
        def f(text, n):
            if n == 1: os.write(3, b'{"id": 2, "value": {"Fraction": "1e999999999"}}\n')
            return n
        """,
    "a decimal that fills the memory": "import decimal\n"
    "def f(text, n): return decimal.Decimal('1e999999999') if n == 1 else n",
    "a million lists": "def f(text, n): return [[] for _ in range(1000000)] if n == 1 else n",
}


@pytest.mark.parametrize("name", SLOW_ANSWERS)
def test_an_answer_takes_no_longer_than_it_may_and_costs_only_its_test(sandbox: SandboxServer, name: str) -> None:
    cases = tuple(CallTest(function="f", args=("x" * (n % 2) * 1000000, n), expected=n) for n in range(3))
    solution = "import os, time\n" + textwrap.dedent(SLOW_ANSWERS[name])
    result = ask(sandbox, solution, CallTests(cases=cases), test_seconds=3)
    assert words(result)[::2] == [Verdict.PASSED, Verdict.PASSED]
    assert words(result)[1] in (Verdict.TIMEOUT, Verdict.ERROR)
