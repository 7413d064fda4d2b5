"""PID 1 of a run: starts the code, reaps what it leaves behind, measures all of it, and reports how its first process
ended.

It lives in the run's pid namespace, so when it ends the kernel kills every process of the run, however that process
hid. Nothing the code does reaches it: it cannot be traced or signalled from inside, and it shares no open file with
the code. Only the standard library; loads under `python -S`.
"""

import json
import os
import resource
import signal
import socket
import time
from dataclasses import asdict, dataclass
from typing import NoReturn

from sandbox import isolation, kernel, weak
from sandbox.isolation import Interpreter
from sandbox.wire import Ending, Job

TICK_SECONDS = 0.05
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Report:
    """What PID 1 says after "started": at every tick with no ending, at last with one."""

    ending: Ending | None
    exit_code: int | None
    signal: int | None
    cpu_seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Start:
    """All that PID 1 needs to know; open files by number."""

    job: Job
    interpreter: Interpreter
    stdin: int
    stdout: int
    stderr: int
    status: socket.socket
    cgroup_entries: tuple[int, ...]
    """Empty without a cgroup."""
    drop_to_uid: int | None
    """The slot's user when the server is root."""
    weak_box: str | None
    """The run's folder at the level `weak`, where this process is not PID 1 of anything."""


def run_as_init(start: Start) -> NoReturn:
    """Be PID 1: sends "box" with the open folder, "started" when the code runs, then Reports, or "fault:" and why."""
    status = start.status
    try:
        for entry in start.cgroup_entries:
            os.write(entry, b"0")
        if start.weak_box is None:
            proc = isolation.enter_box(start.job, start.drop_to_uid)
        else:
            proc = weak.enter(start.job, start.weak_box, start.drop_to_uid)
        box = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        socket.send_fds(status, [b"box"], [box])
        os.close(box)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        # a signal left to its default does not reach PID 1 from inside; Python's handler would
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        main_pid = _start_code(start, proc)
        for stream in (start.stdin, start.stdout, start.stderr):
            os.close(stream)
        status.send(b"started")
        _watch(start, main_pid, proc)
    except (OSError, RuntimeError, ValueError) as error:
        status.send(f"fault:{type(error).__name__}: {error}".encode()[:4000])
    finally:
        os._exit(0)


def _start_code(start: Start, proc: int) -> int:
    """Start the interpreter on the code; returns when it has begun. Raises RuntimeError when it did not."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        problem = "unexpected"
        try:
            kernel.set_dumpable(True)  # or our own entry in /proc would be closed to us; nobody else lives here yet
            isolation.write_at(proc, "self/oom_score_adj", "1000")
            for descriptor, number in ((start.stdin, 0), (start.stdout, 1), (start.stderr, 2)):
                os.dup2(descriptor, number)
            kernel.close_on_exec_from(3)
            os.setsid()
            signal.pthread_sigmask(signal.SIG_SETMASK, set())
            for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(ignored_by_python, signal.SIG_DFL)
            environment, num_others = isolation.ENVIRONMENT, 1
            if start.weak_box is not None:
                num_others = weak.count_processes_of_user() - 1
                environment = weak.fence(start.weak_box, start.interpreter)
            isolation.limit_resources(start.job, has_cgroup=bool(start.cgroup_entries), num_others=num_others)
            executable = start.interpreter.executable
            os.execve(executable, [executable, isolation.MAIN_FILE], environment)  # noqa: S606
        except (OSError, ValueError) as error:
            problem = str(error)
        finally:  # never reached by a started interpreter
            os.write(write_end, problem.encode()[:1000])
            os._exit(127)
    os.close(write_end)
    said = os.read(read_end, 1000)  # the exec closes the pipe
    os.close(read_end)
    if said:
        raise RuntimeError(f"the interpreter did not start: {said.decode(errors='replace')}")
    return pid


def _watch(start: Start, main_pid: int, proc: int) -> None:
    """Report until the run's first process has ended, or all of them together have outgrown a limit."""
    job = start.job
    cpu_seconds, peak_bytes = 0.0, 0
    ending: Ending | None = None
    next_tick = time.monotonic() + TICK_SECONDS
    while ending is None:
        signal.sigtimedwait({signal.SIGCHLD}, max(0.0, next_tick - time.monotonic()))
        wait_status = _reap(main_pid)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        reaped_seconds = usage.ru_utime + usage.ru_stime
        cpu_seconds = max(cpu_seconds, reaped_seconds)
        peak_bytes = max(peak_bytes, usage.ru_maxrss * 1024)
        code = None
        if wait_status is not None:
            code = os.waitstatus_to_exitcode(wait_status)
            ending = Ending.EXITED if code >= 0 else Ending.SIGNALLED
        elif time.monotonic() >= next_tick:
            next_tick = time.monotonic() + TICK_SECONDS
            if start.weak_box is None:
                pids = [name for name in os.listdir(proc) if name.isdecimal() and name != "1"]
            else:
                pids = weak.descendants(proc, os.getpid())
            cpu_seconds = max(cpu_seconds, reaped_seconds + sum(_cpu_seconds(proc, pid) for pid in pids))
            if not start.cgroup_entries:
                resident_bytes = _resident_bytes(proc, pids, job.memory_bytes)
                peak_bytes = max(peak_bytes, resident_bytes)
                if resident_bytes > job.memory_bytes:
                    ending = Ending.MEMORY
            if cpu_seconds > job.cpu_seconds:
                ending = Ending.CPU
        else:
            continue
        exit_code = code if ending == Ending.EXITED else None
        number = -code if code is not None and ending == Ending.SIGNALLED else None
        start.status.send(json.dumps(asdict(Report(ending, exit_code, number, cpu_seconds, peak_bytes))).encode())


def _reap(main_pid: int) -> int | None:
    """Bury the dead; the wait status of the run's first process if it is among them."""
    status = None
    try:
        while True:
            pid, wait_status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return status
            if pid == main_pid:
                status = wait_status
    except ChildProcessError:
        return status


def _read(proc: int, path: str) -> bytes:
    """A file of /proc, or nothing when its process has just ended or hides it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    except OSError:
        return b""
    try:
        return os.read(descriptor, 8192)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _cpu_seconds(proc: int, pid: str) -> float:
    """Used by a process and the children it has waited for. The program's name, in brackets, may hold anything."""
    fields = _read(proc, f"{pid}/stat").rpartition(b")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS_PER_SECOND if len(fields) > 15 else 0.0


def _resident_bytes(proc: int, pids: list[str], enough_bytes: int) -> int:
    """Memory of these processes that no file backs. Above `enough_bytes` it looks closer: pages that several processes
    share count once."""
    total = sum(_kilobytes(proc, f"{pid}/status", b"RssAnon:", b"RssShmem:") for pid in pids) * 1024
    if total <= enough_bytes or len(pids) == 1:
        return total
    shares = 0
    for pid in pids:
        share = _kilobytes(proc, f"{pid}/smaps_rollup", b"Pss_Anon:", b"Pss_Shmem:")
        # a process that hides itself shows no share, and is counted whole
        shares += share or _kilobytes(proc, f"{pid}/status", b"RssAnon:", b"RssShmem:")
    return shares * 1024


def _kilobytes(proc: int, path: str, *names: bytes) -> int:
    return sum(int(line.split()[1]) for line in _read(proc, path).splitlines() if line.startswith(names))
