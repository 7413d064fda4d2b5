"""The guard: a small process between the supervisor and one child, so that no process outlives the supervisor.

Job: start one command in a session of its own, write its output to a rotating log file, and make sure that the
command *and everything it started* is gone when the guard is told to stop, when the command ends, or when the
supervisor disappears, `kill -9` included. The supervisor holds the write end of the guard's stdin; the kernel
closes it however the supervisor dies, and that end-of-file is the order to stop. (PR_SET_PDEATHSIG alone would
not do: it follows the parent's thread, is not inherited by grandchildren, and knows only one signal.)

On Linux the guard is a child subreaper: orphans of the command come to it, sessions of their own included, and
are killed too. Elsewhere only the command's process group is.

Not covered: `kill -9` of supervisor *and* guard at the same instant leaves the command's own children to notice
for themselves; the command itself still dies by PR_SET_PDEATHSIG.

Run as a script by `python -I -S`, so it uses the standard library only and none of our modules. It reports on
stdout, one line: `started PID`, or `failed REASON`. It ends as the command ended: same exit code, or same signal.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CHUNK_BYTES = 65536
DRAIN_SECONDS = 1.0  # how long the last output of a dead tree may take to arrive


class RotatingFile:
    """An append-only log file that is moved to NAME.1, NAME.2 … when it passes its size."""

    def __init__(self, path: str, max_bytes: int, num_backups: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._num_backups = num_backups
        self._file = self._open()

    def _open(self) -> BinaryIO:
        # 0600: a log may quote a prompt, a person's correction or a query
        return os.fdopen(os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "ab", 0)

    def write(self, data: bytes) -> None:
        """Append; a full disk or a removed folder loses log lines, never the process being logged."""
        try:
            if self._file.tell() + len(data) > self._max_bytes and self._file.tell() > 0:
                self._rotate()
            self._file.write(data)
        except OSError:
            pass

    def _rotate(self) -> None:
        for number in range(self._num_backups, 0, -1):
            source = self._path if number == 1 else f"{self._path}.{number - 1}"
            if os.path.exists(source):
                os.replace(source, f"{self._path}.{number}")
        full, self._file = self._file, self._open()
        full.close()


def prctl(option: int, value: int) -> None:
    """Set a process attribute on Linux; elsewhere do nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def descendants(root: int) -> list[int]:
    """Every living process below `root` by /proc, children before grandchildren; empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    try:
        entries = os.listdir("/proc")
    except OSError:
        return []
    for entry in entries:
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as stat:
                fields = stat.read().rpartition(b")")[2].split()
        except OSError:
            continue  # it ended while we were reading
        if fields[0] != b"Z":
            children.setdefault(int(fields[1]), []).append(int(entry))
    found: list[int] = []
    frontier = [root]
    while frontier:
        frontier = [child for parent in frontier for child in children.get(parent, [])]
        found += frontier
    return found


def send(pid: int, number: int, *, group: bool = False) -> None:
    """Send a signal to a process or its group; one that is gone already is no error."""
    try:
        if group:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


class LaunchOrder(NamedTuple):
    """The command and how to end it, as the supervisor sends it: one JSON line."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    user: tuple[int, int] | None  # uid and gid to drop to, or None to stay who we are
    keep_fds: list[int]  # open files the command inherits, e.g. the lock of its data folder
    stop: list[tuple[int, float]]  # (signal, seconds to wait after it), in order; SIGKILL follows the last
    orphan_seconds: float  # no step waits longer than this once the supervisor is gone
    log: str
    log_max_bytes: int
    log_backups: int


