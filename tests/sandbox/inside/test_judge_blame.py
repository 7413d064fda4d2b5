"""Whose doing it was: what the solution did is never told of its tests or of the sandbox, nor the other way round."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandbox.contract import MAX_PROGRAM_TESTS, CallTest, CallTests, Limits, Verdict
from tests.sandbox.conftest import SandboxServer
from tests.sandbox.inside.judge_client import ask, program, words
from tests.sandbox.inside.test_judge_attacks import SHAPES

pytestmark = pytest.mark.integration


def answers(value: str) -> str:
    """A solution that says it defines `add`, and gives this for whatever is asked first."""
    return f"""
import os, time
os.write(3, b'{{"loaded": true, "names": {{"add": "value"}}}}\\n')
os.write(3, b'{{"id": 1, ' + {value} + b'}}\\n')
time.sleep(60)
"""


SOLUTIONS_DOING = {
    "raises a lone surrogate": 'raise ValueError("\\ud800")',
    "raises a lone surrogate when called": 'def add(a, b): raise ValueError("\\ud800")',
    "raises what has a surrogate for a name": 'def add(a, b): raise type("\\ud800", (Exception,), {})',
    "returns a lone surrogate": 'def add(a, b): return "\\ud800"',
    "stops for a value": answers("""b'"stop": true'"""),
    "answers 600 deep": answers("""b'"value": ' + b'[' * 600 + b']' * 600"""),
    "answers 90000 deep": answers("""b'"value": ' + b'[' * 90000 + b']' * 90000"""),
    "answers five million lists": answers("""b'"value": [' + b'[],' * 5000000 + b'[]]'"""),
    "answers a quarter of a million queues": answers("""b'"value": [' + b'{"deque":[]},' * 250000 + b'[]]'"""),
    "answers a tag that is none": answers("""b'"value": {"dict": [1]}'"""),
    "answers what cannot be a key": answers("""b'"value": {"set": [[]]}'"""),
    "has no names": "import os, time\nos.write(3, b'{\"loaded\": true}\\n')\ntime.sleep(60)",
    "has names that are none": "import os, time\n"
    'os.write(3, b\'{"loaded": true, "names": {"": 1, "a b": [], "add": {}}}\\n\')\ntime.sleep(60)',
    "is killed at import": "import os\nos.kill(os.getpid(), 11)",
    "returns nothing": "def add(*args): pass",
    "is an object": "class A: pass\nadd = A()",
    "is no function": "add = 5",
    "defines nothing": "",
    "sends a byte out of band": "import socket, time\n"
    "s = socket.socket(fileno=3)\ns.send(b'x', socket.MSG_OOB)\ntime.sleep(60)",
    "sends one when it is asked": "import socket, time\n"
    "def add(a, b): socket.socket(fileno=3).send(b'x', socket.MSG_OOB), time.sleep(60)",
    "is an exception": "class add(Exception): pass",
    "takes all memory at import": "data = []\nwhile True: data.append(bytearray(1 << 20))",
    "prints without end": "while True: print('x' * 60000)",
}


HEAVY = ("answers five", "answers a quarter", "takes all", "prints without")


@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, shape) for name in SOLUTIONS_DOING for shape in SHAPES if shape == "check" or not name.startswith(HEAVY)],
)
def test_what_a_solution_does_is_its_own_doing(sandbox: SandboxServer, name: str, shape: str) -> None:
    limits = Limits(wall_seconds=20, cpu_seconds=10, memory_bytes=96 << 20)
    result = ask(sandbox, SOLUTIONS_DOING[name], SHAPES[shape], test_seconds=2, limits=limits)
    assert result.status in ("judged", "not_loaded"), result
    assert not result.passed
    assert Verdict.PASSED not in words(result)
    said = [result.reason] if result.status == "not_loaded" else [test.message for test in result.tests]
    assert not any("tests" in text for text in said), said


@pytest.mark.parametrize(
    "above",
    [
        'x = add(2, 3)["sum"]',
        "import sys\nif add(2, 3) != 5: sys.exit(1)",
        "import os\nif add(2, 3) != 5: os._exit(0)",
        "try:\n    assert add(2, 3)['sum']\nexcept Exception:\n    raise SystemExit",
        "y = plus(1, 2)",
        "from solution import plus",
        "import solution\nz = solution.plus",
        "class Mine(Base): pass",
        "while add(2, 3) != 5: pass",
        "memory = bytearray((1 << 32) if add(2, 3) != 5 else 0)",
    ],
)
def test_what_stumbles_over_an_answer_is_the_solution_s_doing(sandbox: SandboxServer, above: str) -> None:
    tests = f"{above}\ndef test_add():\n    assert add(2, 3) == 5"
    limits = Limits(wall_seconds=6, cpu_seconds=2)
    result = ask(sandbox, "class Base: pass\ndef add(a, b): return None", program(tests), limits=limits)
    assert (result.status, result.passed, result.tests) == ("not_loaded", False, ())


@pytest.mark.parametrize(
    "above",
    [
        "def check(",
        "import nowhere",
        "x = add\nimport nowhere",
        "assert False",
        "1 / 0",
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "import os\nos.kill(os.getpid(), 11)",
        "while True: pass",
        "import time\ntime.sleep(60)",
        "data = []\nwhile True: data.append(bytearray(1 << 20))",
    ],
)
def test_what_the_tests_do_before_they_ask_anything_is_their_own_doing(sandbox: SandboxServer, above: str) -> None:
    tests = f"{above}\ndef test_add():\n    assert add(2, 3) == 5"
    limits = Limits(wall_seconds=6, cpu_seconds=2)
    result = ask(sandbox, "def add(a, b): return a + b", program(tests), limits=limits)
    assert (result.status, result.passed) == ("tests_failed_to_load", False), result


def test_a_test_that_does_not_end_is_not_said_of_the_solution(sandbox: SandboxServer) -> None:
    result = ask(
        sandbox,
        "def add(a, b): return a + b",
        program("def test_add():\n    assert add(2, 3) == 5\n    while True: pass"),
        limits=Limits(wall_seconds=6, cpu_seconds=20),
    )
    assert words(result) == [Verdict.TIMEOUT]
    assert result.tests[0].message == "the tests were still busy when all time was up"


def test_many_long_answers_are_no_fault_of_the_sandbox(sandbox: SandboxServer) -> None:
    num_tests = 1000
    tests = "\n".join(f"assert f({n}) == 0" for n in range(num_tests))
    solution = "def f(n):\n    if n % 2: raise ValueError('\\0' * 100000)\n    return '\\U0001f600' * 100000"
    result = ask(sandbox, solution, program(tests))
    assert (result.status, len(result.tests)) == ("judged", num_tests), result.reason
    assert set(words(result)) == {Verdict.FAILED, Verdict.ERROR}


def test_more_tests_than_are_judged_are_refused(sandbox: SandboxServer) -> None:
    tests = "assert f() == 0\n" * (MAX_PROGRAM_TESTS + 1)
    result = ask(sandbox, "def f(): return 0", program(tests))
    assert (result.status, result.reason) == ("tests_failed_to_load", f"there are more than {MAX_PROGRAM_TESTS} tests")


def test_a_solution_that_ends_under_every_test_does_not_hold_its_slot_for_all_of_them(sandbox: SandboxServer) -> None:
    cases = tuple(CallTest(function="f", expected=None) for _ in range(80))
    result = ask(sandbox, "import os\nprint('x' * 70000)\ndef f(): os._exit(0)", CallTests(cases=cases))
    assert words(result) == [Verdict.ERROR] * 64 + [Verdict.NOT_RUN] * 16
    assert len(result.stdout) == 65536


FLOODS = {
    "empty objects": r"b'{}\n' * 700000",
    "empty lines": r"b'\n' * 2000000",
    "empty names": r"""b'{"tests": [' + b'"",' * 690000 + b'""]}\n'""",
    "a long reason": r"""b'{"load_error": "' + b'x' * 2000000 + b'"}\n'""",
    "brackets": r"b'[' * 2000000 + b'\n'",
    "too much": r"b'{}\n' * 7000000",
    "far too much": r"b'{}\n' * 70000000",
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_report_with_live_objects_costs_the_server_little(sandbox: SandboxServer, name: str) -> None:
    solution = f"""
    import os
    def f():
        for number in range(3, 12):
            try: os.fstat(number)
            except OSError: continue
            view = memoryview({FLOODS[name]})
            while view: view = view[os.write(number, view):]
        os._exit(0)
    """
    tests = program("assert f() == 1", live_objects=True)
    peak_before = peak_kilobytes(sandbox)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, sandbox, solution, tests)
        waits = [0.0]
        while not asked.done():
            begun = time.monotonic()
            sandbox.health()
            waits.append(time.monotonic() - begun)
            time.sleep(0.02)
    result = asked.result()
    assert (result.passed, len(result.tests)) == (False, 1)
    assert words(result) == [Verdict.ERROR]
    assert max(waits) < 10  # the flood takes far longer to read
    assert peak_kilobytes(sandbox) - peak_before < 100 << 10


def peak_kilobytes(sandbox: SandboxServer) -> int:
    status = Path(f"/proc/{sandbox.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])
