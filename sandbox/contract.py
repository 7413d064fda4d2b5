"""The sandbox's contract: what may be asked of it and what it answers. Other rooms import this module and nothing else
of `sandbox`.

Bytes of files travel as standard base64. Standard output and error are text: bytes that are not UTF-8 become U+FFFD,
NUL stays NUL.
"""

import base64
import binascii
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    model_validator,
)

MAX_CODE_CHARS = 1 << 20
MAX_STDIN_CHARS = 4 << 20
MAX_FILES = 64
MAX_FILE_BYTES = 8 << 20
"""Of all files of one request together, and of all files collected from one run together."""
MAX_PATH_DEPTH = 8
MAX_BATCH = 64
MAX_BATCH_OUTPUT_BYTES = 16 << 20
"""Of all runs of a batch together, both outputs of each: an answer is built whole in memory."""
MAX_BATCH_COLLECTED_BYTES = 16 << 20
"""Of all files collected from the runs of a batch; each run that collects has an equal part, at most MAX_FILE_BYTES."""
MAX_UNKNOWN_FIELDS = 16
"""Each is told of; an object with more of them is refused as a whole."""
MAX_VALUE_DEPTH = 99
"""Of arrays and objects within each other, in what a call is given and has to return."""
MAX_TESTS = 256
MAX_PROGRAM_TESTS = 2048
"""Found in one program of tests."""
MAX_STDIO_SECONDS = 300.0
"""After so long no further run of one request's tests of the kind `stdio` is begun."""
MAX_SITTINGS = 64
"""Processes of one solution, of which each but the first begins after a test that ended the one before."""


class Language(StrEnum):
    """What the code is written in. Which of them a sandbox can run, its health tells."""

    PYTHON = "python"
    """The standard library."""
    PYTHON_NUMPY = "python-numpy"
    """With numpy, imported before the run begins."""
    BASH = "bash"
    JAVASCRIPT = "javascript"
    """Node."""
    CPP = "cpp"
    """C++17, compiled before it runs."""


MAIN_FILES = {
    Language.PYTHON: "main.py",
    Language.PYTHON_NUMPY: "main.py",
    Language.BASH: "main.sh",
    Language.JAVASCRIPT: "main.js",
    Language.CPP: "main.cpp",
}
"""The code is written to this file of the run's folder; `files` may not name it."""


class Status(StrEnum):
    """How a run ended, from the point of view of whoever wrote the code."""

    OK = "ok"
    """Ended by itself with exit code 0."""
    FAILED = "failed"
    """Ended by itself with another exit code: an uncaught exception, a syntax error, `sys.exit(3)`."""
    TIMEOUT = "timeout"
    """Used up its wall or CPU time."""
    MEMORY = "memory"
    """Used up its memory."""
    OUTPUT = "output"
    """Wrote far more than `output_bytes` and was stopped."""
    KILLED = "killed"
    """Ended by a signal: a crash of the interpreter, or the code signalled itself."""
    NOT_COMPILED = "not_compiled"
    """The compiler refused it; `compilation` says why. Nothing was run."""
    SANDBOX_ERROR = "sandbox_error"
    """The sandbox failed; it says nothing about the code. Ask again."""


class Level(StrEnum):
    """How well runs are isolated, strongest first."""

    FULL = "full"
    """Namespaces, read-only root, seccomp, no capabilities, rlimits, and a memory cgroup for each slot."""
    FULL_NOCGROUP = "full-nocgroup"
    """The same without a cgroup: memory is bounded for each process by rlimits, and for the whole run by measuring
    it."""
    CONTAINER = "container"
    """A locked-down Docker container for each run, with seccomp and rlimits inside. Only when the settings ask for the
    backend by name."""
    WEAK = "weak"
    """Landlock, seccomp and rlimits only, where the machine allows no namespaces. Runs share the server's network
    namespace and see the host's processes. Only when the settings ask for it by name."""


