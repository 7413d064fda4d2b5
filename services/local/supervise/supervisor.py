"""The supervisor: starts the product's processes on one machine, watches them, and leaves none behind.

    with Supervisor(layout) as supervisor:
        supervisor.start(postgres, valkey)
        supervisor.start(api, worker)        # ProcessSpecs; their environment may use postgres.url
        supervisor.wait()

Processes started together must become ready together and are stopped together; groups are stopped in reverse order.
The block ends by an exception wherever the main thread is: `Interrupted` on Ctrl-C, SIGTERM or a closed terminal,
`ProcessFailed` when a process crashed that may not be restarted (again). Leaving the block stops everything; a second
Ctrl-C kills it. After `kill -9` of the supervisor the guards end everything by themselves (see guard.py).

While the data folder's disk is full, processes that end are started again, without limit and without spending
restarts, until there is room.

It refuses to run twice on one data folder, and to restart anything that has no restarts left: a crash that repeats
is a fault to be read in a log, not to be hidden.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Protocol, Self

import psutil

from services.local.layout import Layout, write_private
from services.local.processes.lock import FolderLock
from services.local.processes.process import GuardedProcess, LocalError, ProcessFailed, Runnable, describe_status, tail
from services.local.supervise.run_state import LOCK_WAIT_SECONDS, RunningProcess, RunState, Stage
from services.runtime import space

TICK_SECONDS = 0.1
HEALTH_SECONDS = 1.0  # a server that is up answers its health check sooner
HEALTH_EVERY_SECONDS = 15.0  # once it is ready; a health check that hangs delays the look at others by HEALTH_SECONDS
SICK_SECONDS = 45.0  # a machine that is busy lets a check or two fail
STABLE_SECONDS = 60.0  # a process that ran this long has its restarts back
BACKOFF_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0)
FULL_EVERY_SECONDS = 1.0  # between two looks at the disks
FULL_PAUSE_SECONDS = 5.0  # between two starts of one process while a disk is full
FULL_KEPT_SECONDS = 60.0  # a process that ends this soon after a full disk ended because of it
CRASH_NOTICE_SECONDS = 0.5  # how long a crash may take to be noticed once its effects are
CRASHED = signal.SIGUSR1  # wakes the main thread when the watching thread saw a crash
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """The supervisor was asked to stop: Ctrl-C, SIGTERM or a closed terminal."""


class Component(Protocol):
    """A component the supervisor can run: EmbeddedPostgres, EmbeddedValkey, or a process made from a ProcessSpec."""

    @property
    def name(self) -> str: ...
    @property
    def log(self) -> Path: ...
    @property
    def pid(self) -> int | None: ...
    def start(self) -> object: ...
    def is_ready(self) -> bool: ...
    def poll(self) -> int | None: ...
    def ask_to_stop(self) -> None: ...
    def stop(self) -> object: ...
    def kill(self) -> None: ...


@dataclass(frozen=True)
class ProcessSpec:
    """One process: its command and how it is expected to behave. Times in seconds."""

    name: str  # also its log file: logs/NAME.log
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)  # on top of the supervisor's own environment
    cwd: Path = field(default_factory=Path.cwd)
    is_ready: Callable[[], bool] | None = None  # e.g. `answers_http(url)`; None: ready as soon as it runs
    ready_seconds: float = 60.0
    stop_seconds: float = 10.0  # from SIGTERM to SIGKILL
    max_restarts: int = 0  # after a crash; 0: its crash stops everything
    url: str | None = None  # where it listens, for `preceptor status`


class ChildProcess(Runnable):
    """The Component of a ProcessSpec."""

    def __init__(self, spec: ProcessSpec, log: Path, keep_fds: Sequence[int]) -> None:
        super().__init__()
        self.name = spec.name
        self.log = log
        self._spec = spec
        self._keep_fds = keep_fds

    def start(self) -> None:
        spec = self._spec
        self._process = GuardedProcess(
            spec.argv,
            log=self.log,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **spec.env},
            cwd=spec.cwd,
            stop=((signal.SIGTERM, spec.stop_seconds),),
            keep_fds=self._keep_fds,
        )

    def is_ready(self) -> bool:
        return self._spec.is_ready is None or self._spec.is_ready()


@dataclass
class Watched:
    """A component under watch."""

    component: Component
    ready_seconds: float
    max_restarts: int
    url: str | None
    stage: Stage = Stage.STARTING
    num_restarts: int = 0
    restarts_left: int = 0
    launched: bool = False
    since: float = 0.0  # when this stage began, monotonic
    has_check: bool = False
    asked: float = 0.0  # when its health check was last made, and last well
    well: float = 0.0


class Supervisor:
    """Runs processes on one data folder; a context manager, entered at most once."""

    def __init__(self, layout: Layout, report: Callable[[str], None] = lambda line: None) -> None:
        """`report` gets a line for each start, restart and stop; it may be called from another thread."""
        self._layout = layout
        self._report = report
        self._groups: list[list[Watched]] = []
        self._changed = threading.Condition()  # guards the entries' stages and `_failure`
        self._failure: Exception | None = None
        self._stopping = threading.Event()
        self._force = threading.Event()
        self._num_signals = 0
        self._leaving = False  # the block has ended: signals may no longer raise
        self._in_main = False
        self._started_at = datetime.now(UTC)
        self._disk_looked_at = self._full_at = -math.inf  # monotonic
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._handlers: dict[int, signal._HANDLER] = {}
        self._lock: FolderLock | None = None

    def __enter__(self) -> Self:
        """Take the data folder. Errors: FolderInUse."""
        self._lock = FolderLock(self._layout.lock_file, LOCK_WAIT_SECONDS)
        self._in_main = threading.current_thread() is threading.main_thread()
        if self._in_main:
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    self._handlers[number] = signal.signal(number, self._on_signal)
            self._handlers[CRASHED] = signal.signal(CRASHED, self._on_crash)
        self._write_state()
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop everything, in reverse order. A crash behind another error is raised in its place."""
        self._leaving = True
        if isinstance(error, Exception):
            with self._changed:  # a lost database shows as many errors; wait to name the cause
                self._changed.wait_for(lambda: self._failure is not None, CRASH_NOTICE_SECONDS)
        self._stopping.set()
        self._watcher.join()
        self._stop_all()
        self._layout.run_file.unlink(missing_ok=True)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        assert self._lock is not None
        self._lock.release()
        if self._failure is not None and error is not self._failure and not isinstance(error, KeyboardInterrupt):
            raise self._failure from error

    def start(self, *components: Component | ProcessSpec) -> None:
        """Start these together and wait until all are ready.

        Errors: ProcessFailed when one ends or is not ready in time, with the last lines of its log.
        """
        group = [self._enter(component) for component in components]
        with self._changed:
            self._groups.append(group)
        for entry in group:
            self._launch(entry)
        self._write_state()
        with self._changed:
            while not all(entry.stage in (Stage.READY, Stage.SICK) for entry in group):
                self._raise_failure()
                self._changed.wait(TICK_SECONDS)

    def check(self) -> None:
        """Raise ProcessFailed if a process has crashed; for loops outside the main thread."""
        with self._changed:
            self._raise_failure()

    def wait(self, seconds: float | None = None) -> None:
        """Let it run: for so many seconds, or until Interrupted or ProcessFailed ends it."""
        deadline = None if seconds is None else time.monotonic() + seconds
        with self._changed:
            while deadline is None or time.monotonic() < deadline:
                self._raise_failure()
                self._changed.wait(TICK_SECONDS)

    def state(self) -> RunState:
        """The processes that run now."""
        with self._changed:
            return RunState(
                supervisor_pid=os.getpid(),
                supervisor_created=psutil.Process().create_time(),
                started_at=self._started_at,
                processes=[
                    RunningProcess(
                        name=entry.component.name,
                        stage=entry.stage,
                        pid=entry.component.pid,
                        url=entry.url,
                        log=entry.component.log,
                        num_restarts=entry.num_restarts,
                    )
                    for group in self._groups
                    for entry in group
                ],
            )

    def _enter(self, component: Component | ProcessSpec) -> Watched:
        if not isinstance(component, ProcessSpec):
            # it waits for itself and knows its own time limit
            return Watched(component, ready_seconds=HEALTH_SECONDS, max_restarts=0, url=None)
        assert self._lock is not None
        child = ChildProcess(component, self._layout.log(component.name), [self._lock.fd])
        return Watched(
            child,
            component.ready_seconds,
            component.max_restarts,
            component.url,
            restarts_left=component.max_restarts,
            has_check=component.is_ready is not None,
        )

    def _say(self, line: str) -> None:
        """Report. A reader that is gone (a closed terminal) must not keep us from stopping."""
        with contextlib.suppress(OSError):
            self._report(line)

    def _launch(self, entry: Watched) -> None:
        """Start one component; its errors go to the caller."""
        with self._changed:
            entry.stage, entry.since, entry.launched = Stage.STARTING, time.monotonic(), False
        entry.component.start()
        entry.launched = True

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _watch(self) -> None:
        """The watching thread: looks at every process ten times a second until the supervisor stops."""
        while not self._stopping.wait(TICK_SECONDS):
            try:
                self._look_at_disk()
                for entry in [entry for group in self._groups for entry in group]:
                    self._look_at(entry)
            except Exception as error:  # noqa: BLE001 - not swallowed: handed to the main thread, which raises it
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                if self._in_main and not self._stopping.is_set():
                    signal.pthread_kill(threading.main_thread().ident or 0, CRASHED)
                return

    def _look_at_disk(self) -> None:
        now = time.monotonic()
        if now - self._disk_looked_at < FULL_EVERY_SECONDS:
            return
        self._disk_looked_at = now
        full = space.find_full(self._layout.root)
        if full is not None:
            if not self._was_full:
                self._say(full)
            self._full_at = now

    @property
    def _was_full(self) -> bool:
        return time.monotonic() - self._full_at < FULL_KEPT_SECONDS

    def _look_at(self, entry: Watched) -> None:
        """Move one component to its next stage. Raises ProcessFailed if there is none."""
        if not entry.launched:
            return
        now = time.monotonic()
        if entry.stage is Stage.RESTARTING:
            pause = BACKOFF_SECONDS[min(entry.num_restarts, len(BACKOFF_SECONDS)) - 1]
            if now - entry.since >= (FULL_PAUSE_SECONDS if self._was_full else pause):
                self._start_again(entry)
            return
        status = entry.component.poll()
        if status is not None:
            self._on_end(entry, status)
        elif entry.stage is Stage.STARTING:
            if entry.component.is_ready():
                # said first: when `start` returns, all its lines are out
                self._say(f"{entry.component.name} is ready after {time.monotonic() - entry.since:.1f} s")
                entry.asked = entry.well = time.monotonic()
                self._enter_stage(entry, Stage.READY)
            elif now - entry.since > entry.ready_seconds and not self._was_full:
                raise self._describe_failure(entry, f"was not ready within {entry.ready_seconds:.0f} s")
        else:
            if entry.restarts_left < entry.max_restarts and now - entry.since > STABLE_SECONDS:
                entry.restarts_left = entry.max_restarts
            if entry.has_check and now - entry.asked > HEALTH_EVERY_SECONDS:
                self._check_health(entry)

    def _check_health(self, entry: Watched) -> None:
        """Note whether a process that was ready still answers; it is only shown, for it may be busy."""
        if entry.component.is_ready():
            entry.well = time.monotonic()
            if entry.stage is Stage.SICK:
                self._say(f"{entry.component.name} answers its health check again")
                self._enter_stage(entry, Stage.READY)
        elif entry.stage is Stage.READY and time.monotonic() - entry.well > SICK_SECONDS:
            self._say(f"{entry.component.name} has not answered its health check for {SICK_SECONDS:.0f} s")
            self._enter_stage(entry, Stage.SICK)
        entry.asked = time.monotonic()

    def _start_again(self, entry: Watched) -> None:
        """Launch one that ended; one that cannot even be launched is tried again while a disk is full."""
        try:
            self._launch(entry)
        except (LocalError, OSError):
            if not self._was_full:
                raise
            entry.launched = True
            self._enter_stage(entry, Stage.RESTARTING)
            return
        self._write_state()

    def _on_end(self, entry: Watched, status: int) -> None:
        self._disk_looked_at = -math.inf
        self._look_at_disk()
        if self._was_full:
            self._say(
                f"{entry.component.name} ended ({describe_status(status)}) while a disk is full; it is tried again"
            )
            entry.num_restarts += 1
            self._enter_stage(entry, Stage.RESTARTING)
            return
        if entry.restarts_left == 0:
            again = f" after {entry.num_restarts} restarts" if entry.num_restarts else ""
            raise self._describe_failure(entry, f"ended by itself{again} ({describe_status(status)})")
        entry.restarts_left -= 1
        entry.num_restarts += 1
        self._say(f"{entry.component.name} ended ({describe_status(status)}) and is started again")
        self._enter_stage(entry, Stage.RESTARTING)

    def _enter_stage(self, entry: Watched, stage: Stage) -> None:
        with self._changed:
            entry.stage, entry.since = stage, time.monotonic()
            self._changed.notify_all()
        self._write_state()

    def _describe_failure(self, entry: Watched, what: str) -> ProcessFailed:
        component = entry.component
        return ProcessFailed(
            f"{component.name} {what}, so everything is stopped; its log {component.log} ends:\n{tail(component.log)}",
            hint="Nothing that was committed is lost: start again on the same data folder once the cause is gone.",
        )

    def _write_state(self) -> None:
        # under the lock an older state never replaces a newer one; a full disk keeps the last that had room
        with self._changed, contextlib.suppress(OSError):
            write_private(self._layout.run_file, self.state().model_dump_json(indent=2) + "\n")

    def _stop_all(self) -> None:
        for group in reversed(self._groups):
            running = [entry for entry in group if entry.component.pid is not None]
            for entry in running:
                if entry.component.poll() is None:
                    self._say(f"stopping {entry.component.name}")
                    entry.component.ask_to_stop()
            for entry in running:
                self._stop(entry)
                entry.stage = Stage.STOPPED

    def _stop(self, entry: Watched) -> None:
        # the guard counts the graceful seconds itself; we only listen for the order to hurry
        while entry.component.poll() is None:
            if self._force.wait(TICK_SECONDS / 4):
                entry.component.kill()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._num_signals += 1
        if not self._leaving:
            raise Interrupted(signal.Signals(number).name)
        if self._num_signals >= 2:
            self._force.set()
        else:
            self._say("stopping already; once more to kill everything")

    def _on_crash(self, number: int, frame: FrameType | None) -> None:
        if not self._leaving and self._failure is not None:
            raise self._failure


def answers_http(url: str) -> Callable[[], bool]:
    """A health check: GET `url` answers with success; anything else is an HTTPError, an OSError."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach our loopback

    def check() -> bool:
        try:
            with opener.open(url, timeout=HEALTH_SECONDS):
                return True
        except (OSError, http.client.HTTPException):
            return False

    return check
