"""The run on a data folder as others see it: what its supervisor writes to run.json, and how it is stopped.

The folder's lock decides whether anything runs; the file may be a killed supervisor's.
"""

from __future__ import annotations

import os
import signal
import time
from enum import StrEnum
from pathlib import Path

import psutil
from pydantic import AwareDatetime, BaseModel, ConfigDict

from services.local.layout import Layout
from services.local.processes.lock import is_locked
from services.local.processes.process import LocalError

LOCK_WAIT_SECONDS = 10.0  # time that the guards of a killed predecessor may need


class Stage(StrEnum):
    """Where a process is in its life under the supervisor."""

    STARTING = "starting"
    READY = "ready"
    SICK = "not ready"  # it runs, and its health check has failed for long; it is not restarted
    RESTARTING = "restarting"
    STOPPED = "stopped"


class RunningProcess(BaseModel):
    """One line of `preceptor status`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    stage: Stage
    pid: int | None
    url: str | None
    log: Path
    num_restarts: int


class RunState(BaseModel):
    """The processes on a data folder: the content of run.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    supervisor_pid: int
    supervisor_created: float  # the process's start in Unix time, which tells it from a later one with its number
    started_at: AwareDatetime
    processes: list[RunningProcess]


class StopOutcome(StrEnum):
    """The result of `stop_running`."""

    NOT_RUNNING = "not running"
    STOPPED = "stopped"
    KILLED = "killed"


def read_running(layout: Layout) -> RunState | None:
    """The processes on the data folder; None when there are none, even if a killed supervisor left its file."""
    if not is_locked(layout.lock_file):
        return None
    try:
        state = RunState.model_validate_json(layout.run_file.read_bytes())
    except FileNotFoundError:
        return None
    return state if is_same_process(state.supervisor_pid, state.supervisor_created) else None


def is_same_process(pid: int, created: float) -> bool:
    """True while the process that had this number at that start time lives."""
    try:
        process = psutil.Process(pid)
        # the start is known in ticks since boot; Unix time moves a little when the clock is set
        return bool(process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - created) < 2.0)
    except psutil.NoSuchProcess:
        return False


def stop_running(layout: Layout, seconds: float = 90.0) -> StopOutcome:
    """Stop the processes on the data folder and return when all of them are gone.

    After `seconds` the supervisor is killed, and its guards end the rest. Errors: LocalError when it belongs to
    another user, or does not end.
    """
    state = read_running(layout)
    outcome = StopOutcome.NOT_RUNNING
    if state is not None:
        outcome = StopOutcome.STOPPED
        order(state.supervisor_pid, signal.SIGTERM)
        if not await_unlocked(layout, seconds):
            outcome = StopOutcome.KILLED
            if is_same_process(state.supervisor_pid, state.supervisor_created):
                order(state.supervisor_pid, signal.SIGKILL)
    if not await_unlocked(layout, LOCK_WAIT_SECONDS):
        raise LocalError(f"something on {layout.root} does not end", hint=f"See the logs in {layout.logs}.")
    layout.run_file.unlink(missing_ok=True)
    return outcome


def order(pid: int, number: signal.Signals) -> None:
    """Signal a supervisor; one that is gone is no error."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
    except PermissionError as error:
        raise LocalError(
            f"process {pid} belongs to another user", hint="Stop it as the user who started it, or as root."
        ) from error


def await_unlocked(layout: Layout, seconds: float) -> bool:
    """True as soon as the data folder is free; False if it is still held after so many seconds."""
    deadline = time.monotonic() + seconds
    while is_locked(layout.lock_file):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


class Presence(StrEnum):
    """The state of the stack on a data folder."""

    NOTHING = "not running"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


def find_presence(layout: Layout) -> Presence:
    """Whether the stack is down, starting (its api not ready yet), running, or stopping."""
    if not is_locked(layout.lock_file):
        return Presence.NOTHING
    running_now = read_running(layout)
    if running_now is None:
        return Presence.STOPPING
    api = next((process for process in running_now.processes if process.name == "api"), None)
    if api is None or api.stage is Stage.STARTING:
        return Presence.STARTING
    if api.pid is None or not psutil.pid_exists(api.pid):
        return Presence.STOPPING
    return Presence.RUNNING
