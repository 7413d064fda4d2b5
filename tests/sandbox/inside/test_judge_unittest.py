"""Tests written for unittest are found and judged as unittest finds and judges them."""

import textwrap
import unittest

import pytest

from sandbox.contract import JudgeResult, Verdict
from tests.sandbox.conftest import SandboxServer
from tests.sandbox.inside.judge_client import ask, program, words

pytestmark = pytest.mark.integration

RIGHT, WRONG = "def add(a, b): return a + b", "def add(a, b): return 0"
PASSED, FAILED, ERROR, SKIPPED = Verdict.PASSED, Verdict.FAILED, Verdict.ERROR, Verdict.SKIPPED


def judge(sandbox: SandboxServer, tests: str, solution: str = RIGHT, *, live: bool = False) -> JudgeResult:
    return ask(sandbox, solution, program(f"import unittest\n{textwrap.dedent(tests)}", live_objects=live))


SHAPES = {
    "what a module and a class set up and clean up, in order": (
        """
        said = []
        def setUpModule():
            said.append('module')
            unittest.addModuleCleanup(said.append, 'module clean')
        def tearDownModule():
            assert said[-1] == 'class clean', said
        class A(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                said.append('class')
                cls.addClassCleanup(said.append, 'class clean')
            @classmethod
            def tearDownClass(cls): said.append('class down')
            def setUp(self): self.addCleanup(said.append, 'clean')
            def tearDown(self): said.append('down')
            def test_a(self): self.assertEqual((add(1, 2), said), (3, ['module', 'class']))
            def test_b(self): self.assertEqual((add(1, 2), said[2:]), (3, ['down', 'clean']))
        class B(unittest.TestCase):
            def test_c(self): self.assertEqual((add(1, 2), said[6:]), (3, ['class down', 'class clean']))
        """,
        [PASSED, PASSED, PASSED],
    ),
    "failures that are expected": (
        """
        class A(unittest.TestCase):
            @unittest.expectedFailure
            def test_a(self): self.assertEqual(add(1, 2), 4)
            @unittest.expectedFailure
            def test_b(self): self.assertEqual(add(1, 2), 3)
        """,
        [PASSED, FAILED],
    ),
    "all ways to skip": (
        """
        class A(unittest.TestCase):
            @unittest.skip('later')
            def test_a(self): self.fail()
            @unittest.skipIf(True, 'now')
            def test_b(self): self.fail()
            @unittest.skipUnless(False, 'then')
            def test_c(self): self.fail()
            def test_d(self): raise unittest.SkipTest('raised')
            def test_e(self): self.skipTest('called')
            def test_f(self): self.assertEqual(add(1, 2), 3)
        @unittest.skip('whole')
        class B(unittest.TestCase):
            def test_g(self): self.fail()
        class C(unittest.TestCase):
            @classmethod
            def setUpClass(cls): raise unittest.SkipTest('not here')
            def test_h(self): self.fail()
            def test_i(self): self.fail()
        """,
        [SKIPPED, SKIPPED, SKIPPED, SKIPPED, SKIPPED, PASSED, SKIPPED, SKIPPED, SKIPPED],
    ),
    "subtests": (
        """
        class A(unittest.TestCase):
            def test_a(self):
                for n in range(3):
                    with self.subTest(n=n): self.assertEqual(add(n, 1), n + 1)
            def test_b(self):
                for n in range(3):
                    with self.subTest(n=n): self.assertNotEqual(add(n, 1), 2)
            def test_c(self):
                with self.subTest(): self.skipTest('this one')
                self.assertEqual(add(1, 2), 3)
        """,
        [PASSED, FAILED, SKIPPED],
    ),
    "set-ups that fail": (
        """
        class A(unittest.TestCase):
            @classmethod
            def setUpClass(cls): raise ValueError('no class')
            def test_a(self): pass
            def test_b(self): pass
        class B(unittest.TestCase):
            def setUp(self): raise ValueError('no test')
            def test_c(self): pass
        class C(unittest.TestCase):
            def tearDown(self): self.fail('left dirty')
            def test_d(self): self.assertEqual(add(1, 2), 3)
        class D(unittest.TestCase):
            @classmethod
            def tearDownClass(cls): raise ValueError('class left dirty')
            def test_e(self): self.assertEqual(add(1, 2), 3)
            def test_f(self): self.assertEqual(add(1, 2), 3)
        """,
        [ERROR, ERROR, ERROR, FAILED, PASSED, ERROR],
    ),
    "a module's set-up that fails": (
        """
        def setUpModule(): raise ValueError(add(1, 2))
        class A(unittest.TestCase):
            def test_a(self): pass
        class B(unittest.TestCase):
            def test_b(self): pass
        """,
        [ERROR, ERROR],
    ),
    "a module's end that fails": (
        """
        def tearDownModule(): assert add(1, 2) == 4
        class A(unittest.TestCase):
            def test_a(self): pass
        class B(unittest.TestCase):
            def test_b(self): pass
        """,
        [PASSED, FAILED],
    ),
    "coroutines": (
        """
        class A(unittest.IsolatedAsyncioTestCase):
            async def asyncSetUp(self): self.three = 3
            async def asyncTearDown(self): self.assertEqual(self.three, 3)
            async def test_a(self): self.assertEqual(add(1, 2), self.three)
            async def test_b(self): self.assertEqual(add(1, 2), 4)
            @unittest.skip('later')
            async def test_c(self): self.fail()
        """,
        [PASSED, FAILED, SKIPPED],
    ),
    "what load_tests chooses": (
        """
        class A(unittest.TestCase):
            def test_a(self): self.assertEqual(add(1, 2), 3)
            def test_b(self): self.fail()
            def check_c(self): self.assertEqual(add(1, 2), 4)
        def load_tests(loader, tests, pattern):
            return unittest.TestSuite([A('check_c'), unittest.TestSuite([A('test_a')])])
        """,
        [FAILED, PASSED],
    ),
    "a call of unittest.main at the end": (
        """
        class A(unittest.TestCase):
            def test_a(self): self.assertEqual(add(1, 2), 3)
        unittest.main()
        """,
        [PASSED],
    ),
    "a pattern of the loader and an inherited test": (
        """
        class Base(unittest.TestCase):
            def test_a(self): self.assertEqual(add(1, 2), 3)
        class A(Base):
            def test_b(self): self.assertRaises(TypeError, add, 1, 'a')
            @unittest.skip('later')
            def test_a(self): self.fail()
        """,
        [SKIPPED, PASSED, PASSED],
    ),
    "what a test raises, and what its cleanups do": (
        """
        class A(unittest.TestCase):
            def test_a(self): raise SystemExit(0)
            def test_b(self): self.addCleanup(add, 1)
            def test_c(self): self.assertEqual(add(1, 2), 3)
        """,
        [ERROR, ERROR, PASSED],
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("live", [False, True], ids=["two processes", "one process"])
def test_every_shape_of_unittest_is_judged_as_unittest_does(sandbox: SandboxServer, shape: str, live: bool) -> None:
    tests, verdicts = SHAPES[shape]
    result = judge(sandbox, tests, live=live)
    assert (result.status, words(result)) == ("judged", verdicts), result
    assert result.passed == (set(verdicts) <= {PASSED, SKIPPED})


@pytest.mark.parametrize("shape", SHAPES)
def test_the_shapes_above_say_what_unittest_says(shape: str) -> None:
    tests, verdicts = SHAPES[shape]
    names: dict[str, object] = {"__name__": "shape"}
    exec(f"import unittest\n{RIGHT}\n{textwrap.dedent(tests).replace('unittest.main()', '')}", names)  # noqa: S102
    module = type(unittest)("shape")
    vars(module).update(names)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(__import__("sys").modules, "shape", module)
        for value in names.values():
            if isinstance(value, type):
                value.__module__ = "shape"
        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromModule(module).run(result)
    assert result.wasSuccessful() == (set(verdicts) <= {PASSED, SKIPPED})


def test_tests_that_are_all_skipped_pass_nobody(sandbox: SandboxServer) -> None:
    tests = "class A(unittest.TestCase):\n    @unittest.skip('later')\n    def test_a(self): self.fail()"
    result = judge(sandbox, tests)
    assert (result.status, words(result), result.passed) == ("judged", [SKIPPED], False)
    assert result.tests[0].message == "later"


def test_a_wrong_solution_is_not_saved_by_a_skip(sandbox: SandboxServer) -> None:
    tests, _ = SHAPES["all ways to skip"]
    assert not judge(sandbox, tests, WRONG).passed
    raises = "from unittest import SkipTest\ndef add(a, b): raise SkipTest('later')"
    assert words(judge(sandbox, tests, raises))[5] == ERROR


def test_a_load_tests_that_fails_is_the_tests_own_doing(sandbox: SandboxServer) -> None:
    result = judge(sandbox, "def load_tests(loader, tests, pattern): raise ValueError('no')")
    assert result.status == "tests_failed_to_load"
    assert "ValueError: no" in result.reason


def test_after_a_test_that_ends_the_solution_the_class_is_set_up_again(sandbox: SandboxServer) -> None:
    tests = """
    class A(unittest.TestCase):
        @classmethod
        def setUpClass(cls): cls.three = add(1, 2)
        def test_a(self): self.assertEqual(add(1, 2), self.three)
        def test_b(self): self.assertEqual(add(0, 0), 0)
        @unittest.expectedFailure
        def test_c(self): self.assertEqual(add(0, 0), 1)
        def test_d(self): self.assertEqual(add(1, 2), self.three)
    """
    result = judge(sandbox, tests, "import os\ndef add(a, b): return a + b or os._exit(0)")
    assert words(result) == [PASSED, ERROR, ERROR, PASSED]
