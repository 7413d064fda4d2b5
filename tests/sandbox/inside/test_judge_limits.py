"""What the contract allows is judged, up to its last byte, and what it does not allow is refused as a request."""

import pytest
from pydantic import JsonValue, ValidationError

from sandbox.contract import MAX_STDIN_CHARS, MAX_VALUE_DEPTH, CallTest, CallTests, Limits, StdioTest, StdioTests
from tests.sandbox.conftest import SandboxServer
from tests.sandbox.inside.judge_client import ask, program

pytestmark = pytest.mark.integration

LINES = "x\n" * (MAX_STDIN_CHARS // 2)
LIMITS = Limits(wall_seconds=120, cpu_seconds=120, memory_bytes=1 << 30)


@pytest.mark.parametrize(
    ("solution", "stdin", "stdout"),
    [
        ("print('x' * 1_500_000)", "", "x" * 1_500_000),
        (f"import sys; sys.stdout.write('é' * {MAX_STDIN_CHARS})", "", "é" * MAX_STDIN_CHARS),
        ("import sys; sys.stdout.write(sys.stdin.read())", LINES, LINES),
        ("for _ in range(1_000_000): print('x ')", "", "x\n" * 1_000_000),
    ],
    ids=["a long line", "as many characters as allowed", "as many lines as allowed", "blanks at the ends of lines"],
)
def test_a_right_output_passes_at_any_length_the_contract_allows(
    sandbox: SandboxServer, solution: str, stdin: str, stdout: str
) -> None:
    tests = StdioTests(cases=(StdioTest(stdin=stdin, stdout=stdout),))
    assert ask(sandbox, solution, tests, limits=LIMITS).passed
    wrong = StdioTests(cases=(StdioTest(stdin=stdin, stdout=f"{stdout[:-1]}y"),))
    assert not ask(sandbox, solution, wrong, limits=LIMITS).passed


FLOATS: list[JsonValue] = [number / 7 for number in range(600_000)]


@pytest.mark.parametrize(
    ("solution", "args", "expected"),
    [
        ("def f(): return [number / 7 for number in range(600_000)]", [], FLOATS),
        ("def f(x): return x", [FLOATS], FLOATS),
        ("def f(): return [(n, n) for n in range(200_000)]", [], [[n, n] for n in range(200_000)]),
        ("def f(): return [{'a': n} for n in range(200_000)]", [], [{"a": n} for n in range(200_000)]),
        ("def f(): return '漢' * 4_000_000", [], "漢" * 4_000_000),
        ("def f(): return '[' * 1_000_000", [], "[" * 1_000_000),
    ],
    ids=["floats", "floats back and forth", "pairs", "dicts", "letters of three bytes", "brackets"],
)
def test_a_right_value_passes_however_large(
    sandbox: SandboxServer, solution: str, args: list[JsonValue], expected: JsonValue
) -> None:
    tests = CallTests(cases=(CallTest(function="f", args=tuple(args), expected=expected),))
    assert ask(sandbox, solution, tests, limits=LIMITS, test_seconds=100).passed


def test_a_right_value_of_an_assertion_passes_however_large(sandbox: SandboxServer) -> None:
    tests = program("def test_it(): assert f() == [number / 7 for number in range(600_000)]")
    solution = "def f(): return [number / 7 for number in range(600_000)]"
    assert ask(sandbox, solution, tests, limits=LIMITS, test_seconds=100).passed


def nest(depth: int, *, in_dicts: bool) -> JsonValue:
    value: JsonValue = 0.5
    for _ in range(depth):
        value = {"a": value} if in_dicts else [value]
    return value


@pytest.mark.parametrize("in_dicts", [False, True])
def test_values_are_nested_as_deeply_as_the_contract_says(sandbox: SandboxServer, in_dicts: bool) -> None:
    value = nest(MAX_VALUE_DEPTH, in_dicts=in_dicts)
    by_place = CallTest(function="f", args=(value,), expected=value)
    by_name = CallTest(function="f", kwargs={"x": value}, expected=value)
    assert ask(sandbox, "def f(x): return x", CallTests(cases=(by_place, by_name))).passed
    with pytest.raises(ValidationError, match="nested more than"):
        CallTest(function="f", expected=nest(MAX_VALUE_DEPTH + 1, in_dicts=in_dicts))


@pytest.mark.parametrize(
    "value", ["float('nan')", "float('inf')", "-0.0", "5e-324", "'\\ud800'", "{1: 2, (1, 2): {3}}"]
)
def test_values_arrive_as_they_were_sent(sandbox: SandboxServer, value: str) -> None:
    tests = program(f"def test_it():\n    sent = {value}\n    assert repr(f(sent)) == repr(sent)")
    assert ask(sandbox, "def f(x): return x", tests).passed
