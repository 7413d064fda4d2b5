"""One run from outside: starts PID 1, collects what comes out, enforces wall time and output, kills, cleans up, and
says what happened.

A process of its own for each run, forked by the spawner; it ends with the run. It believes nothing the code says: exit
codes come from PID 1, deadlines and caps are kept here, and files are read after every process of the run is dead.
Only the standard library; loads under `python -S`.
"""

import contextlib
import errno
import fcntl
import json
import os
import select
import signal
import socket
import stat
import time
from dataclasses import dataclass, field, replace

from sandbox import kernel, weak
from sandbox.cgroups import Group, Place
from sandbox.init import Report, Start, run_as_init
from sandbox.isolation import SLOT_UID_BASE, Interpreter
from sandbox.kernel import Namespace
from sandbox.wire import Ending, Job, Outcome, pack, receive, unpack_job

RECEIVE_SECONDS = 20.0
SETUP_SECONDS = 20.0
"""For the namespaces and mounts, on a machine under load. Not part of the code's time."""
DEATH_SECONDS = 10.0
OUTPUT_KILL_FACTOR = 16
"""A run that writes this many times what is kept of its output is stopped."""
OUTPUT_KILL_FLOOR_BYTES = 1 << 20
COLLECT_BYTES = 8 << 20
_PIPE_BYTES = 1 << 16


class Cancelled(Exception):
    """The server no longer wants the answer."""


class RunLost(Exception):
    """The run could not be isolated, its interpreter not started, or its PID 1 ended without a report."""


@dataclass
class _Capture:
    """What is kept of one output stream."""

    cap: int
    kept: bytearray = field(default_factory=bytearray)
    num_bytes: int = 0

    def take(self, data: bytes) -> None:
        self.kept += data[: max(0, self.cap - len(self.kept))]
        self.num_bytes += len(data)

    @property
    def truncated(self) -> bool:
        return self.num_bytes > self.cap


@dataclass(frozen=True)
class Setup:
    """What the spawner found out once for all runs."""

    interpreter: Interpreter
    is_root: bool
    place: Place | None
    weak_folder: str | None
    """Where runs get their folders at the level `weak`; None at the others."""


def supervise(connection: socket.socket, setup: Setup) -> None:
    """Take one job from the connection, run it, answer with its outcome. A closed connection ends the run at once."""
    connection.settimeout(RECEIVE_SECONDS)
    try:
        job = receive(connection, unpack_job)
    except (EOFError, TimeoutError):
        return
    # should this process ever hang, it dies and PID 1 with it; the server then reports a fault of the sandbox
    signal.alarm(int(SETUP_SECONDS + job.wall_seconds + 2 * DEATH_SECONDS))
    try:
        outcome = _run(job, connection, setup)
    except Cancelled:
        return
    except RunLost as error:
        outcome = Outcome(Ending.FAULT, fault=str(error))
    except OSError as error:
        outcome = Outcome(Ending.FAULT, fault=f"{type(error).__name__}: {error}")
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
        connection.sendall(pack(outcome))


def _run(job: Job, connection: socket.socket, setup: Setup) -> Outcome:
    owner = SLOT_UID_BASE + job.slot if setup.is_root else None
    with contextlib.ExitStack() as stack:
        group = None
        if setup.place is not None:
            group = setup.place.make_group(f"run-{os.getpid()}", job)
            stack.callback(group.remove)
        weak_box = None
        if setup.weak_folder is not None:
            weak_box = weak.make_box(setup.weak_folder, owner)
            stack.callback(weak.remove_box, weak_box)
        run = stack.enter_context(_start_init(job, connection, group, setup.interpreter, owner, weak_box))
        outcome = _follow(run, job, connection, group)
        run.kill()
        run.drain()
        outcome = _with_memory(run.add_output(outcome), group)
        files, missing = _collect(run.box, job.collect)
    return replace(outcome, files=files, files_missing=missing)


