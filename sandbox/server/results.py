"""From a keeper's report to a result in the contract's terms."""

import contextlib
import signal

from sandbox.contract import Compilation, Level, Limits, MissingReason, RunResult, Status
from sandbox.inside.wire import Ending, Outcome
from sandbox.server.languages import COMPILE_LIMITS


def make_result(outcome: Outcome, limits: Limits, level: Level, compilation: Compilation | None = None) -> RunResult:
    """The result of a run."""
    status, reason = _judge(outcome, limits)
    return RunResult(
        status=status,
        reason=reason,
        exit_code=outcome.exit_code,
        signal=outcome.signal,
        stdout=outcome.stdout.decode(errors="replace"),
        stderr=outcome.stderr.decode(errors="replace"),
        stdout_truncated=outcome.stdout_truncated,
        stderr_truncated=outcome.stderr_truncated,
        wall_seconds=outcome.wall_seconds,
        cpu_seconds=outcome.cpu_seconds,
        peak_memory_bytes=outcome.peak_memory_bytes,
        files=outcome.files or {},
        files_missing={path: MissingReason(reason) for path, reason in (outcome.files_missing or {}).items()},
        isolation=level,
        compilation=compilation,
    )


def make_compilation(outcome: Outcome, seconds: float) -> Compilation:
    """The result of the compiler's run, given its wall time limit."""
    status, reason = _judge(outcome, COMPILE_LIMITS.model_copy(update={"wall_seconds": seconds}))
    return Compilation(
        status=Status.NOT_COMPILED if status in (Status.FAILED, Status.TIMEOUT, Status.MEMORY) else status,
        reason=reason,
        exit_code=outcome.exit_code,
        stdout=outcome.stdout.decode(errors="replace"),
        stderr=outcome.stderr.decode(errors="replace"),
        wall_seconds=outcome.wall_seconds,
    )


def not_compiled(compilation: Compilation, level: Level) -> RunResult:
    """The result of a run that did not take place; a fault of the sandbox stays one."""
    is_fault = compilation.status == Status.SANDBOX_ERROR
    return RunResult(
        status=Status.SANDBOX_ERROR if is_fault else Status.NOT_COMPILED,
        reason=f"the compiler {compilation.reason}",
        exit_code=None,
        signal=None,
        stdout="",
        stderr=compilation.stderr,
        stdout_truncated=False,
        stderr_truncated=False,
        wall_seconds=0.0,
        cpu_seconds=0.0,
        peak_memory_bytes=0,
        files={},
        files_missing={},
        isolation=level,
        compilation=compilation,
    )


def _judge(outcome: Outcome, limits: Limits) -> tuple[Status, str]:
    match outcome.ending:
        case Ending.EXITED if outcome.exit_code == 0:
            return Status.OK, "ended with exit code 0"
        case Ending.EXITED:
            return Status.FAILED, f"ended with exit code {outcome.exit_code}"
        case Ending.SIGNALLED:
            return Status.KILLED, f"ended by signal {outcome.signal} ({_signal_name(outcome.signal or 0)})"
        case Ending.WALL:
            return Status.TIMEOUT, f"still running after {limits.wall_seconds:g} s"
        case Ending.CPU:
            return Status.TIMEOUT, f"used more than {limits.cpu_seconds:g} s of processor time"
        case Ending.MEMORY:
            return Status.MEMORY, f"used more than {limits.memory_bytes / (1 << 20):g} MiB of memory"
        case Ending.OUTPUT:
            return Status.OUTPUT, f"wrote far more than the {limits.output_bytes} bytes that are kept of an output"
        case Ending.CANCELLED:
            return Status.SANDBOX_ERROR, "cancelled: the caller has hung up"
        case Ending.FAULT:
            return Status.SANDBOX_ERROR, f"the sandbox failed, not the code: {outcome.fault}"


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return "a real-time signal"
