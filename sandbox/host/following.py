"""One run from outside: hands it to a zygote, collects its output, keeps its deadline and caps.

It trusts no claim of the code: exit codes come from the zygote, deadlines and caps are kept here, and files are read
after every process of the run is dead. Only the standard library; loads under `python -S`.
"""

import contextlib
import fcntl
import os
import signal
import socket
import time
from dataclasses import dataclass, field, replace

from sandbox.host.cgroups import Group
from sandbox.host.collecting import collect
from sandbox.inside import kernel, wire, zygote
from sandbox.inside.wire import Ending, ForkOrder, Job, Outcome, Report

SETUP_SECONDS = 20.0
"""For the fork and the mounts, on a machine under load. Not part of the code's time."""
OUTPUT_KILL_FACTOR = 16
"""A run that writes this many times its output cap is stopped."""
OUTPUT_KILL_FLOOR_BYTES = 1 << 20
_PIPE_BYTES = 1 << 16


class RunLost(Exception):
    """The run could not be isolated or started, or its zygote ended without a report."""


@dataclass
class _Capture:
    """The kept part of one output stream."""

    cap: int
    kept: bytearray = field(default_factory=bytearray)
    num_bytes: int = 0

    def take(self, data: bytes) -> None:
        self.kept += data[: max(0, self.cap - len(self.kept))]
        self.num_bytes += len(data)

    @property
    def truncated(self) -> bool:
        return self.num_bytes > self.cap


class Run:
    """One run as its keeper sees it: the pipes of its output, its folder, its time, and how it ended.

    The zygote at the other end of `control` has been told to fork it when this is made.
    """

    def __init__(
        self, job: Job, control: socket.socket, group: Group | None, weak_box: str, channel: int | None
    ) -> None:
        self.wall_seconds = 0.0
        self._box = -1
        self._job = job
        self._control = control
        self._group = group
        self._has_started = False
        self._started = time.monotonic()
        self._deadline = self._started + SETUP_SECONDS
        self._most_output = max(OUTPUT_KILL_FLOOR_BYTES, OUTPUT_KILL_FACTOR * job.output_bytes)
        self._why: Ending | None = None
        self._report: Report | None = None
        payload = _sealed_file(wire.pack_payload({**job.files, job.main_file: job.code}))
        stdin = _sealed_file(job.stdin) if job.stdin else os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._stdout, stdout_end = os.pipe2(os.O_CLOEXEC)
        self._stderr, stderr_end = os.pipe2(os.O_CLOEXEC)
        self._captures = {self._stdout: _Capture(job.output_bytes), self._stderr: _Capture(job.output_bytes)}
        self._open = {self._stdout, self._stderr}
        for descriptor in self._open:  # where the code has the keeper's user it can read its own output back
            os.set_blocking(descriptor, False)
        given = (payload, stdin, stdout_end, stderr_end)
        order = ForkOrder(
            job.role,
            job.argv,
            job.main_file,
            job.cpu_seconds,
            job.memory_bytes,
            job.processes,
            job.address_slack_bytes,
            job.data_slack_bytes,
            wants_box=bool(job.collect),
            weak_box=weak_box,
        )
        try:
            more = () if channel is None else (channel,)
            socket.send_fds(self._control, [wire.pack_packet(order)], (*given, *more))
        finally:
            for descriptor in given:
                os.close(descriptor)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in (self._stdout, self._stderr, self._box):
            if descriptor >= 0:
                os.close(descriptor)

    @property
    def is_over(self) -> bool:
        return self._report is not None

    def sources(self) -> set[int]:
        """Descriptors to watch while the run is not over."""
        return set() if self.is_over else {*self._open, self._control.fileno()}

    @property
    def seconds_left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def attend(self, ready: set[int]) -> None:
        """Read new output and events, and end the run when it must end. Raises RunLost."""
        for descriptor in self._open & ready:
            with contextlib.suppress(BlockingIOError):
                self._read(descriptor)
        if self._control.fileno() in ready:
            self._hear()
        if self.is_over:
            self.wall_seconds = time.monotonic() - self._started
            return
        if any(capture.num_bytes > self._most_output for capture in self._captures.values()):
            self.end(Ending.OUTPUT)
        elif time.monotonic() >= self._deadline:
            if self._why is not None or not self._has_started:
                raise RunLost("the run could not be ended" if self._why else "the run was not set up in time")
            self.end(Ending.WALL)
        elif self._group is not None and self._group.has_overflowed():
            self.end(Ending.MEMORY)  # the kernel ended one process; with it the whole run has outgrown its memory
        elif self._group is not None and self._group.cpu_seconds() > self._job.cpu_seconds:
            self.end(Ending.CPU)

    def end(self, why: Ending) -> None:
        """Have the zygote kill the rest of the run; its report is still to come."""
        if self._why is None and not self.is_over:
            self._why = why
            self._control.send(zygote.KILL)
            self._deadline = time.monotonic() + zygote.DEATH_SECONDS

    def outcome(self) -> Outcome:
        """The outcome of the finished run, with output, memory and files."""
        report, why = self._report, self._why
        assert report is not None
        self._drain()
        # one whose end the zygote had seen before it was told has not been cancelled
        ending = report.ending if why in (None, Ending.CANCELLED) else why
        out, err = self._captures[self._stdout], self._captures[self._stderr]
        files, missing = collect(self._box, self._job.collect, self._job.collect_bytes)
        outcome = Outcome(
            ending,
            exit_code=report.exit_code if ending == Ending.EXITED else None,
            signal=report.signal if ending == Ending.SIGNALLED else None,
            stdout=bytes(out.kept),
            stdout_truncated=out.truncated,
            stderr=bytes(err.kept),
            stderr_truncated=err.truncated,
            wall_seconds=self.wall_seconds,
            cpu_seconds=report.cpu_seconds,
            peak_memory_bytes=report.peak_memory_bytes,
            files=files,
            files_missing=missing,
        )
        return _with_counts(outcome, self._group, self._job.cpu_seconds)

    def _hear(self) -> None:
        """The next message of the zygote, or of its fork before that. Raises RunLost."""
        message, descriptors, _, _ = socket.recv_fds(self._control, wire.MAX_PACKET_BYTES, 1)
        if message == b"box":
            (self._box,) = descriptors
        elif message == b"started":
            self._has_started = True
            self._started = time.monotonic()
            if self._why is None:
                self._deadline = self._started + self._job.wall_seconds
        elif message.startswith(b"fault:"):
            raise RunLost(message.decode(errors="replace").removeprefix("fault:"))
        elif not message:
            raise RunLost("the zygote ended")
        else:
            self._report = wire.unpack_report(message)
            if not self._has_started and self._why is None:
                raise RunLost(f"the run ended during set-up: {self._report}")

    def _read(self, descriptor: int) -> None:
        data = os.read(descriptor, _PIPE_BYTES)
        if data:
            self._captures[descriptor].take(data)
        else:
            self._open.discard(descriptor)

    def _drain(self) -> None:
        """Read the output that dead processes left in the pipes."""
        for descriptor in tuple(self._open):
            with contextlib.suppress(BlockingIOError):
                while descriptor in self._open:
                    self._read(descriptor)