class _Run:
    """The open ends of one run: its PID 1, the pipes of its output, its folder."""

    def __init__(
        self, pid: int, status: socket.socket, stdout: int, stderr: int, output_bytes: int, *, is_weak: bool
    ) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.status = status
        self.box = -1
        self.captures = {stdout: _Capture(output_bytes), stderr: _Capture(output_bytes)}
        self._stdout, self._stderr = stdout, stderr
        self._open = {stdout, stderr}
        self._is_weak = is_weak
        self._dead = False

    def __enter__(self) -> "_Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for descriptor in (self._stdout, self._stderr, self.pidfd, self.box):
            if descriptor >= 0:
                os.close(descriptor)
        self.status.close()

    def open_outputs(self) -> set[int]:
        return set(self._open)

    def read(self, descriptor: int) -> None:
        data = os.read(descriptor, _PIPE_BYTES)
        if data:
            self.captures[descriptor].take(data)
        else:
            self._open.discard(descriptor)

    def kill(self) -> None:
        """Kill PID 1, and with it every process of the run. When this returns they are dead. May raise TimeoutError."""
        if self._dead:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        if self._is_weak:
            weak.kill_descendants(DEATH_SECONDS)
        self._dead = True

    def drain(self) -> None:
        """Take what the dead left in the pipes."""
        for descriptor in self.open_outputs():
            os.set_blocking(descriptor, False)
            with contextlib.suppress(BlockingIOError):
                while descriptor in self._open:
                    self.read(descriptor)

    def add_output(self, outcome: Outcome) -> Outcome:
        out, err = self.captures[self._stdout], self.captures[self._stderr]
        return replace(
            outcome,
            stdout=bytes(out.kept),
            stdout_truncated=out.truncated,
            stderr=bytes(err.kept),
            stderr_truncated=err.truncated,
        )


def _start_init(
    job: Job,
    connection: socket.socket,
    group: Group | None,
    interpreter: Interpreter,
    drop_to_uid: int | None,
    weak_box: str | None,
) -> _Run:
    stdin = _sealed_file(job.stdin.encode())
    stdout, stdout_end = os.pipe2(os.O_CLOEXEC)
    stderr, stderr_end = os.pipe2(os.O_CLOEXEC)
    status, status_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    entries = group.entries() if group else ()
    if weak_box is None:
        kernel.unshare(Namespace.PID)  # for the child to come
    else:
        kernel.become_subreaper()
    pid = os.fork()
    if pid == 0:
        connection.close()
        run_as_init(Start(job, interpreter, stdin, stdout_end, stderr_end, status_end, entries, drop_to_uid, weak_box))
    for descriptor in (stdin, stdout_end, stderr_end, *entries):
        os.close(descriptor)
    status_end.close()
    return _Run(pid, status, stdout, stderr, job.output_bytes, is_weak=weak_box is not None)


def _sealed_file(data: bytes) -> int:
    """An unnamed file in memory, open for reading at its start, that nobody can change any more."""
    writable = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(writable, view) :]
    fcntl.fcntl(
        writable, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    )
    readable = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
    os.close(writable)
    return readable


def _follow(run: _Run, job: Job, connection: socket.socket, group: Group | None) -> Outcome:
    """Watch until the run ends or must end. Raises Cancelled, RunLost."""
    _await_start(run, connection)
    started = time.monotonic()
    deadline = started + job.wall_seconds
    most_output = max(OUTPUT_KILL_FLOOR_BYTES, OUTPUT_KILL_FACTOR * job.output_bytes)
    report = Report(None, None, None, 0.0, 0)
    ending: Ending | None = None
    while ending is None:
        ready = _wait(run, connection, deadline)
        for descriptor in run.open_outputs() & ready:
            run.read(descriptor)
        if run.status.fileno() in ready:
            try:
                report = _read_report(run.status)
                ending = report.ending
            except RunLost:
                if not _is_out_of_memory(group):
                    raise
            # the kernel ends one process; with it the whole run has outgrown its memory
            ending = Ending.MEMORY if _is_out_of_memory(group) else ending
        if ending is None and any(capture.num_bytes > most_output for capture in run.captures.values()):
            ending = Ending.OUTPUT
        elif ending is None and time.monotonic() >= deadline:
            ending = Ending.WALL
    return Outcome(
        Ending.CPU if report.signal == signal.SIGXCPU else ending,
        exit_code=report.exit_code,
        signal=None if report.signal == signal.SIGXCPU else report.signal,
        wall_seconds=time.monotonic() - started,
        cpu_seconds=report.cpu_seconds,
        peak_memory_bytes=report.peak_memory_bytes,
    )