class MissingReason(StrEnum):
    NOT_FOUND = "not_found"
    NOT_A_FILE = "not_a_file"
    """A folder, a link, a pipe: only regular files reached without following a link are collected."""
    TOO_LARGE = "too_large"
    UNREADABLE = "unreadable"


def _decode_base64(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not standard base64: {error}") from error


def _encode_base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _check_path(path: str) -> str:
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in path:
        raise ValueError("a path must be relative to the run's folder, without empty, '.' or '..' parts")
    if len(parts) > MAX_PATH_DEPTH or any(len(part.encode()) > 255 for part in parts):
        raise ValueError(f"a path has at most {MAX_PATH_DEPTH} parts of at most 255 bytes")
    return path


def _check_number_of_files(files: object) -> object:
    if isinstance(files, dict) and len(files) > MAX_FILES:
        raise ValueError(f"{len(files)} files, of at most {MAX_FILES}")
    return files


FileBytes = Annotated[bytes, BeforeValidator(_decode_base64), PlainSerializer(_encode_base64, str, when_used="json")]
"""Raw bytes in Python, standard base64 in JSON."""
BoxPath = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_check_path)]
"""A path below the run's folder."""
FewFiles = BeforeValidator(_check_number_of_files)
"""Before each of them is looked at: of a million wrong ones a million errors would be made."""


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _check_number_of_fields(cls, value: object) -> object:
        """Of a million unknown fields a million errors would be made."""
        if isinstance(value, dict) and len(value) > len(cls.model_fields) + MAX_UNKNOWN_FIELDS:
            raise ValueError(f"{len(value)} fields, of at most {len(cls.model_fields)}")
        return value


class Limits(Frozen):
    """What one run may use. All of its processes together, unless said otherwise."""

    wall_seconds: float = Field(5.0, ge=0.1, le=120, allow_inf_nan=False, strict=True)
    cpu_seconds: float = Field(5.0, ge=0.1, le=120, allow_inf_nan=False, strict=True)
    compile_seconds: float = Field(30.0, ge=0.1, le=120, allow_inf_nan=False, strict=True)
    """Wall time of the compiler, for a language that has one."""
    memory_bytes: int = Field(256 << 20, ge=32 << 20, le=4 << 30, strict=True)
    output_bytes: int = Field(64 << 10, ge=0, le=1 << 20, strict=True)
    """Kept of standard output, and as much again of standard error; what comes after is dropped and marked."""
    processes: int = Field(16, ge=1, le=128, strict=True)
    """Processes and threads alive at one time, the first included."""


class RunRequest(Frozen):
    """One program to run in a fresh, empty folder, and what to bring back from it."""

    code: str = Field(max_length=MAX_CODE_CHARS)
    language: Language = Language.PYTHON
    stdin: str = Field("", max_length=MAX_STDIN_CHARS)
    files: Annotated[dict[BoxPath, FileBytes], FewFiles] = Field(default_factory=dict, max_length=MAX_FILES)
    limits: Limits = Limits()
    collect: tuple[BoxPath, ...] = Field((), max_length=MAX_FILES)
    """Paths of regular files to return after the run."""

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        if sum(map(len, self.files.values())) > MAX_FILE_BYTES:
            raise ValueError(f"files hold more than {MAX_FILE_BYTES} bytes together")
        main_file = MAIN_FILES[self.language]
        for path in self.files:
            parts = path.split("/")
            if parts[0] in (main_file, "program"):
                raise ValueError(f"{parts[0]} is where the code goes")
            for depth in range(1, len(parts)):
                if "/".join(parts[:depth]) in self.files:
                    raise ValueError(f"{'/'.join(parts[:depth])} is both a file and a folder")
        return self


class Compilation(Frozen):
    """What the compiler said, before the run."""

    status: Status
    reason: str
    exit_code: int | None
    stdout: str
    stderr: str
    wall_seconds: float


