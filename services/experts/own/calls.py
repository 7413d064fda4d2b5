"""Calls functions of untrusted source in the sandbox and brings back plain values.

Only inputs go in. What a call should return stays outside, so there is nothing inside that a cheat could read or patch:
forging the reply means knowing the right values. What comes back is read as data, strictly: a value that is not plain
JSON is shown as text and equals nothing.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from sandbox.contract import Limits, RunRequest, Status
from services.contracts.base import Json, JsonObject
from services.contracts.strict_json import NotStrictJson, parse_json
from services.experts.own.sandbox_client import SandboxClient

TOLERANCE: Final = 1e-6
MAX_SHOWN: Final = 400
REPLY_FILE: Final = "reply.jsonl"
LIMITS: Final = Limits(wall_seconds=5, cpu_seconds=5, memory_bytes=256 << 20, output_bytes=16 << 10, processes=8)

# Runs inside the sandbox and is not trusted from outside: solution code shares its interpreter.
HARNESS: Final = """
import json, os, sys, types

def main():
    dumps, write, leave = json.dumps, os.write, os._exit
    with open("calls.json") as file:
        calls = json.load(file)
    with open("source.py") as file:
        source = file.read()
    reply = os.open("reply.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def say(line):
        write(reply, (dumps(line) + "\\n").encode())

    def plain(value, depth=0):
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return True
        if kind is float:
            return value - value == 0
        if depth > 20:
            return False
        if kind in (list, tuple):
            return all(plain(item, depth + 1) for item in value)
        return kind is dict and all(type(k) is str and plain(v, depth + 1) for k, v in value.items())

    def explain(error):
        try:
            text = str(error)[:300]
        except BaseException:
            text = ""
        line, trace = None, error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == "source.py":
                line = trace.tb_lineno
            trace = trace.tb_next
        if isinstance(error, SyntaxError) and error.filename == "source.py":
            line, text = error.lineno, str(error.msg)[:300]
        return {"error": type(error).__name__[:100], "text": text, "line": line}

    module = types.ModuleType("source")
    sys.modules["source"] = module
    try:
        exec(compile(source, "source.py", "exec"), module.__dict__)
        say({"loaded": True})
    except BaseException as error:
        say(explain(error) | {"loaded": False})
        leave(0)
    for number, call in enumerate(calls):
        line = {"call": number}
        try:
            function = module.__dict__.get(call["function"])
            if not callable(function):
                line["missing"] = True
            else:
                value = function(*call["args"], **call["kwargs"])
                text = dumps(value) if plain(value) else None
                if text is not None and len(text) <= 65536:
                    line["value"] = value
                else:
                    line["shown"] = repr(value)[:400]
        except BaseException as error:
            line = {"call": number} | explain(error)
        say(line)
    leave(0)

main()
"""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a function of the source, with plain arguments."""

    function: str
    args: Sequence[Json] = ()
    kwargs: JsonObject = field(default_factory=dict)

    def __str__(self) -> str:
        shown = [repr(a) for a in self.args] + [f"{k}={v!r}" for k, v in self.kwargs.items()]
        return shorten(f"{self.function}({', '.join(shown)})")


@dataclass(frozen=True, slots=True)
class Returned:
    """The call returned this plain value (tuples as lists)."""

    value: Json


@dataclass(frozen=True, slots=True)
class ReturnedOther:
    """The call returned something that is not plain data; how it shows itself."""

    shown: str


@dataclass(frozen=True, slots=True)
class Raised:
    """The call, or loading the source, raised. line: in the source, from 1, where it could be told."""

    error: str
    line: int | None

    def describe(self, source: str) -> str:
        """The error with the line it came from."""
        lines = source.splitlines()
        if self.line is None or not 1 <= self.line <= len(lines):
            return self.error
        return f"{self.error} (line {self.line}: {shorten(lines[self.line - 1].strip(), 120)})"


@dataclass(frozen=True, slots=True)
class Missing:
    """The source defines no such function."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The run ended during this call, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class NotReached:
    """The run had ended before this call."""


CallOutcome: TypeAlias = Returned | ReturnedOther | Raised | Missing | Stopped | NotReached


@dataclass(frozen=True, slots=True)
class Run:
    """What became of the calls, one outcome each; load_error when the source could not even be loaded."""

    load_error: Raised | Stopped | None
    outcomes: list[CallOutcome]
    status: Status
    isolation: str


async def run_calls(sandbox: SandboxClient, source: str, calls: Sequence[Call]) -> Run:
    """Make the calls one after the other in one fresh sandbox run. Errors: as for SandboxClient.run."""
    asked = [{"function": c.function, "args": list(c.args), "kwargs": c.kwargs} for c in calls]
    request = RunRequest(
        code=HARNESS,
        files={"calls.json": json.dumps(asked).encode(), "source.py": source.encode(errors="replace")},
        limits=LIMITS,
        collect=(REPLY_FILE,),
    )
    result = await sandbox.run(request)
    reply = result.files.get(REPLY_FILE, b"")
    return _read_reply(reply, len(calls), result.status, _explain_end(result.status), result.isolation.value)


def equals(got: Json, expected: Json) -> bool:
    """Whether a returned value is the expected one: True is not 1, numbers agree within 1e-6, the rest exactly."""
    if isinstance(got, bool) or isinstance(expected, bool):
        return got is expected
    if isinstance(got, int | float) and isinstance(expected, int | float):
        if isinstance(got, int) and isinstance(expected, int):
            return got == expected
        try:
            return math.isclose(got, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        except OverflowError:
            return False
    if isinstance(got, list) and isinstance(expected, list):
        return len(got) == len(expected) and all(map(equals, got, expected))
    if isinstance(got, dict) and isinstance(expected, dict):
        return got.keys() == expected.keys() and all(equals(got[key], expected[key]) for key in expected)
    return type(got) is type(expected) and got == expected


def shorten(text: str, limit: int = MAX_SHOWN) -> str:
    """The text, cut in the middle when it is longer than the limit."""
    if len(text) <= limit:
        return text
    half = (limit - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


def _explain_end(status: Status) -> str:
    match status:
        case Status.TIMEOUT:
            return f"it did not finish: all calls together have {LIMITS.wall_seconds:g} seconds"
        case Status.MEMORY:
            return f"it used more than the {LIMITS.memory_bytes >> 20} MB of memory it has"
        case Status.OUTPUT:
            return "it printed far more than it may"
        case Status.KILLED:
            return "it was ended by a signal"
        case _:
            return "the program ended before it returned"


def _read_reply(reply: bytes, num_calls: int, status: Status, end: str, isolation: str) -> Run:
    """Untrusted bytes: a line that is not what the harness writes is passed over, the first word on a call counts."""
    loaded: bool | None = None
    load_error: Raised | Stopped | None = None
    said: dict[int, CallOutcome] = {}
    for raw in reply.split(b"\n"):
        try:
            line = parse_json(raw)
        except NotStrictJson:
            continue
        if not isinstance(line, dict):
            continue
        number = line.get("call")
        if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < num_calls:
            said.setdefault(number, _read_outcome(line))
        elif isinstance(line.get("loaded"), bool) and loaded is None:
            loaded = line["loaded"] is True
            load_error = None if loaded else _read_raised(line)
    if loaded is None:
        load_error = Stopped(end)
    if load_error is not None:
        return Run(load_error, [NotReached()] * num_calls, status, isolation)
    outcomes: list[CallOutcome] = []
    for number in range(num_calls):
        silent_before = any(isinstance(o, Stopped | NotReached) for o in outcomes)
        outcomes.append(said.get(number, NotReached() if silent_before else Stopped(end)))
    return Run(None, outcomes, status, isolation)


def _read_outcome(line: JsonObject) -> CallOutcome:
    if "value" in line:
        return Returned(line["value"])
    if "missing" in line:
        return Missing()
    if "shown" in line:
        return ReturnedOther(shorten(str(line["shown"])))
    return _read_raised(line)


def _read_raised(line: JsonObject) -> Raised:
    number = line.get("line")
    text = shorten(f"{line.get('error')}: {line.get('text')}" if line.get("text") else str(line.get("error")))
    return Raised(text, number if isinstance(number, int) else None)