def _sealed_file(data: bytes) -> int:
    """A sealed, unnamed file in memory, positioned at its start."""
    descriptor = os.memfd_create("run", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    kernel.write_whole(descriptor, data)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _with_counts(outcome: Outcome, group: Group | None, cpu_seconds: float) -> Outcome:
    """Add the kernel's counters, and tell a run that exceeded a limit from one that ended otherwise or only claims to
    have exceeded it."""
    if group:
        outcome = replace(
            outcome,
            cpu_seconds=group.cpu_seconds() or outcome.cpu_seconds,
            peak_memory_bytes=max(outcome.peak_memory_bytes, group.peak_bytes()),
        )
    if outcome.ending == Ending.CANCELLED:
        return outcome
    if outcome.signal == signal.SIGXCPU and outcome.cpu_seconds >= cpu_seconds:
        outcome = replace(outcome, ending=Ending.CPU, signal=None)
    # in a cgroup the kernel ends a run that outgrows its memory; without one a process is refused more, and its last
    # its own message is the only sign: it may have touched little memory
    if group.has_overflowed() if group else _ended_for_want_of_memory(outcome):
        outcome = replace(outcome, ending=Ending.MEMORY, exit_code=None, signal=None)
    return outcome


def _ended_for_want_of_memory(outcome: Outcome) -> bool:
    """Whether it ended, or hung, as Python, C++ or V8 does when it gets no more."""
    lines = outcome.stderr.rstrip().splitlines()
    last = lines[-1] if lines else b""
    if outcome.signal in (signal.SIGABRT, signal.SIGTRAP):
        return last == b"  what():  std::bad_alloc" or any(map(_is_fatal_to_v8, lines))
    # a thread that has no memory to begin with leaves the one that started it waiting for ever
    stopped = outcome.exit_code == 1 or outcome.ending == Ending.WALL
    return stopped and last.partition(b":")[0] == b"MemoryError"


def _is_fatal_to_v8(line: bytes) -> bool:
    return line.startswith((b"FATAL ERROR: ", b"# Fatal process ")) and (b"out of memory" in line or b" OOM " in line)
