"""The execution expert: runs the answer's function on the task's cases and reports the failures.

The calls are made in the sandbox; the expected values never go there (see `calls`). The score is 1 if all cases are
right and 0 otherwise, with the fraction in the evidence. While the sandbox is away, this expert is unavailable.
"""

from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from services.contracts.answers import MAX_SOLUTION_CHARS, AnswerKind, Feedback
from services.contracts.base import JsonObject
from services.contracts.experts import ConsultAbstain, ConsultRequest, ConsultResult, Descriptor
from services.contracts.tasks import FunctionTests, TestCase
from services.experts.own.calls import (
    Call,
    CallOutcome,
    Missing,
    NotReached,
    Raised,
    Returned,
    ReturnedOther,
    Run,
    Stopped,
    equals,
    run_calls,
    shorten,
)
from services.experts.own.fences import find_blocks
from services.experts.own.sandbox_client import SandboxClient

MAX_FEEDBACK: Final = 2_000
NUM_WRONG_SHOWN: Final = 2
TAGS: Final = ("python", "py", "python3", "")


@dataclass(frozen=True, slots=True)
class CaseResult:
    """How one case went; remark is a sentence for the feedback, empty when it passed."""

    passed: bool
    kind: str
    remark: str


class ExecutionExpert:
    """Judges functions by running them."""

    def __init__(self, sandbox: SandboxClient) -> None:
        self._sandbox = sandbox

    @property
    def descriptor(self) -> Descriptor:
        """Scores and explains functions of the domain code/python."""
        return Descriptor(
            name="execution",
            version="1",
            description="Runs the fenced python block of an answer on the task's cases in a sandbox.",
            kinds=[AnswerKind.SCORE, AnswerKind.FEEDBACK, AnswerKind.EVIDENCE],
            domains=["code/python"],
            metadata_keys=["tests"],
            deterministic=True,
            verifier=True,
            max_concurrency=16,
            usual_latency_seconds=0.2,
        )

    async def close(self) -> None:
        """Close the connections to the sandbox."""
        await self._sandbox.close()

    async def consult(self, request: ConsultRequest) -> ConsultResult | ConsultAbstain:
        """The verdict on one rollout. Errors: SandboxBusy (429), SandboxUnavailable (503)."""
        try:
            tests = FunctionTests.model_validate(request.task.metadata["tests"])
        except ValidationError:
            return ConsultAbstain(reason="the task's tests are not an entry point with cases")
        source = extract_python(request.rollout.text)
        if source is None:
            remark = explain_no_block(request.rollout.text)
            return _fail(remark, {"passed": 0, "total": len(tests.cases), "verdicts": ["format"] * len(tests.cases)})
        calls = [Call(tests.entry_point, case.args) for case in tests.cases]
        run = await run_calls(self._sandbox, source, calls)
        return judge(tests, calls, source, run)


def extract_python(text: str) -> str | None:
    """The first closed fenced block marked python or not at all; None if there is none."""
    closed = (block for block in find_blocks(text) if block.closed and block.tag in TAGS)
    source = next(closed, None)
    return source.content[:MAX_SOLUTION_CHARS] if source is not None and source.content.strip() else None


def explain_no_block(text: str) -> str:
    """The feedback on an answer that has no block to run."""
    if any(block.tag in TAGS for block in find_blocks(text)):
        return "Format error: the fenced python block is empty or not closed with ```."
    return "Format error: the answer has no fenced python block."


def judge(tests: FunctionTests, calls: list[Call], source: str, run: Run) -> ConsultResult:
    """The verdict on a run: the values are compared here, outside the sandbox."""
    if run.load_error is not None:
        if isinstance(run.load_error, Raised):
            remark = f"Error while loading the function: {run.load_error.describe(source)}"
        else:
            remark = f"Error while loading the function: {run.load_error.reason}."
        verdicts = [CaseResult(False, "error", remark)] * len(calls)
    else:
        verdicts = [
            _judge_case(call, case, outcome, source)
            for call, case, outcome in zip(calls, tests.cases, run.outcomes, strict=True)
        ]
    num_passed = sum(v.passed for v in verdicts)
    evidence: JsonObject = {
        "passed": num_passed,
        "total": len(verdicts),
        "verdicts": [v.kind for v in verdicts],
        "run": run.status.value,
        "isolation": run.isolation,
    }
    if num_passed == len(verdicts):
        return ConsultResult(score=1.0, evidence=evidence)
    return _fail(_choose_remark(verdicts), evidence)


def _judge_case(call: Call, case: TestCase, outcome: CallOutcome, source: str) -> CaseResult:
    match outcome:
        case Returned(value):
            if equals(value, case.expected):
                return CaseResult(True, "passed", "")
            return CaseResult(False, "wrong", f"{call} returned {shorten(repr(value))}, expected {_show(case)}.")
        case ReturnedOther(shown):
            return CaseResult(False, "wrong", f"{call} returned {shown}, expected {_show(case)}.")
        case Raised():
            return CaseResult(False, "error", f"Runtime error: {call} raised {outcome.describe(source)}")
        case Missing():
            return CaseResult(False, "error", f"Format error: the block defines no function named {call.function}.")
        case Stopped(reason):
            return CaseResult(False, "stopped", f"Stopped during {call}: {reason}.")
        case NotReached():
            return CaseResult(False, "not run", "")


def _show(case: TestCase) -> str:
    return shorten(repr(case.expected))


def _choose_remark(verdicts: list[CaseResult]) -> str:
    """The first error or stop; else the two shortest wrong cases."""
    for verdict in verdicts:
        if verdict.kind in ("error", "stopped"):
            return verdict.remark
    wrong = sorted((v.remark for v in verdicts if not v.passed and v.remark), key=len)[:NUM_WRONG_SHOWN]
    return "Wrong answer: " + "\n".join(wrong)


def _fail(remark: str, evidence: JsonObject) -> ConsultResult:
    return ConsultResult(score=0.0, feedback=Feedback(text=remark[:MAX_FEEDBACK]), evidence=evidence)