def _await_start(run: _Run, connection: socket.socket) -> None:
    deadline = time.monotonic() + SETUP_SECONDS
    while True:
        ready = _wait(run, connection, deadline)
        if run.status.fileno() not in ready:
            if time.monotonic() >= deadline:
                raise RunLost(f"the run was not set up within {SETUP_SECONDS:g} s")
            for descriptor in run.open_outputs() & ready:
                run.read(descriptor)
            continue
        message, descriptors, _, _ = socket.recv_fds(run.status, 8192, 1)
        if message == b"box":
            (run.box,) = descriptors
        elif message == b"started":
            return
        else:
            raise RunLost(
                message.decode(errors="replace").removeprefix("fault:") or "PID 1 of the run ended during set-up"
            )


def _wait(run: _Run, connection: socket.socket, deadline: float) -> set[int]:
    """Descriptors with something to read, at the latest when the deadline has come. Raises Cancelled."""
    poll = select.poll()
    for descriptor in (*run.open_outputs(), run.status.fileno(), connection.fileno()):
        poll.register(descriptor, select.POLLIN)
    ready = {descriptor for descriptor, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000 + 1)}
    if connection.fileno() in ready:  # the server has nothing more to say: it closed
        raise Cancelled
    return ready


def _read_report(status: socket.socket) -> Report:
    """The next report. Raises RunLost when PID 1 has none to give."""
    message = status.recv(8192)
    if not message or message.startswith(b"fault:"):
        raise RunLost(message.decode(errors="replace").removeprefix("fault:") or "PID 1 of the run was killed")
    fields = json.loads(message)
    return Report(**{**fields, "ending": None if fields["ending"] is None else Ending(fields["ending"])})


def _is_out_of_memory(group: Group | None) -> bool:
    return group is not None and group.num_oom_kills() > 0


def _with_memory(outcome: Outcome, group: Group | None) -> Outcome:
    """Add what the kernel counted, and tell a run that outgrew its memory from one that ended some other way."""
    out_of_memory = outcome.ending == Ending.EXITED and outcome.exit_code == 1 and _ends_in_memory_error(outcome.stderr)
    if group:
        peak_bytes = max(outcome.peak_memory_bytes, group.peak_bytes())
        outcome = replace(outcome, peak_memory_bytes=peak_bytes)
        out_of_memory = out_of_memory or _is_out_of_memory(group)
    return replace(outcome, ending=Ending.MEMORY, exit_code=None, signal=None, fault="") if out_of_memory else outcome


def _ends_in_memory_error(stderr: bytes) -> bool:
    lines = stderr.rstrip().splitlines()
    return bool(lines) and lines[-1].startswith(b"MemoryError")


def _collect(box: int, paths: tuple[str, ...]) -> tuple[dict[str, bytes], dict[str, str]]:
    """Read regular files below the run's folder; every process that could change them is dead."""
    files: dict[str, bytes] = {}
    missing: dict[str, str] = {}
    room = COLLECT_BYTES
    for path in paths:
        try:
            descriptor = kernel.open_beneath(box, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            missing[path] = _MISSING.get(error.errno or 0, "unreadable")
            continue
        try:
            details = os.fstat(descriptor)
            if not stat.S_ISREG(details.st_mode):
                missing[path] = "not_a_file"
            elif details.st_size > room:
                missing[path] = "too_large"
            else:
                files[path] = _read_whole(descriptor, details.st_size)
                room -= len(files[path])
        finally:
            os.close(descriptor)
    return files, missing


def _read_whole(descriptor: int, num_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < num_bytes and (piece := os.read(descriptor, num_bytes - len(data))):
        data += piece
    return bytes(data)


_MISSING = {
    errno.ENOENT: "not_found",
    errno.ENOTDIR: "not_found",
    errno.ELOOP: "not_a_file",
    errno.ENXIO: "not_a_file",
    errno.EXDEV: "not_a_file",
}
