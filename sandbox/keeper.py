"""The keeper of a slot: starts its zygote, hands it one run after another, collects what comes out, enforces wall time
and output, and says what happened.

A process of its own outside the slot, forked by the spawner. It believes nothing the code says: exit codes come from
the zygote, deadlines and caps are kept here, and files are read after every process of the run is dead. When anything
about its zygote is not as it should be it ends, and the server gets another. Only the standard library; loads under
`python -S`.
"""

import contextlib
import fcntl
import os
import select
import signal
import socket
import time
from dataclasses import dataclass, field, replace

from sandbox import isolation, kernel, weak, wire, zygote
from sandbox.cgroups import Group, Place
from sandbox.collecting import collect
from sandbox.isolation import ENVIRONMENT, PACKAGES, SLOT_UID_BASE
from sandbox.root import Interpreter
from sandbox.wire import CANCEL, Ending, Flavour, Hello, Job, Order, Outcome, Report, Terms, Wish, pack

RECEIVE_SECONDS = 20.0
SETUP_SECONDS = 20.0
"""For the fork and the mounts, on a machine under load. Not part of the code's time."""
START_SECONDS = 30.0
DEATH_SECONDS = zygote.DEATH_SECONDS
OUTPUT_KILL_FACTOR = 16
"""A run that writes this many times what is kept of its output is stopped."""
OUTPUT_KILL_FLOOR_BYTES = 1 << 20
_PIPE_BYTES = 1 << 16
_NO_REPORT = Report(Ending.EXITED, None, None, 0.0, 0)


class ServerGone(Exception):
    """Nobody is left to answer."""


class RunLost(Exception):
    """The run could not be isolated or started, or its zygote ended without a report."""


@dataclass(frozen=True)
class Setup:
    """What the spawner found out once for all slots."""

    interpreter: Interpreter
    program: dict[str, bytes]
    """The zygote's modules, by path below its folder."""
    packages: tuple[str, ...]
    is_root: bool
    place: Place | None
    weak_folder: str | None
    """Where runs get their folders at the level `weak`; None at the others."""

    @property
    def readable(self) -> tuple[str, ...]:
        """What Landlock lets runs read at the level `weak`."""
        if self.weak_folder is None:
            return ()
        return (*isolation.SYSTEM, *isolation.SYSTEM_FILES, *self.interpreter.paths(), *self.packages)


def keep(connection: socket.socket, setup: Setup, wish: Wish) -> None:
    """Serve the server at the other end of the connection until it closes, or until the zygote is lost."""
    kernel.become_subreaper()
    with contextlib.ExitStack() as stack:
        group = None
        if setup.place is not None:
            group = setup.place.make_group(f"slot-{os.getpid()}")
            stack.callback(group.remove)
        try:
            slot = stack.enter_context(_start_zygote(setup, wish, group))
        except (OSError, RunLost) as error:
            connection.sendall(pack(Hello(None, f"{error}")))
            return
        connection.sendall(pack(Hello("", "")))
        with contextlib.suppress(ServerGone, EOFError, BrokenPipeError, ConnectionResetError, TimeoutError):
            while slot.is_alive:
                connection.settimeout(None)
                connection.recv(1, socket.MSG_PEEK)
                connection.settimeout(RECEIVE_SECONDS)
                job = wire.receive(connection, wire.unpack_job)
                if job is not None:
                    connection.sendall(pack(slot.run(job, connection)))


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


