"""Scorers: an answer is compared with the expected value, a command with the expected one, or a tool call by its
effect."""

import re
from fractions import Fraction
from typing import Final

from pydantic import ValidationError

from services.contracts.answers import AnswerKind, Feedback
from services.contracts.base import Json, JsonObject
from services.contracts.experts import ConsultAbstain, ConsultRequest, ConsultResult, Descriptor
from services.contracts.strict_json import NotStrictJson, parse_json
from services.contracts.tasks import COMMAND_DOMAIN, ToolSet
from services.experts.own.calls import (
    TOLERANCE,
    Call,
    Missing,
    NotReached,
    Raised,
    Returned,
    ReturnedOther,
    Stopped,
    equals,
    run_calls,
    shorten,
)
from services.experts.own.fences import find_blocks
from services.experts.own.sandbox_client import SandboxClient

MAX_FEEDBACK: Final = 2_000

_NUMBER: Final = r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d{1,3})?"
_NUMERIC: Final = re.compile(rf"({_NUMBER})(?:\s*/\s*({_NUMBER}))?(\s*%)?")
_FRAC: Final = re.compile(r"^(-?)\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}$")
_IN_TEXT: Final = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s*/\s*\d+(?:\.\d+)?)?(?![\w])")
_MARKED: Final = re.compile(r"(?:####|\bfinal answer(?: is)?|\banswer(?: is)?)[ \t]*:?[ \t]*([^\n]+)", re.IGNORECASE)


class ExactMatchExpert:
    """Judges answers that come to one value: numbers by value, other answers as text, commands letter by letter."""

    @property
    def descriptor(self) -> Descriptor:
        """Scores the domains under math, multiple choice and commands."""
        return Descriptor(
            name="exact-match",
            version="2",
            description="Compares the final answer with the task's: numbers by value, commands letter by letter, the "
            "rest as text.",
            kinds=[AnswerKind.SCORE, AnswerKind.FEEDBACK, AnswerKind.EVIDENCE],
            domains=["math", "math/*", "science/mcq", COMMAND_DOMAIN],
            metadata_keys=["answer"],
            deterministic=True,
            verifier=True,
            max_concurrency=64,
            usual_latency_seconds=0.01,
        )

    async def consult(self, request: ConsultRequest) -> ConsultResult | ConsultAbstain:
        """The verdict on the final answer."""
        expected = request.task.metadata["answer"]
        if isinstance(expected, bool) or not isinstance(expected, str | int | float):
            return ConsultAbstain(reason="the task's answer is neither text nor a number")
        if request.task.domain == COMMAND_DOMAIN:
            return _judge_command(request.rollout.text, str(expected))
        given = find_final_answer(request.rollout.text)
        if given is None:
            return _fail("Format error: no final answer was found.", {"given": None})
        if matches(given, str(expected)):
            return ConsultResult(score=1.0, evidence={"given": given})
        return _fail(f"The final answer was {shorten(given)}, expected {shorten(str(expected))}.", {"given": given})


def _judge_command(text: str, expected: str) -> ConsultResult:
    """The whole answer, but for space around it, has to be the command. A miss does not tell which it is."""
    given = text.strip()
    if given == expected.strip():
        return ConsultResult(score=1.0, evidence={"given": given})
    return _fail(f"{shorten(given) or 'An empty answer'} is not the right command.", {"given": given[:1000]})


def find_final_answer(text: str) -> str | None:
    """What the text comes to: the last \\boxed{}, else what follows the last `answer is` or `####`, else the last
    number, else a single line as a whole."""
    boxed = _find_boxed(text)
    if boxed is not None:
        return boxed
    marked: list[str] = _MARKED.findall(text)
    if marked:
        return marked[-1].strip().strip("*$ ").rstrip(".")[:1000] or None
    numbers: list[str] = _IN_TEXT.findall(text)
    if numbers:
        return numbers[-1]
    stripped = text.strip()
    is_one_line = stripped and "\n" not in stripped and "\\boxed{" not in stripped
    return stripped[:1000] if is_one_line else None


def matches(given: str, expected: str) -> bool:
    """Whether two answers are the same: as numbers (within 1e-6 of the expected one), else as text without case."""
    number, wanted = parse_number(given), parse_number(expected)
    if wanted is not None:
        return number is not None and abs(number - wanted) <= Fraction(TOLERANCE) * max(Fraction(1), abs(wanted))
    return _normalise(given) == _normalise(expected)


