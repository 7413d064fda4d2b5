"""The checks of `preceptor doctor` on this machine: interpreter, libraries, memory, disks, the data folder and its
processes.
"""

import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path
from typing import Final

import psutil
from packaging.requirements import Requirement

from services.local.care.findings import Finding, Findings, fail, ok, warn
from services.local.installation import Installation
from services.local.layout import FolderIncomplete, Layout
from services.local.processes.lock import is_locked
from services.local.supervise.run_state import Stage
from services.runtime import space
from services.runtime.space import GB

LITTLE_MEMORY: Final = 2 * GB
"""Memory that a policy and a trainer of the starter model need together."""
TOO_LITTLE_MEMORY: Final = GB // 2
MIN_PYTHON: Final = (3, 11)
STILL: Final = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD, psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


def check_python() -> Finding:
    """The interpreter."""
    found = f"Python {platform.python_version()} at {sys.prefix}"
    if sys.version_info < MIN_PYTHON:
        return fail("python", found, "Install Python 3.11 or newer, then `make clean install`.")
    return ok("python", found)


def check_libraries(lock: Path) -> Findings:
    """That the required packages are installed, in the versions Preceptor is tested with."""
    try:
        required = importlib.metadata.requires("preceptor") or []
    except importlib.metadata.PackageNotFoundError:  # it runs from a folder: the image was built with its packages
        required = []
    missing = []
    for line in required:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        installed = _find_version(requirement.name)
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            missing.append(f"{requirement.name} ({installed or 'not installed'}, wanted {requirement.specifier})")
    if missing:
        yield fail("libraries", "; ".join(missing), "Run `make install`.")
        return
    if not lock.is_file():
        yield ok("libraries", "everything required is installed (there is no lock file to compare with)")
        return
    pins = dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", lock.read_text(), re.MULTILINE))
    other = [
        f"{name} {installed} instead of {pinned}"
        for name, pinned in pins.items()
        if (installed := _find_version(name)) is not None and installed.split("+")[0] != pinned
    ]
    if other:
        shown = "; ".join(other[:5]) + (f"; and {len(other) - 5} more" if len(other) > 5 else "")
        yield warn("libraries", shown, "These versions are not tested together: run `make install`.")
    else:
        yield ok("libraries", f"{len(pins)} pinned versions, all installed as pinned")


def _find_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_memory() -> Finding:
    """Memory that can be had without swapping."""
    memory = psutil.virtual_memory()
    found = f"{memory.available / GB:.1f} of {memory.total / GB:.1f} GB available"
    if memory.available < TOO_LITTLE_MEMORY:
        return fail("memory", found, "End other programs: the policy or the trainer would be killed.")
    if memory.available < LITTLE_MEMORY:
        return warn("memory", found, f"The starter model needs about {LITTLE_MEMORY / GB:.0f} GB; end other programs.")
    return ok("memory", found)


def check_disks(installation: Installation) -> Findings:
    """The data folder, and room on every disk that must not fill up."""
    home = installation.layout.root
    if not home.exists():
        yield ok("data folder", f"{home} does not exist yet; `preceptor up` makes it")
    elif not home.is_dir():
        yield fail("data folder", f"{home} is not a folder", "Name one with --home or PRECEPTOR_HOME.")
        return
    elif incomplete := _find_incomplete(installation.layout):
        yield fail("data folder", incomplete.detail, incomplete.hint)
    elif not os.access(home, os.W_OK | os.X_OK):
        yield fail("data folder", f"{home} cannot be written", "Run as its owner, or set PRECEPTOR_HOME.")
    elif home.stat().st_mode & 0o066:
        yield warn("data folder", f"{home} can be read by others", f"`chmod go-rw {home}`: it holds keys and weights.")
    else:
        size, most = space.measured.size(home) / GB, installation.settings.max_home_gb
        found = f"{home} has {size:.2f} GB"
        if most and size > most:
            yield fail("data folder", found, f"Sampling stops above PRECEPTOR_MAX_HOME_GB={most:g}: make room.")
        else:
            yield ok("data folder", found)
    least = installation.settings.min_free_gb
    for what, folder in space.places(home).items():
        free = space.free_bytes(folder) / GB
        found = f"{free:.1f} GB free"
        if free < least:
            yield fail(f"disk of {what}", found, f"Sampling stops below PRECEPTOR_MIN_FREE_GB={least:g}: make room.")
        elif free < 2 * least:
            yield warn(f"disk of {what}", found, f"Sampling stops below PRECEPTOR_MIN_FREE_GB={least:g}.")
        else:
            yield ok(f"disk of {what}", found)


def _find_incomplete(layout: Layout) -> FolderIncomplete | None:
    try:
        layout.require_complete()
    except FolderIncomplete as error:
        return error
    return None


def check_processes(installation: Installation) -> Finding:
    """Whether the stack of this data folder runs whole, is down, or left something behind."""
    layout, run = installation.layout, installation.run
    if run is None:
        if is_locked(layout.lock_file):
            return warn(
                "processes",
                "no supervisor runs, but something it started still holds the data folder",
                "If this stays for more than a minute, look for it with `fuser " + str(layout.lock_file) + "`.",
            )
        if layout.run_file.exists():
            return ok("processes", "no stack runs on this data folder; the last one was killed and left no processes")
        if not installation.is_ours:
            return ok("processes", "not checked: they are not run by `preceptor up` here")
        return ok("processes", "no stack runs on this data folder (`preceptor up` starts one)")
    away = [
        process.name
        for process in run.processes
        if process.stage is not Stage.READY or process.pid is None or not _runs(process.pid)
    ]
    if away:
        return fail("processes", f"not ready: {', '.join(away)}", f"See their logs in {layout.logs}.")
    again = [f"{process.name} ({process.num_restarts})" for process in run.processes if process.num_restarts]
    if again:
        return warn("processes", f"started again after a crash: {', '.join(again)}", f"See logs in {layout.logs}.")
    return ok("processes", f"{len(run.processes)} run, as process {run.supervisor_pid}'s children")


def _runs(pid: int) -> bool:
    """Whether a process lives and is not held still, as by a debugger or SIGSTOP."""
    try:
        return psutil.Process(pid).status() not in STILL
    except psutil.NoSuchProcess:
        return False
