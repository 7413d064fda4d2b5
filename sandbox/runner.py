"""The sandbox as the server sees it: slots, a bounded queue, and `run`, from a request to its result.

Knows how to start the spawner and hand it runs; isolates nothing itself and reads no output but what a supervisor
sends.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from sandbox import wire
from sandbox.contract import Level, Limits, MissingReason, RunRequest, RunResult, Status
from sandbox.errors import IsolationRefused, SandboxBusy, SandboxStopping
from sandbox.settings import SandboxSettings
from sandbox.supervisor import DEATH_SECONDS, SETUP_SECONDS
from sandbox.wire import Ending, Hello, Job, Outcome

START_SECONDS = 30.0
STOP_SECONDS = 20.0

_BOOTSTRAP = """
import sys
sys.path.insert(0, sys.argv[1])
from sandbox.spawner import main
main(int(sys.argv[2]), weak_parent=sys.argv[3])
"""
_STRENGTH = {Level.FULL: 2, Level.FULL_NOCGROUP: 1, Level.WEAK: 0}

_CHECK_NETWORK = """
import os, socket, sys
try:
    socket.socket()
except PermissionError:
    print(sys.version.split()[0])
else:
    raise AssertionError("a socket could be made")
"""
_CHECK_NAMESPACES = """
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
assert int(status["CapEff"], 16) == 0, "capabilities are left"
assert int(status["NoNewPrivs"]) == 1, "privileges could be gained"
assert int(status["Seccomp"]) == 2, "no system call filter"
assert os.getpid() == 2 and os.getuid() == 65534, "not in namespaces of its own"
assert not os.access("/", os.W_OK) and os.listdir("/box") == ["main.py"], "not in a root of its own"
"""
_CHECK_LANDLOCK = """
for path in ("/etc/passwd", "/proc/self/status"):
    try:
        open(path)
    except PermissionError:
        continue
    raise AssertionError(f"{path} could be read")
