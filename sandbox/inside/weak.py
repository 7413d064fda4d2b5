"""The level `weak`: Landlock, seccomp and rlimits, for a machine that allows no namespaces and an owner who accepts
less by name.

Protected: files of the host can be neither read nor written except the system's libraries, the Python and the run's
folder, nor can modes, owners, times and attributes be changed, by path or by an open file; no sockets, no System V or
POSIX queues; no signals to the server; limits for each process; time, output and memory of the whole run are measured
and enforced. Not protected: a run's folder is an ordinary folder of the host, its size bounded only file by file;
whether a file of the host exists, and its size, can be learned; the host's process numbers can be guessed; if its
keeper is killed, processes that the code had forked may outlive it. Only the standard library; loads under `python -S`.
"""

import contextlib
import os
import signal
import stat
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from sandbox.inside import isolation, kernel

_FOLDER_PREFIX = "preceptor-weak-"


def make_folder(parent: str) -> str:
    """The folder of all runs of one spawner; first removes those of spawners that were killed."""
    for entry in os.scandir(parent):
        pid = entry.name.removeprefix(_FOLDER_PREFIX)
        if pid == entry.name or not pid.isdecimal() or os.path.exists(f"/proc/{pid}"):
            continue
        details = entry.stat(follow_symlinks=False)  # the parent may be open to all: touch only what is ours
        if stat.S_ISDIR(details.st_mode) and details.st_uid == os.getuid():
            with contextlib.suppress(OSError):
                remove_folder(entry.path)
    path = f"{parent}/{_FOLDER_PREFIX}{os.getpid()}"
    os.mkdir(path, 0o711)
    return path


def remove_folder(path: str) -> None:
    """Remove the folder of all runs, including leftovers of a killed keeper."""
    for entry in os.scandir(path):
        remove_box(entry.path)
    with contextlib.suppress(OSError):  # something could not be removed, which has been told
        os.rmdir(path)


def make_box(folder: str, owner: int | None) -> str:
    """A new folder for one run or zygote, named by this process."""
    path = f"{folder}/preceptor-run-{os.getpid()}-{time.monotonic_ns()}"
    os.mkdir(path, 0o700)
    if owner is not None:
        os.chown(path, owner, owner)
    return path


def remove_box(path: str) -> None:
    """Remove the folder at any depth; every process of the run is dead. Entries that cannot be removed stay and are
    reported on standard error."""
    os.chmod(path, 0o700)
    top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        num_left = _empty(top)
    finally:
        os.close(top)
    if num_left:
        sys.stderr.write(f"sandbox: {num_left} files or folders in {path} could not be removed\n")
        sys.stderr.flush()
    else:
        os.rmdir(path)


def _empty(top: int) -> int:
    """Empty an open folder; gives how many entries are left. Folders found deeper are moved up into it and emptied in
    their turn, so that neither the stack, nor the open files, nor the length of a path grows with the depth."""
    contents = _sort_out(top)
    num_left, num_moved, folders = contents.num_left, 0, deque(contents.folders)
    mark = os.urandom(8).hex()  # so that the code cannot have taken a name before
    while folders:
        name = folders.popleft()
        try:
            os.chmod(name, 0o700, dir_fd=top)  # no link: it was seen to be a folder
            folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
        except OSError:
            num_left += 1
            continue
        try:
            inner = _sort_out(folder)
            num_left += inner.num_left
            for each in inner.folders:
                new_name = f"{mark}-{num_moved}"
                num_moved += 1
                try:
                    os.chmod(each, 0o700, dir_fd=folder)  # its own `..` is rewritten
                    os.rename(each, new_name, src_dir_fd=folder, dst_dir_fd=top)
                    folders.append(new_name)
                except OSError:
                    num_left += 1
        finally:
            os.close(folder)
        with contextlib.suppress(OSError):  # then it is not empty, and its content is counted
            os.rmdir(name, dir_fd=top)
    return num_left


@dataclass(frozen=True)
class _Contents:
    folders: list[str]
    num_left: int


def _sort_out(folder: int) -> _Contents:
    """Remove all files of an open folder; gives its folders, and how many files are left."""
    folders, num_left = [], 0
    with os.scandir(folder) as entries:
        names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in names:
        if is_folder:
            folders.append(name)
            continue
        try:
            os.unlink(name, dir_fd=folder)
        except OSError:
            num_left += 1
    return _Contents(folders, num_left)


def enter_slot(folder: str, drop_to_uid: int | None, program: dict[str, bytes]) -> int:
    """Make this process ready to be a zygote, with its program in this folder; gives an open /proc."""
    os.chdir(folder)
    if drop_to_uid is not None:
        isolation.drop_to(drop_to_uid)
    isolation.write_files(program)
    kernel.drop_capabilities()
    return os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def fence(box: str, readable: tuple[str, ...], *, has_cgroup: bool) -> None:
    """Confine this process, about to become the code, to its folder and the readable paths."""
    devices = [f"/dev/{name}" for name in isolation.devices(has_cgroup=has_cgroup)]
    kernel.restrict_files(list(readable), [box, *devices])


def find_closed_folder(paths: tuple[str, ...]) -> str | None:
    """The first folder on the way to one of these paths, or itself, that other users may not enter."""
    for path in map(Path, paths):
        for each in (*reversed(path.parents), path):
            with contextlib.suppress(FileNotFoundError):
                if each.is_dir() and not each.stat().st_mode & stat.S_IXOTH:
                    return str(each)
    return None


def keeps_signals_inside() -> bool:
    """Whether Landlock keeps signals from reaching processes outside; if not, the filter has to deny them all."""
    return kernel.landlock_version() >= kernel.LANDLOCK_SCOPES


def count_processes_of_user() -> int:
    """Processes and threads of this user on the host: the limit of the run's own counts them too."""
    uid, count = os.getuid(), 0
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{name}").st_uid == uid:
                    count += len(os.listdir(f"/proc/{name}/task"))
    return count


def descendants(proc: int, ancestor: int) -> list[str]:
    """Every process that descends from this one, by number."""
    children: dict[int, list[str]] = {}
    for name in os.listdir(proc):
        if name.isdecimal():
            with contextlib.suppress(OSError), open(os.open(f"{name}/stat", os.O_RDONLY, dir_fd=proc), "rb") as file:
                children.setdefault(int(file.read().rpartition(b")")[2].split()[1]), []).append(name)
    found: list[str] = []
    todo = [ancestor]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += map(int, below)
    return found


def kill_descendants(seconds: float) -> None:
    """Kill all descendants of this process, which has to be a subreaper, until none is left or the time is over."""
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            left = descendants(proc, os.getpid())
            if not left:
                return
            for name in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(name), signal.SIGKILL)
            time.sleep(0.002)
        raise TimeoutError("processes of the run could not be killed")
    finally:
        os.close(proc)