def parse_number(text: str) -> Fraction | None:
    """The exact value of an integer, decimal, fraction, percentage or LaTeX \\frac; None for anything else."""
    cleaned = text.strip().strip("$").replace("\\,", "").replace("\\%", "%").replace("−", "-").strip().rstrip(".")
    if len(cleaned) > 100:
        return None
    if (frac := _FRAC.match(cleaned)) is not None:
        cleaned = f"{frac[1]}{frac[2]}/{frac[3]}"
    found = _NUMERIC.fullmatch(cleaned)
    if found is None:
        return None
    try:
        value = _read(found[1]) / (_read(found[2]) if found[2] is not None else 1)
    except (ValueError, ZeroDivisionError):
        return None
    return value / 100 if found[3] else value


def _read(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def _find_boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed{")
    for i, char in enumerate(text[begin:], begin):
        if char == "}" and depth == 0:
            return text[begin:i].strip()[:1000] or None
        depth += (char == "{") - (char == "}")
    return None


def _normalise(text: str) -> str:
    bare = text.strip().strip("$").strip("()[]. ").casefold()
    return " ".join(bare.removeprefix("\\text{").removesuffix("}").split())


class ToolCallExpert:
    """Judges a tool call by making it: the task's own tools run in the sandbox, the result is compared outside."""

    def __init__(self, sandbox: SandboxClient) -> None:
        self._sandbox = sandbox

    @property
    def descriptor(self) -> Descriptor:
        """Scores and explains the domain tool-call."""
        return Descriptor(
            name="tool-call",
            version="1",
            description="Makes the call in the fenced json block with the task's tools and compares the result.",
            kinds=[AnswerKind.SCORE, AnswerKind.FEEDBACK, AnswerKind.EVIDENCE],
            domains=["tool-call"],
            metadata_keys=["tools", "expected_result"],
            deterministic=True,
            verifier=True,
            max_concurrency=16,
            usual_latency_seconds=0.2,
        )

    async def close(self) -> None:
        """Close the connections to the sandbox."""
        await self._sandbox.close()

    async def consult(self, request: ConsultRequest) -> ConsultResult | ConsultAbstain:
        """The verdict on one call. Errors: SandboxBusy (429), SandboxUnavailable (503)."""
        try:
            tools = ToolSet.model_validate(request.task.metadata["tools"])
        except ValidationError:
            return ConsultAbstain(reason="the task's tools are not source with names")
        try:
            call = parse_call(request.rollout.text, tools.names)
        except ValueError as error:
            return _fail(f"Format error: {error}", {"verdict": "format"})
        run = await run_calls(self._sandbox, tools.source, [call])
        if run.load_error is not None:
            return ConsultAbstain(reason="the task's tools could not be loaded")
        expected = request.task.metadata["expected_result"]
        match run.outcomes[0]:
            case Returned(value) if equals(value, expected):
                return ConsultResult(score=1.0, evidence={"verdict": "passed", "call": str(call)})
            case Returned(value):
                remark = f"{call} returned {shorten(repr(value))}, expected {_show(expected)}."
                return _fail(f"Wrong result: {remark}", {"verdict": "wrong", "call": str(call)})
            case ReturnedOther(shown):
                remark = f"{call} returned {shown}, expected {_show(expected)}."
                return _fail(f"Wrong result: {remark}", {"verdict": "wrong", "call": str(call)})
            case Raised() as raised:
                return _fail(f"Wrong arguments: {call} raised {raised.error}", {"verdict": "error", "call": str(call)})
            case Stopped(reason):
                return _fail(f"Stopped during {call}: {reason}.", {"verdict": "stopped", "call": str(call)})
            case Missing() | NotReached():
                return ConsultAbstain(reason=f"the task's tools do not define {call.function}")


def parse_call(text: str, names: list[str]) -> Call:
    """The call in the first fenced json block. Raises ValueError with a sentence on its fault."""
    block = next((block for block in find_blocks(text) if block.tag in ("json", "")), None)
    if block is None:
        raise ValueError("there is no fenced json block.")
    if not block.closed:
        raise ValueError("the fenced json block is not closed with ```.")
    try:
        call = parse_json(block.content)
    except NotStrictJson as error:
        raise ValueError(f"the block is not valid JSON ({error}).") from None
    if not isinstance(call, dict) or set(call) != {"tool", "arguments"}:
        raise ValueError('the block must be one object with the keys "tool" and "arguments".')
    tool, arguments = call["tool"], call["arguments"]
    if not isinstance(tool, str) or tool not in names:
        raise ValueError(f"there is no tool {shorten(repr(tool), 100)}; the tools are {', '.join(names)}.")
    if not isinstance(arguments, dict):
        raise ValueError("the arguments must be one object, by parameter name.")
    return Call(tool, kwargs=arguments)


def _show(value: Json) -> str:
    return shorten(repr(value))


def _fail(remark: str, evidence: JsonObject) -> ConsultResult:
    return ConsultResult(score=0.0, feedback=Feedback(text=remark[:MAX_FEEDBACK]), evidence=evidence)
