"""The zygote of a slot: a warm interpreter that forks one run after another, measures each and kills whatever remains
of it.

It is PID 1 of the slot's pid namespace, so when it ends the kernel kills every process there; and it is a plain
`python main.py`, so a run that is its fork finds the interpreter as it would be after a start of its own. It never
reads a run's input: that arrives as open files which only the fork touches. The code cannot reach the zygote: it
cannot be traced, signalled or opened from inside, and it shares no open file with the code.

Only the standard library. All of `sandbox/inside` lies beside it in /box, not on any path of the host.
"""

import contextlib
import functools
import gc
import importlib
import os
import select
import signal
import socket
import time
from typing import Final

from sandbox.inside import child, isolation, kernel, weak
from sandbox.inside.memory import Ledger
from sandbox.inside.wire import (
    MAX_PACKET_BYTES,
    Ending,
    Flavour,
    ForkOrder,
    Report,
    Terms,
    pack_packet,
    unpack_order,
    unpack_terms,
)

CONTROL: Final = 3
"""The socket to the keeper."""
PROC: Final = 4
"""The slot's /proc, open."""
TICK_SECONDS: Final = 0.05
_CLOSE_TICK_SECONDS: Final = 0.01
"""Interval between two readings of processes whose time is not inherited by a parent."""
DEATH_SECONDS: Final = 10.0
KILL: Final = b"kill"
_CPU_CLOCK_OF_PROCESS: Final = 2
"""As clock_getcpuclockid(3) makes a clock of a process's number."""
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_WARM_ALWAYS = """
abc ast bisect collections contextlib copy dataclasses datetime enum functools heapq io itertools json linecache math
operator random re string threading traceback types typing
"""
_WARM = {Flavour.LEAN: "", Flavour.NUMPY: "numpy numpy.linalg numpy.random"}


def main() -> None:
    """Fork runs as the keeper orders until it closes the socket."""
    control = socket.socket(fileno=CONTROL)
    kernel.set_dumpable(False)  # runs have the same user: they must not trace this process, nor open its files
    # PID 1 gets no signal that it does not handle; Python handles this one
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.set_inheritable(CONTROL, False)
    os.set_inheritable(PROC, False)
    terms = unpack_terms(control.recv(MAX_PACKET_BYTES))
    kernel.die_with_parent(signal.SIGKILL)
    if terms.readable:
        kernel.become_subreaper()
    warm(terms)
    control.send(b"ready")
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, MAX_PACKET_BYTES, 8)
        if not message:
            return
        if message != KILL:  # the run it was meant for has just ended
            order = unpack_order(message)
            usage = begin(control, order, tuple(descriptors), terms)
            control.send(pack_packet(finish(control, usage, order, terms)))


def warm(terms: Terms) -> None:
    """Do the work common to all runs once: limits, imports, the filter."""
    isolation.limit_slot()
    for name in f"{_WARM_ALWAYS} {_WARM[terms.flavour]}".split():
        importlib.import_module(name)
    child.prepare(terms)
    gc.collect()
    gc.disable()
    gc.freeze()


def begin(control: socket.socket, order: ForkOrder, descriptors: tuple[int, ...], terms: Terms) -> "Usage":
    """Fork one run, which gets these open files; they are closed here."""
    pid = os.fork()
    if pid == 0:
        child.become_run(control, PROC, order, descriptors, terms)
    for descriptor in descriptors:
        os.close(descriptor)
    return Usage(pid)


def finish(control: socket.socket, usage: "Usage", order: ForkOrder, terms: Terms) -> Report:
    """Wait for the run's end, and leave no process of it."""
    try:
        ending = _watch(control, usage, order, terms)
    finally:
        _kill_all(usage, is_weak=bool(terms.readable))
    exit_code, signal_number = None, None
    if ending == Ending.EXITED:
        code = os.waitstatus_to_exitcode(usage.wait_status or 0)
        exit_code, signal_number = (code, None) if code >= 0 else (None, -code)
        ending = Ending.EXITED if code >= 0 else Ending.SIGNALLED
    return Report(ending, exit_code, signal_number, usage.cpu_seconds, usage.peak_bytes)


