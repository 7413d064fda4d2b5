"""SandboxFusion's interface: POST /run_code and GET /v1/ping, so that its clients need only another URL.

Differences: only the languages of this sandbox, Python with numpy if the code names it; every run is isolated; no file
enters or leaves the run's folder; times are at most MAX_SECONDS. `message` says if output was cut off.
"""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from sandbox.contract import (
    MAX_FILES,
    BoxPath,
    FewFiles,
    FileBytes,
    Language,
    Limits,
    RunRequest,
    RunResult,
    Status,
)
from sandbox.errors import LanguageUnavailable

MAX_SECONDS: Final = 120.0
DEFAULT_MEMORY_BYTES: Final = 1 << 30
_LANGUAGES: Final = {
    "python": Language.PYTHON,
    "cpp": Language.CPP,
    "nodejs": Language.JAVASCRIPT,
    "bash": Language.BASH,
}


class RunCodeStatus(StrEnum):
    SUCCESS = "Success"
    FAILED = "Failed"
    SANDBOX_ERROR = "SandboxError"


class CommandStatus(StrEnum):
    FINISHED = "Finished"
    TIME_LIMIT_EXCEEDED = "TimeLimitExceeded"


class RunCodeRequest(BaseModel):
    """As its clients send it; fields of other versions are left out of account."""

    model_config = ConfigDict(frozen=True)

    code: str
    language: str
    compile_timeout: float = Field(10, gt=0, allow_inf_nan=False)
    run_timeout: float = Field(10, gt=0, allow_inf_nan=False)
    memory_limit_MB: int = -1
    stdin: str | None = None
    files: Annotated[dict[str, FileBytes | None], FewFiles] = Field({}, max_length=MAX_FILES)
    fetch_files: tuple[str, ...] = Field((), max_length=MAX_FILES)


class CommandResult(BaseModel):
    model_config = ConfigDict(frozen=True)

    status: CommandStatus
    execution_time: float
    cpu_time: float | None = None
    return_code: int | None
    stdout: str
    stderr: str


class RunCodeResponse(BaseModel):
    model_config = ConfigDict(frozen=True)

    status: RunCodeStatus
    message: str
    compile_result: CommandResult | None
    run_result: CommandResult | None
    executor_pod_name: str | None = None
    files: dict[str, FileBytes]


def translate_request(asked: RunCodeRequest, available: frozenset[Language]) -> RunRequest:
    """The request in this sandbox's contract. Raises LanguageUnavailable, and ValidationError for paths outside the
    run's folder and for oversized fields."""
    language = _LANGUAGES.get(asked.language)
    if language is None:
        raise LanguageUnavailable(f"{asked.language} is none of {', '.join(_LANGUAGES)}")
    if language == Language.PYTHON and "numpy" in asked.code and Language.PYTHON_NUMPY in available:
        language = Language.PYTHON_NUMPY
    memory_bytes = DEFAULT_MEMORY_BYTES if asked.memory_limit_MB <= 0 else asked.memory_limit_MB << 20
    limits = Limits(
        wall_seconds=_clamp(asked.run_timeout),
        cpu_seconds=MAX_SECONDS,
        compile_seconds=_clamp(asked.compile_timeout),
        memory_bytes=min(4 << 30, max(32 << 20, memory_bytes)),
        output_bytes=1 << 20,
        processes=64,
    )
    return RunRequest(
        code=asked.code,
        language=language,
        stdin=asked.stdin or "",
        files={_relative(path): data for path, data in asked.files.items() if data is not None},
        limits=limits,
        collect=tuple(map(_relative, asked.fetch_files)),
    )


def _clamp(seconds: float) -> float:
    return min(MAX_SECONDS, max(0.1, seconds))


def _relative(path: str) -> BoxPath:
    return path.removeprefix("/box/").removeprefix("./")


def translate_result(asked: RunCodeRequest, result: RunResult) -> RunCodeResponse:
    """The result as its clients read it."""
    status = RunCodeStatus.SUCCESS if result.status == Status.OK else RunCodeStatus.FAILED
    if result.status == Status.SANDBOX_ERROR:
        status = RunCodeStatus.SANDBOX_ERROR
    compiled = result.compilation
    compile_result = None
    if compiled is not None:
        compile_result = CommandResult(
            status=CommandStatus.FINISHED if compiled.exit_code is not None else CommandStatus.TIME_LIMIT_EXCEEDED,
            execution_time=compiled.wall_seconds,
            return_code=compiled.exit_code,
            stdout=compiled.stdout,
            stderr=compiled.stderr,
        )
    was_run = result.status not in (Status.NOT_COMPILED, Status.SANDBOX_ERROR)
    cut = [name for name in ("stdout", "stderr") if getattr(result, f"{name}_truncated")]
    notes = [] if result.status == Status.OK else [result.reason]
    notes += [f"{name} was cut off" for name in cut]
    notes += [f"{path}: {reason}" for path, reason in result.files_missing.items()]
    return RunCodeResponse(
        status=status,
        message="; ".join(notes),
        compile_result=compile_result,
        run_result=_run_result(result) if was_run else None,
        files={path: result.files[_relative(path)] for path in asked.fetch_files if _relative(path) in result.files},
    )


def _run_result(result: RunResult) -> CommandResult:
    is_timeout = result.status == Status.TIMEOUT
    return_code = result.exit_code
    if return_code is None and not is_timeout:
        return_code = -(result.signal or 9)  # as a shell's parent sees a process that was killed
    return CommandResult(
        status=CommandStatus.TIME_LIMIT_EXCEEDED if is_timeout else CommandStatus.FINISHED,
        execution_time=result.wall_seconds,
        cpu_time=result.cpu_seconds,
        return_code=return_code,
        stdout=result.stdout,
        stderr=result.stderr,
    )