"""


class Runner:
    """Runs code in `settings.slots` slots. Made by `start`; to be closed, which ends what still runs."""

    def __init__(self, settings: SandboxSettings) -> None:
        self._settings = settings
        self._free = list(range(settings.slots))
        self._slots = asyncio.Semaphore(settings.slots)
        self._num_admitted = 0
        self._spawner: _Spawner | None = None
        self._starting = asyncio.Lock()
        self._closed = False
        self.level = Level.FULL
        self.python_version = ""

    @classmethod
    async def start(cls, settings: SandboxSettings) -> Self:
        """Start the spawner and prove with one run that it isolates. Raises IsolationRefused."""
        runner = cls(settings)
        try:
            await runner._start_spawner()
            code = _CHECK_NETWORK + (_CHECK_LANDLOCK if runner.level == Level.WEAK else _CHECK_NAMESPACES)
            result = await runner.run(RunRequest(code=code, limits=Limits(wall_seconds=30, cpu_seconds=10)))
            if result.status != Status.OK:
                raise IsolationRefused(
                    f"the first run failed its checks: {result.reason}\n{result.stderr.strip()}".rstrip()
                )
        except BaseException:
            await runner.close()
            raise
        runner.python_version = result.stdout.strip()
        return runner

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def num_running(self) -> int:
        return self._settings.slots - len(self._free)

    @property
    def num_waiting(self) -> int:
        return self._num_admitted - self.num_running

    async def run(self, request: RunRequest) -> RunResult:
        """Run one program and say how it ended. Cancelling ends the run, with every process it started.

        Raises SandboxBusy when the queue is full, SandboxStopping after `close`.
        """
        (result,) = await self.run_batch((request,))
        return result

    async def run_batch(self, requests: tuple[RunRequest, ...]) -> tuple[RunResult, ...]:
        """Run several side by side, results in their order. All are admitted or none. Raises what `run` does."""
        room = self._settings.slots + self._settings.queue_limit - self._num_admitted
        if len(requests) > room:
            raise SandboxBusy(f"{self._num_admitted} runs are running or waiting; ask again after a moment")
        if self._closed:
            raise SandboxStopping("the sandbox is stopping")
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._run_in_slot(request)) for request in requests]
            for task in tasks:
                self._num_admitted += 1
                task.add_done_callback(self._leave)
        return tuple(task.result() for task in tasks)

    def _leave(self, _: asyncio.Task[RunResult]) -> None:
        self._num_admitted -= 1

    async def _run_in_slot(self, request: RunRequest) -> RunResult:
        async with self._slots:
            slot = self._free.pop()
            try:
                outcome = await self._ask_supervisor(_job(request, slot))
            finally:
                self._free.append(slot)
        return _result(outcome, request.limits, self.level)

    async def close(self) -> None:
        """End every run, then the spawner, which cleans up after them."""
        self._closed = True
        if self._spawner is not None:
            await asyncio.to_thread(self._spawner.stop)

    async def _start_spawner(self) -> None:
        self._spawner, hello = await asyncio.to_thread(_Spawner.start, self._settings)
        if hello.level is None:
            advice = "Allow unprivileged user namespaces, or accept the level `weak` by name"
            raise IsolationRefused(f"cannot isolate: {hello.problem}. {advice}")
        self.level = Level(hello.level)
        minimum = self._settings.minimum_level
        if _STRENGTH[self.level] < _STRENGTH[minimum]:
            raise IsolationRefused(f"this machine allows the level {self.level}, the settings ask for {minimum}")

    async def _ask_supervisor(self, job: Job) -> Outcome:
        try:
            connection = await self._connect()
        except (OSError, IsolationRefused) as error:
            return Outcome(Ending.FAULT, fault=f"the spawner is gone: {error}")
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        try:
            async with asyncio.timeout(SETUP_SECONDS + job.wall_seconds + 3 * DEATH_SECONDS):
                writer.write(wire.pack(job))
                await writer.drain()
                (length,) = wire.HEADER.unpack(await reader.readexactly(wire.HEADER.size))
                return wire.unpack_outcome(await reader.readexactly(length))
        except TimeoutError:
            return Outcome(Ending.FAULT, fault="the run's supervisor did not answer in time")
        except (asyncio.IncompleteReadError, ConnectionError):
            return Outcome(Ending.FAULT, fault="the run's supervisor ended without an answer")
        finally:
            writer.close()

    async def _connect(self) -> socket.socket:
        """A connection to a new supervisor. Starts another spawner, once, when the last one has died."""
        spawner = self._spawner
        assert spawner is not None
        try:
            return spawner.connect()
        except (BrokenPipeError, ConnectionResetError):
            async with self._starting:
                if self._spawner is spawner:
                    await asyncio.to_thread(spawner.stop)
                    await self._start_spawner()
                assert self._spawner is not None
                return self._spawner.connect()


class _Spawner:
    """The spawner's process and our end of its socket."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket) -> None:
        self._process = process
        self._control = control

    @classmethod
    def start(cls, settings: SandboxSettings) -> "tuple[_Spawner, Hello]":
        """Start it and wait for its first words. Raises OSError, IsolationRefused."""
        if sys.platform != "linux":
            raise IsolationRefused(f"runs are isolated by Linux; this is {sys.platform}")
        control, other_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        interpreter = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
        weak_folder = str(settings.data_dir.resolve()) if settings.minimum_level == Level.WEAK else ""
        package_parent = str(Path(__file__).resolve().parent.parent)
        with other_end:
            process = subprocess.Popen(
                [interpreter, "-I", "-S", "-B", "-c", _BOOTSTRAP, package_parent, str(other_end.fileno()), weak_folder],
                pass_fds=[other_end.fileno()],
                env={"PATH": os.defpath, "LANG": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is for the server, which then stops the spawner
            )
        spawner = cls(process, control)
        control.settimeout(START_SECONDS)
        try:
            hello = wire.receive(control, wire.unpack_hello)
        except (EOFError, OSError) as error:
            spawner.stop()
            raise IsolationRefused(f"the spawner ended at its start: {error}") from error
        return spawner, hello

    def connect(self) -> socket.socket:
        """Have a supervisor forked; gives the connection to it. Raises OSError when the spawner is gone."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                socket.send_fds(self._control, [b"r"], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        return ours

    def stop(self) -> None:
        """Close its socket and wait until it, and every run, is gone."""
        self._control.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _job(request: RunRequest, slot: int) -> Job:
    limits = request.limits
    return Job(
        slot=slot,
        code=request.code,
        stdin=request.stdin,
        files=dict(request.files),
        collect=request.collect,
        wall_seconds=limits.wall_seconds,
        cpu_seconds=limits.cpu_seconds,
        memory_bytes=limits.memory_bytes,
        output_bytes=limits.output_bytes,
        processes=limits.processes,
    )


def _result(outcome: Outcome, limits: Limits, level: Level) -> RunResult:
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
        case Ending.FAULT:
            return Status.SANDBOX_ERROR, f"the sandbox failed, not the code: {outcome.fault}"


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return "a real-time signal"
