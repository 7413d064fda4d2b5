"""Every shape in which assertions come is run: in none a wrong solution passes because nothing was asserted."""

import pytest

from sandbox.contract import ProgramTests, Verdict
from tests.sandbox.conftest import SandboxServer
from tests.sandbox.inside.judge_client import ask, program, words

pytestmark = pytest.mark.integration

RIGHT, WRONG = "def add(a, b): return a + b", "def add(a, b): return 0"

RUN = {
    "under the guard of a script": program("if __name__ == '__main__':\n    assert add(2, 3) == 5"),
    "a coroutine": program("async def test_add():\n    assert add(2, 3) == 5"),
    "a coroutine in a class": program("class TestAdd:\n    async def test_add(self):\n        assert add(2, 3) == 5"),
    "a coroutine in a plain TestCase": program(
        """
        import unittest
        class Add(unittest.TestCase):
            async def test_add(self):
                self.assertEqual(add(2, 3), 5)
        """
    ),
    "a coroutine in a TestCase for them": program(
        """
        import unittest
        class Add(unittest.IsolatedAsyncioTestCase):
            async def test_add(self):
                self.assertEqual(add(2, 3), 5)
        """
    ),
    "check below an if": program("if True:\n    def check(candidate):\n        assert candidate(2, 3) == 5", "add"),
    "a test below a try": program(
        "try:\n    import json\nfinally:\n    def test_add():\n        assert add(2, 3) == 5"
    ),
    "an inherited method": program(
        """
        class Base:
            def test_add(self):
                assert add(2, 3) == 5
        class TestAdd(Base):
            def test_nothing(self): pass
        """
    ),
    "an object that is called": program(
        """
        import functools
        @functools.partial
        def test_add():
            assert add(2, 3) == 5
        """
    ),
    "what is done at the end of each": program(
        """
        class TestAdd:
            def test_add(self): self.sum = add(2, 3)
            def teardown_method(self): assert self.sum == 5
        """
    ),
    "a loop that calls a helper": program(
        """
        def assertion(got, expected):
            if got != expected:
                raise ValueError((got, expected))
        for inputs, expected in zip([[2, 3], [4, 5]], [5, 9]):
            assertion(add(*inputs), expected)
        """
    ),
}


@pytest.mark.parametrize("shape", RUN)
def test_assertions_are_run_wherever_they_stand(sandbox: SandboxServer, shape: str) -> None:
    assert ask(sandbox, RIGHT, RUN[shape]).passed
    wrong = ask(sandbox, WRONG, RUN[shape])
    assert (wrong.status, wrong.passed) == ("judged", False)
    assert {Verdict.FAILED, Verdict.ERROR} & set(words(wrong))


@pytest.mark.parametrize(
    "tests",
    [
        program("def test_add():\n    yield\n    assert add(2, 3) == 5"),
        program("class TestAdd:\n    def test_add(self):\n        yield\n        assert add(2, 3) == 5"),
        program("def check(candidate):\n    yield\n    assert candidate(2, 3) == 5", "add"),
    ],
)
def test_a_test_that_yields_is_an_error(sandbox: SandboxServer, tests: ProgramTests) -> None:
    [verdict] = ask(sandbox, RIGHT, tests).tests
    assert (verdict.verdict, "yields" in verdict.message) == (Verdict.ERROR, True)


@pytest.mark.parametrize("tests", [program("assert 1 == 1"), program("def test_add():\n    lambda: add(2, 3)")])
def test_tests_that_ask_the_solution_nothing_pass_nobody(sandbox: SandboxServer, tests: ProgramTests) -> None:
    result = ask(sandbox, RIGHT, tests)
    assert (result.status, result.passed) == ("tests_failed_to_load", False)
    assert "without asking" in result.reason


def test_a_skipped_test_of_unittest_stays_skipped(sandbox: SandboxServer) -> None:
    tests = """
    import unittest
    class Add(unittest.TestCase):
        @unittest.skip("later")
        def test_later(self): self.fail()
        def test_add(self): self.assertEqual(add(2, 3), 5)
    """
    assert words(ask(sandbox, RIGHT, program(tests))) == [Verdict.PASSED, Verdict.SKIPPED]
