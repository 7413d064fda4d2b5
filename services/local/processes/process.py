"""A child process under guard: it and everything it starts end with us, however we end.

Refuses to share a terminal with its children: each runs in a session of its own, its output in a rotating file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from services.local.processes import guard
from services.runtime.errors import PreceptorError

LOG_MAX_BYTES = 10_000_000
LOG_BACKUPS = 3
ORPHAN_SECONDS = 3.0  # every server here is crash-safe, so after `kill -9` of ours a quick end beats a tidy one
TERMINATE: tuple[tuple[int, float], ...] = ((signal.SIGTERM, 10.0),)


class LocalError(PreceptorError):
    """Something on this machine keeps the local stack from running; the message says what to do."""

    title = "The local stack cannot run"


class ProcessFailed(LocalError):
    """A process could not be started, did not become ready, or ended when it should not have."""

    title = "A process failed"


def tail(path: Path, num_lines: int = 15) -> str:
    """The last lines of a log, indented for a message; a note when the log is empty."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 16_384))
            lines = log.read().decode(errors="replace").splitlines()[-num_lines:]
    except FileNotFoundError:
        lines = []
    return "\n".join(f"    {line}" for line in lines) or "    (the log is empty)"


def describe_status(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


class GuardedProcess:
    """One running command: `pid` is the command's own, `poll` and `stop` go through its guard."""

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str],
        cwd: Path,
        stop: Sequence[tuple[int, float]] = TERMINATE,
        user: tuple[int, int] | None = None,
        keep_fds: Sequence[int] = (),
    ) -> None:
        """Start it and wait until it is executing. Raises ProcessFailed when it cannot be executed."""
        self.log = log
        self._stop_seconds = sum(seconds for _, seconds in stop)
        log.parent.mkdir(parents=True, exist_ok=True)
        order = guard.LaunchOrder(
            argv=[str(part) for part in argv], env=dict(env), cwd=str(cwd), user=user, keep_fds=list(keep_fds),
            stop=list(stop), orphan_seconds=ORPHAN_SECONDS, log=str(log), log_max_bytes=LOG_MAX_BYTES,
            log_backups=LOG_BACKUPS,
        )  # fmt: skip
        # -I -S: neither the project nor the environment can change the guard
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, start_new_session=True, pass_fds=keep_fds, cwd="/",
            env={"PATH": os.defpath},
        )  # fmt: skip
        assert self._guard.stdin is not None
        assert self._guard.stdout is not None
        try:
            self._guard.stdin.write(json.dumps(order._asdict()).encode() + b"\n")
            self._guard.stdin.flush()  # and stays open: closing it is the order to stop
            word, _, rest = self._guard.stdout.readline().decode(errors="replace").strip().partition(" ")
        except BrokenPipeError:
            word, rest = "failed", "its guard ended"
        finally:
            self._guard.stdout.close()
        if word != "started":
            self._guard.stdin.close()
            self._guard.wait()
            raise ProcessFailed(f"{argv[0]} could not be started: {rest or 'its guard ended'}")
        self.pid = int(rest)

    def poll(self) -> int | None:
        """None while it runs, else how it ended: the exit code, or minus the signal's number."""
        status = self._guard.poll()
        if status is not None:
            self._clean_up()
        return status

    def wait(self, seconds: float) -> int | None:
        """Like `poll`, after at most so many seconds."""
        try:
            self._guard.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        return self.poll()

    def ask_to_stop(self) -> None:
        """Begin the stopping steps and return at once."""
        self._guard.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL the command and everything below it; returns when they are gone."""
        self._guard.send_signal(signal.SIGQUIT)
        if self.wait(10.0) is None:
            self._guard.kill()
            self._guard.wait()
            self._clean_up()

    def stop(self) -> int:
        """Go through the stopping steps to the end; returns how it ended."""
        deadline = time.monotonic() + self._stop_seconds + 5.0
        self.ask_to_stop()
        while (status := self.wait(0.2)) is None:
            if time.monotonic() > deadline:
                self.kill()
        return status

    def _clean_up(self) -> None:
        """Close our end; if the guard itself was killed, end its processes."""
        assert self._guard.stdin is not None
        if self._guard.stdin.closed:
            return
        self._guard.stdin.close()
        guard.send(self.pid, signal.SIGKILL, group=True)


class Runnable:
    """Has one guarded process, or none yet: how it is watched and ended."""

    def __init__(self) -> None:
        self._process: GuardedProcess | None = None

    @property
    def pid(self) -> int | None:
        """The command's process id; None before the first start."""
        return None if self._process is None else self._process.pid

    def poll(self) -> int | None:
        """None while it runs, else how it ended."""
        return None if self._process is None else self._process.poll()

    def ask_to_stop(self) -> None:
        """Begin to stop and return at once."""
        if self._process is not None:
            self._process.ask_to_stop()

    def stop(self) -> None:
        """Stop it, cleanly if possible; a no-op when it does not run."""
        if self._process is not None:
            self._process.stop()

    def kill(self) -> None:
        """Stop it at once."""
        if self._process is not None:
            self._process.kill()