class Guard:
    """One command under guard, from start to the last of its descendants."""

    def __init__(self, order: LaunchOrder) -> None:
        self._order = order
        self._log = RotatingFile(order.log, order.log_max_bytes, order.log_backups)
        self._selector = selectors.DefaultSelector()
        self._deadline: float | None = None
        self._next_step = 0
        self._step_limit: float | None = None
        self._wakeup, wakeup_write = os.pipe()
        os.set_blocking(self._wakeup, False)
        os.set_blocking(wakeup_write, False)
        signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        order, parent = self._order, os.getpid()
        uid, gid = order.user or (None, None)

        def die_with_guard() -> None:
            # After setuid, which clears the setting. The guard has one thread, so thread and process are the same.
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

        return subprocess.Popen(
            order.argv, env=order.env, cwd=order.cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True, pass_fds=order.keep_fds, user=uid, group=gid,
            extra_groups=None if uid is None else [], preexec_fn=die_with_guard,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self) -> int:
        """Serve until the command and all below it are gone; returns the command's status as Popen tells it."""
        assert self._process.stdout is not None
        output = self._process.stdout.fileno()
        os.set_blocking(output, False)
        on_ready: dict[int, Callable[[], None]] = {
            0: self._on_stdin, output: lambda: self._pump(output), self._wakeup: self._on_signal
        }  # fmt: skip
        for descriptor in on_ready:
            self._selector.register(descriptor, selectors.EVENT_READ)
        while self._process.poll() is None:
            timeout = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            for key, _ in self._selector.select(timeout):
                on_ready[key.fd]()
            if self._deadline is not None and time.monotonic() >= self._deadline:
                self._escalate()
        self._kill_all()
        self._drain(output)
        return self._process.returncode

    def _on_stdin(self) -> None:
        if os.read(0, CHUNK_BYTES):
            return
        self._selector.unregister(0)
        self._step_limit = self._order.orphan_seconds
        self._stop()

    def _on_signal(self) -> None:
        for number in os.read(self._wakeup, 256):
            if number == signal.SIGTERM:
                self._stop()
            elif number == signal.SIGQUIT:
                self._kill_all()
            elif number == signal.SIGCHLD:
                self._reap_orphans()

    def _stop(self) -> None:
        """Begin the stopping steps; told again by end-of-file, only shorten them."""
        if self._deadline is None:
            self._escalate()
        elif self._step_limit is not None:
            self._deadline = min(self._deadline, time.monotonic() + self._step_limit)

    def _escalate(self) -> None:
        if self._next_step >= len(self._order.stop):
            self._kill_all()
            self._deadline = time.monotonic() + 1.0
            return
        number, seconds = self._order.stop[self._next_step]
        self._next_step += 1
        send(self.pid, number)
        limit = seconds if self._step_limit is None else min(seconds, self._step_limit)
        self._deadline = time.monotonic() + limit

    def _kill_all(self) -> None:
        """SIGKILL the command's group and every descendant, until none is left."""
        for _ in range(1000):  # a tree that forks faster than it is killed ends by its own limits, not by this loop
            send(self.pid, signal.SIGKILL, group=True)
            alive = descendants(os.getpid())
            if not alive:
                self._reap_orphans()
                return
            for pid in alive:
                send(pid, signal.SIGKILL)
            self._reap_orphans()
            time.sleep(0.002)

    def _reap_orphans(self) -> None:
        """Collect adopted processes that ended; the command's own status is left for Popen."""
        while sys.platform == "linux":  # elsewhere none are adopted
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None or (ended.si_pid == self.pid and self._process.poll() is None):
                return
            if ended.si_pid != self.pid:
                os.waitpid(ended.si_pid, 0)

    def _pump(self, output: int) -> None:
        try:
            data = os.read(output, CHUNK_BYTES)
        except BlockingIOError:
            return
        if data:
            self._log.write(data)
        else:
            self._selector.unregister(output)

    def _drain(self, output: int) -> None:
        os.set_blocking(output, False)
        deadline = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < deadline:
            try:
                data = os.read(output, CHUNK_BYTES)
            except BlockingIOError:
                return
            if not data:
                return
            self._log.write(data)


def main() -> None:
    """Read the order (one JSON line on stdin), start the command, report, and guard it to its end."""
    # Handlers, not SIG_IGN, which the command would inherit. SIGINT and SIGHUP are the supervisor's to interpret.
    for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGCHLD, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, CHUNK_BYTES)
        if not piece:
            return  # the supervisor died before it sent the command
        line += piece
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        guard = Guard(LaunchOrder(**json.loads(line)))
    except OSError as error:
        print(f"failed {error}", flush=True)
        sys.exit(127)
    print(f"started {guard.pid}", flush=True)
    os.close(1)
    status = guard.run()
    if status < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main()