class _Slot:
    """A zygote and what belongs to it."""

    def __init__(
        self, pid: int, control: socket.socket, group: Group | None, setup: Setup, owner: int | None, folder: str
    ) -> None:
        self._folder = folder
        self.control = control
        self.group = group
        self.is_alive = True
        self._setup = setup
        self._owner = owner
        self._pid = pid

    def __enter__(self) -> "_Slot":
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the zygote and with it every process of the slot."""
        self.is_alive = False
        self.control.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)
        if self._setup.weak_folder is not None:
            weak.kill_descendants(DEATH_SECONDS)
            if os.path.exists(self._folder):
                weak.remove_box(self._folder)

    def run(self, job: Job, connection: socket.socket) -> Outcome:
        """Run one job. A fault ends the slot. Raises ServerGone."""
        # should this process ever hang, it dies and the zygote with it; the server then asks for another
        signal.alarm(int(SETUP_SECONDS + job.wall_seconds + 3 * DEATH_SECONDS))
        try:
            return self._run(job, connection)
        except RunLost as error:
            outcome = Outcome(Ending.FAULT, fault=str(error))
        except OSError as error:
            outcome = Outcome(Ending.FAULT, fault=f"{type(error).__name__}: {error}")
        finally:
            signal.alarm(0)
        self.is_alive = False
        return outcome

    def _run(self, job: Job, connection: socket.socket) -> Outcome:
        with contextlib.ExitStack() as stack:
            weak_box = ""
            if self._setup.weak_folder is not None:
                weak_box = weak.make_box(self._setup.weak_folder, self._owner)
                stack.callback(weak.remove_box, weak_box)
            if self.group is not None:
                self.group.begin(job.memory_bytes, job.processes)
            run = stack.enter_context(_Run(job, self.control, weak_box))
            try:
                outcome = run.follow(connection, self.group)
            except (RunLost, ServerGone):
                self.__exit__()
                if not (self.group and self.group.has_overflowed()):
                    raise
                # all memory gone, and the zygote with it: that is the run's doing
                outcome = Outcome(Ending.MEMORY, wall_seconds=run.wall_seconds)
            run.drain()
            outcome = _with_memory(run.add_output(outcome), self.group)
            files, missing = collect(run.box, job.collect)
        return replace(outcome, files=files, files_missing=missing)


class _Run:
    """The open ends of one run: the pipes of its output, its folder."""

    def __init__(self, job: Job, control: socket.socket, weak_box: str) -> None:
        self.box = -1
        self.wall_seconds = 0.0
        self._job = job
        self._control = control
        self._has_started = False
        payload = _sealed_file(wire.pack_payload({**job.files, job.main_file: job.code}))
        stdin = _sealed_file(job.stdin) if job.stdin else os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._stdout, stdout_end = os.pipe2(os.O_CLOEXEC)
        self._stderr, stderr_end = os.pipe2(os.O_CLOEXEC)
        self._captures = {self._stdout: _Capture(job.output_bytes), self._stderr: _Capture(job.output_bytes)}
        self._open = {self._stdout, self._stderr}
        given = (payload, stdin, stdout_end, stderr_end)
        order = Order(
            job.argv,
            job.main_file,
            job.cpu_seconds,
            job.memory_bytes,
            job.processes,
            job.bounds_addresses,
            wants_box=bool(job.collect),
            weak_box=weak_box,
        )
        try:
            socket.send_fds(control, [wire.pack_packet(order)], given)
        finally:
            for descriptor in given:
                os.close(descriptor)

    def __enter__(self) -> "_Run":
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in (self._stdout, self._stderr, self.box):
            if descriptor >= 0:
                os.close(descriptor)

    def follow(self, connection: socket.socket, group: Group | None) -> Outcome:
        """Watch until the run has ended, and end it when it must. Raises RunLost, ServerGone."""
        started = time.monotonic()
        deadline = started + SETUP_SECONDS
        most_output = max(OUTPUT_KILL_FLOOR_BYTES, OUTPUT_KILL_FACTOR * self._job.output_bytes)
        why: Ending | None = None
        report: Report | None = None
        while report is None:
            ready = self._wait(connection, deadline)
            for descriptor in self._open & ready:
                self._read(descriptor)
            if self._control.fileno() in ready:
                had_started = self._has_started
                report = self._hear()
                if self._has_started and not had_started:
                    started = time.monotonic()
                    deadline = started + self._job.wall_seconds
                if report is not None:
                    break
            must_end = None
            if connection.fileno() in ready:
                _expect_cancel(connection)
                must_end = Ending.CANCELLED
            elif any(capture.num_bytes > most_output for capture in self._captures.values()):
                must_end = Ending.OUTPUT
            elif time.monotonic() >= deadline:
                if why is not None or not self._has_started:
                    raise RunLost("the run was not set up in time" if why is None else "the run could not be ended")
                must_end = Ending.WALL
            elif group is not None and group.has_overflowed():
                must_end = Ending.MEMORY  # the kernel ended one process; with it the whole run has outgrown its memory
            if must_end is not None and why is None:
                why = must_end
                self._control.send(zygote.KILL)
                deadline = time.monotonic() + DEATH_SECONDS
        self.wall_seconds = time.monotonic() - started
        return self._outcome(report, why)

    def _outcome(self, report: Report, why: Ending | None) -> Outcome:
        ending = why or report.ending
        if report.signal == signal.SIGXCPU and why is None:
            ending = Ending.CPU
        return Outcome(
            ending,
            exit_code=report.exit_code if ending == Ending.EXITED else None,
            signal=report.signal if ending == Ending.SIGNALLED else None,
            wall_seconds=self.wall_seconds,
            cpu_seconds=report.cpu_seconds,
            peak_memory_bytes=report.peak_memory_bytes,
        )

    def _wait(self, connection: socket.socket, deadline: float) -> set[int]:
        """Descriptors with something to read, at the latest after a tick or when the deadline has come."""
        poll = select.poll()
        for descriptor in (*self._open, self._control.fileno(), connection.fileno()):
            poll.register(descriptor, select.POLLIN)
        seconds = min(zygote.TICK_SECONDS, max(0.0, deadline - time.monotonic()))
        return {descriptor for descriptor, _ in poll.poll(seconds * 1000 + 1)}

    def _hear(self) -> Report | None:
        """What the zygote, or before it its fork, has to say. Raises RunLost."""
        message, descriptors, _, _ = socket.recv_fds(self._control, wire.MAX_PACKET_BYTES, 1)
        if message == b"box":
            (self.box,) = descriptors
        elif message == b"started":
            self._has_started = True
        elif message.startswith(b"fault:"):
            raise RunLost(message.decode(errors="replace").removeprefix("fault:"))
        elif not message:
            raise RunLost("the zygote ended")
        else:
            report = wire.unpack_report(message)
            if not self._has_started and report.ending != Ending.CANCELLED:
                raise RunLost(f"the run ended during set-up: {report}")
            return report
        return None

    def _read(self, descriptor: int) -> None:
        data = os.read(descriptor, _PIPE_BYTES)
        if data:
            self._captures[descriptor].take(data)
        else:
            self._open.discard(descriptor)

    def drain(self) -> None:
        """Take what the dead left in the pipes."""
        for descriptor in tuple(self._open):
            os.set_blocking(descriptor, False)
            with contextlib.suppress(BlockingIOError):
                while descriptor in self._open:
                    self._read(descriptor)

    def add_output(self, outcome: Outcome) -> Outcome:
        out, err = self._captures[self._stdout], self._captures[self._stderr]
        return replace(
            outcome,
            stdout=bytes(out.kept),
            stdout_truncated=out.truncated,
            stderr=bytes(err.kept),
            stderr_truncated=err.truncated,
        )


def _expect_cancel(connection: socket.socket) -> None:
    """Take a CANCEL off the connection. Raises ServerGone when it was closed instead."""
    if connection.recv(len(CANCEL), socket.MSG_WAITALL) != CANCEL:
        raise ServerGone


def _sealed_file(data: bytes) -> int:
    """An unnamed file in memory, at its start, that nobody can change any more."""
    descriptor = os.memfd_create("run", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _with_memory(outcome: Outcome, group: Group | None) -> Outcome:
    """Add what the kernel counted, and tell a run that outgrew its memory from one that ended some other way."""
    out_of_memory = outcome.ending == Ending.EXITED and outcome.exit_code == 1 and _ends_in_memory_error(outcome.stderr)
    if group:
        outcome = replace(outcome, peak_memory_bytes=max(outcome.peak_memory_bytes, group.peak_bytes()))
        out_of_memory = out_of_memory or group.has_overflowed()
    if not out_of_memory or outcome.ending == Ending.CANCELLED:
        return outcome
    return replace(outcome, ending=Ending.MEMORY, exit_code=None, signal=None)


def _ends_in_memory_error(stderr: bytes) -> bool:
    lines = stderr.rstrip().splitlines()
    return bool(lines) and lines[-1].startswith(b"MemoryError")


def _start_zygote(setup: Setup, wish: Wish, group: Group | None) -> _Slot:
    """Fork a process into a new pid namespace and let it become the slot's zygote. Raises OSError, RunLost."""
    owner = SLOT_UID_BASE + wish.slot if setup.is_root else None
    folder = weak.make_box(setup.weak_folder, owner) if setup.weak_folder is not None else ""
    control, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    terms = Terms(wish.flavour, group is not None, setup.readable)
    if setup.weak_folder is None:
        kernel.unshare(kernel.Namespace.PID)  # for the child to come
    pid = os.fork()
    if pid == 0:
        control.close()
        _become_zygote(setup, wish, group, owner, folder, far_end)
    far_end.close()
    slot = _Slot(pid, control, group, setup, owner, folder)
    try:
        control.settimeout(START_SECONDS)
        control.send(wire.pack_packet(terms))
        said = control.recv(wire.MAX_PACKET_BYTES)
        if said != b"ready":
            raise RunLost(said.decode(errors="replace") or "the zygote ended at its start")
    except (OSError, RunLost):
        slot.__exit__()
        raise
    if group is not None:
        group.note_overhead()
    return slot