class Usage:
    """Resources used by the run's dead processes, and by the living ones at the last reading."""

    def __init__(self, main_pid: int) -> None:
        self.main_pid = main_pid
        self.wait_status: int | None = None
        self.reaped_seconds = 0.0
        self.cpu_seconds = 0.0
        self.peak_bytes = 0
        self.held_bytes = 0
        """The most that the living held whenever they were looked at; where no cgroup counts it."""
        self.hides_time = False
        """Whether processes have vanished without adding their time to a parent's."""
        self._last_seen: dict[str, float] = {}
        self._vanished_seconds = 0.0
        self.ledger = Ledger(PROC)

    def reap(self, options: int) -> None:
        """Reap dead children; without WNOHANG, wait until none are left."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, wait_status, usage = os.wait4(-1, options)
                if pid == 0:
                    return
                if pid == self.main_pid:
                    self.wait_status = wait_status
                self.reaped_seconds += usage.ru_utime + usage.ru_stime
                self.cpu_seconds = max(self.cpu_seconds, self.reaped_seconds)
                self.peak_bytes = max(self.peak_bytes, usage.ru_maxrss * 1024)

    def look(self, pids: list[str], *, memory_bytes: int, has_cgroup: bool) -> None:
        """Measure the living. In a cgroup the kernel counts their memory.

        Of processor time there are two accounts, neither of which counts anything twice: what the living have used,
        with what they inherited from children they have waited for; and what every process ever seen had used itself
        when it was last seen. The second knows of children whose parent lets the kernel bury them, but only as far as
        they were seen.
        """
        own = {pid: _own_seconds(pid) for pid in pids}
        for pid, seconds in self._last_seen.items():
            if own.get(pid, -1.0) < seconds:  # it has vanished, or another one has its number
                self._vanished_seconds += seconds
        self._last_seen = own
        living_seconds = sum(own.values())
        inherited = self.reaped_seconds + living_seconds + sum(map(_inherited_seconds, pids))
        seen = self._vanished_seconds + living_seconds
        self.hides_time = seen > inherited + TICK_SECONDS
        self.cpu_seconds = max(self.cpu_seconds, inherited, seen)
        if not has_cgroup:
            self.held_bytes = max(self.held_bytes, self.ledger.count(pids, memory_bytes))
            self.peak_bytes = max(self.peak_bytes, self.held_bytes)


def _watch(control: socket.socket, usage: Usage, order: ForkOrder, terms: Terms) -> Ending:
    """Wait until the run's first process has ended, or all of them together have outgrown a limit, or the keeper says
    so."""
    find_pids = functools.partial(weak.descendants, PROC, os.getpid()) if terms.readable else _others
    main_pidfd = os.pidfd_open(usage.main_pid)
    poll = select.poll()
    poll.register(main_pidfd, select.POLLIN)
    poll.register(CONTROL, select.POLLIN)
    try:
        while True:
            seconds = _CLOSE_TICK_SECONDS if usage.hides_time else TICK_SECONDS
            ready = {descriptor for descriptor, _ in poll.poll(seconds * 1000)}
            if main_pidfd in ready:
                return Ending.EXITED
            if CONTROL in ready:
                if not control.recv(MAX_PACKET_BYTES):
                    raise SystemExit  # the keeper is gone
                return Ending.CANCELLED
            usage.reap(os.WNOHANG)
            if usage.wait_status is not None:
                return Ending.EXITED
            if usage.ledger.has_too_many_locks(find_pids):
                return Ending.MEMORY
            if terms.has_cgroup and terms.has_processor_counter:
                continue  # the keeper reads the kernel's counters
            pids = find_pids()
            usage.look(pids, memory_bytes=order.memory_bytes, has_cgroup=terms.has_cgroup)
            if usage.held_bytes > order.memory_bytes:
                return Ending.MEMORY
            if usage.cpu_seconds > order.cpu_seconds:
                return Ending.CPU
    finally:
        os.close(main_pidfd)


def _kill_all(usage: Usage, *, is_weak: bool) -> None:
    """Kill every process of the run; when this returns they are dead and buried."""
    if is_weak:
        usage.reap(os.WNOHANG)
        weak.kill_descendants(DEATH_SECONDS)
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)  # everyone in the namespace but its PID 1; no fork escapes it
    usage.reap(0)


def _others() -> list[str]:
    return [name for name in os.listdir(PROC) if name.isdecimal() and name != "1"]


def _read(path: str) -> bytes:
    """A file of /proc; empty when its process has just ended or hides it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=PROC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, 8192)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _own_seconds(pid: str) -> float:
    """Used by a process itself, all its threads together; 0 when it has just vanished."""
    try:
        return time.clock_gettime(~int(pid) << 3 | _CPU_CLOCK_OF_PROCESS)
    except OSError:
        return 0.0


def _inherited_seconds(pid: str) -> float:
    """Used by the children that a process has waited for. The program's name, in brackets, may hold anything."""
    fields = _read(f"{pid}/stat").rpartition(b")")[2].split()
    return sum(map(int, fields[13:15])) / _TICKS_PER_SECOND if len(fields) > 15 else 0.0


if __name__ == "__main__":
    main()