class RunResult(Frozen):
    status: Status
    reason: str
    """One line for a person: which limit, which signal, which fault."""
    exit_code: int | None
    """None unless the program ended by itself."""
    signal: int | None
    """The signal that ended the program, if one did and no limit of the sandbox was behind it."""
    stdout: str
    stderr: str
    stdout_truncated: bool
    stderr_truncated: bool
    wall_seconds: float
    cpu_seconds: float
    peak_memory_bytes: int
    files: dict[str, FileBytes]
    files_missing: dict[str, MissingReason]
    """Those of `collect` that did not come back, and why."""
    isolation: Level
    compilation: Compilation | None = None
    """None for a language that is not compiled."""


class BatchRequest(Frozen):
    """Independent runs; they share nothing, and run side by side as slots allow."""

    runs: tuple[RunRequest, ...] = Field(min_length=1, max_length=MAX_BATCH)

    @model_validator(mode="after")
    def _check_output(self) -> Self:
        if sum(2 * run.limits.output_bytes for run in self.runs) > MAX_BATCH_OUTPUT_BYTES:
            raise ValueError(f"the runs may keep more than {MAX_BATCH_OUTPUT_BYTES} bytes of output together")
        return self


class BatchResult(Frozen):
    results: tuple[RunResult, ...]
    """In the order of the request."""


class Verdict(StrEnum):
    """How one test went."""

    PASSED = "passed"
    FAILED = "failed"
    """The solution answered, and wrongly."""
    ERROR = "error"
    """The solution, or the test, raised an exception; or the solution's process ended."""
    TIMEOUT = "timeout"
    MEMORY = "memory"
    SKIPPED = "skipped"
    """The tests say themselves that it is not to be run here, as unittest's `skip` does; it counts neither way."""
    NOT_RUN = "not_run"
    """There was no time left for it, or the solution did not come to it again after an earlier test had ended it."""


class ProgramTests(Frozen):
    """Python that tests a Python solution: functions `test_*`, what unittest finds, `Test*` classes, a function
    `check(candidate)` with an entry point, or else each assertion, call, or loop with an assertion at top level.

    A test that ends the solution's process, or is not answered in time, costs only itself: the next one gets a new
    process, for which statements at top level are done again.

    The solution's names are there, but for those that the tests define themselves or Python does, and under `import
    solution`. They stand for what is in another process: calls, attributes, items and iteration work, with plain data
    or the solution's own objects as arguments; comparing two of its objects, or handing it a function of the tests,
    does not, unless `live_objects`.
    """

    kind: Literal["program"] = "program"
    code: str = Field(max_length=MAX_CODE_CHARS)
    entry_point: str = Field("", max_length=200)
    """The function that is given to `check`, and that its own name, even one of Python's, and `candidate` stand for."""
    live_objects: bool = Field(False, strict=True)
    """Run solution and tests in one process. A solution could then read its tests and fake the verdict."""


def _check_depth(value: JsonValue) -> JsonValue:
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, list | dict)]:
        depth += 1
        if depth > MAX_VALUE_DEPTH:
            raise ValueError(f"nested more than {MAX_VALUE_DEPTH} deep")
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return value


CallValue = Annotated[JsonValue, AfterValidator(_check_depth)]
"""Up to MAX_VALUE_DEPTH deep. All that one call is given, and what it returns, can each be sent between two processes
up to 16 MiB of JSON, and 2^19 arrays and objects, of which tuples, dicts and sets count twice."""


class CallTest(Frozen):
    function: str = Field(min_length=1, max_length=200)
    """Its name; `Class.method` is called on a new object of the class."""
    args: tuple[CallValue, ...] = ()
    kwargs: dict[str, CallValue] = {}
    expected: CallValue
    """Compared as data: floats to a relative 1e-6 (1e-12 near zero), integers exactly, tuples as lists."""


class CallTests(Frozen):
    """Calls of a Python solution with plain values, each expected to return one."""

    kind: Literal["calls"] = "calls"
    cases: tuple[CallTest, ...] = Field(min_length=1, max_length=MAX_TESTS)


