"""Asks a running sandbox for a judgement."""

import textwrap

from sandbox.contract import (
    CallTests,
    JudgeRequest,
    JudgeResult,
    Language,
    Limits,
    ProgramTests,
    StdioTests,
    Verdict,
)
from tests.sandbox.conftest import SandboxServer

LIMITS = Limits(wall_seconds=60, cpu_seconds=30)
Tests = ProgramTests | CallTests | StdioTests


def ask(
    sandbox: SandboxServer,
    solution: str,
    tests: Tests,
    *,
    language: Language = Language.PYTHON,
    limits: Limits = LIMITS,
    test_seconds: float = 30,
) -> JudgeResult:
    request = JudgeRequest(
        solution=textwrap.dedent(solution), tests=tests, language=language, limits=limits, test_seconds=test_seconds
    )
    answer = sandbox.client.post(
        "/v1/judge", content=request.model_dump_json(), headers={"Content-Type": "application/json"}
    )
    return JudgeResult.model_validate_json(answer.raise_for_status().content)


def program(code: str, entry_point: str = "", *, live_objects: bool = False) -> ProgramTests:
    return ProgramTests(code=textwrap.dedent(code), entry_point=entry_point, live_objects=live_objects)


def words(result: JudgeResult) -> list[Verdict]:
    return [test.verdict for test in result.tests]