def _become_zygote(
    setup: Setup, wish: Wish, group: Group | None, owner: int | None, weak_folder: str, control: socket.socket
) -> None:
    """Be the zygote of the slot, or say why not and end."""
    try:
        if group is not None:
            group.enter()
        environment = dict(ENVIRONMENT)
        if setup.weak_folder is None:
            proc = isolation.enter_slot(owner, setup.program)
        else:
            proc = weak.enter_slot(weak_folder, owner, setup.program)
        if wish.flavour == Flavour.NUMPY:
            first = os.path.dirname(setup.packages[0]) if setup.weak_folder else PACKAGES
            environment["PYTHONPATH"] = first
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for number in range(2):  # its errors go to the server's log
            os.dup2(null, number)
        # neither may be overwritten before it is in its place
        control_copy, proc_copy = (fcntl.fcntl(number, fcntl.F_DUPFD, 10) for number in (control.fileno(), proc))
        os.dup2(control_copy, zygote.CONTROL)
        os.dup2(proc_copy, zygote.PROC)
        kernel.close_from(5)
        executable = setup.interpreter.executable
        os.execve(executable, [executable, "main.py"], environment)  # noqa: S606
    except OSError as error:
        with contextlib.suppress(OSError):
            control.send(f"{error.filename or ''} {error.strerror or error}".strip().encode()[:4000])
    finally:
        os._exit(127)