class StdioTest(Frozen):
    stdin: str = Field("", max_length=MAX_STDIN_CHARS)
    stdout: str = Field(max_length=MAX_STDIN_CHARS)
    """Expected; white space at the ends of lines and of the text does not count."""


class StdioTests(Frozen):
    """Runs of a program in any language, each with its input and the output expected. The limits are for each run;
    what has not begun after `MAX_STDIO_SECONDS` is not run."""

    kind: Literal["stdio"] = "stdio"
    cases: tuple[StdioTest, ...] = Field(min_length=1, max_length=MAX_TESTS)


class JudgeRequest(Frozen):
    """A solution and what it has to do right."""

    solution: str = Field(max_length=MAX_CODE_CHARS)
    language: Language = Language.PYTHON
    tests: Annotated[ProgramTests | CallTests | StdioTests, Field(discriminator="kind")]
    limits: Limits = Limits()
    """For all tests together, except of the kind `stdio`."""
    test_seconds: float = Field(5.0, ge=0.1, le=120, allow_inf_nan=False, strict=True)
    """That the solution has to answer one call of a test: to take the question, and to send its answer to the end."""

    @model_validator(mode="after")
    def _check_language(self) -> Self:
        if self.tests.kind != "stdio" and self.language not in (Language.PYTHON, Language.PYTHON_NUMPY):
            raise ValueError(f"tests of the kind {self.tests.kind} are for Python; {self.language} takes stdio")
        return self


class TestVerdict(Frozen):
    name: str
    verdict: Verdict
    message: str = ""
    input: str = ""
    """What the solution was last asked."""
    expected: str = ""
    got: str = ""
    traceback: str = ""
    """From the solution's own first line on."""
    needs_live_objects: bool = False
    """The test did something that handles of the solution's objects cannot do. A solution can bring that about by what
    it returns: whoever judges again with `live_objects` trusts the solution."""


class JudgeMode(StrEnum):
    TWO_PROCESSES = "two_processes"
    """The solution cannot reach its tests."""
    ONE_PROCESS = "one_process"
    """It could: the request asked for live objects."""


class JudgeResult(Frozen):
    status: Literal["judged", "not_loaded", "not_compiled", "tests_failed_to_load", "sandbox_error"]
    """`judged` says nothing about the verdicts. With any other word no test was run, and `reason` says why: the
    solution did not load, or what it answered kept the tests from beginning (`not_loaded`); the tests failed before
    they had an answer of it (`tests_failed_to_load`)."""
    reason: str
    passed: bool
    """Whether a test passed, and every other one passed or was skipped."""
    tests: tuple[TestVerdict, ...]
    mode: JudgeMode
    stdout: str
    """Of the solution; empty for `stdio`, where it is the answer."""
    stderr: str
    wall_seconds: float
    cpu_seconds: float
    """Of the solution, and of its tests where they share a process."""
    isolation: Level
    needs_live_objects: bool = False
    """At least one of the tests does, or what they do before the first."""
    compilation: Compilation | None = None


class SandboxHealth(Frozen):
    status: Literal["ok", "recovering"]
    """`recovering`: the process that starts the sandbox's slots has ended, and the next run brings it back. If it stays
    so, runs are `sandbox_error` and say why."""
    level: Level
    protects: tuple[str, ...]
    """What holds at this level, a sentence each."""
    leaves_open: tuple[str, ...]
    """What does not."""
    python_version: str
    """Of the interpreter that runs the code."""
    slots: int
    """Runs at one time."""
    running: int
    queue: int
    """Runs now waiting for a slot."""
    queue_limit: int
    languages: dict[Language, str]
    """The ones this machine can run are "available"; for the others, why not."""
    zygotes_replaced: int
    """Since the start: warm interpreters that died or failed and were started anew."""
    runs_retried: int
    """Since the start: runs that were run again because of that. None of them more than once."""
