"""A cgroup for each slot, which bounds memory and processes and counts processor time, where this process may make one:
below its own cgroup (v1, v2), or beside it (v2).

It holds the slot's zygote and the processes of the run that goes on; limits and counters are set anew for each run.

Folders are kept open, not named: the spawner looks for its place before it leaves the host's file tree.
Only the standard library; loads under `python -S`.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from sandbox.inside.isolation import write_at

_PREFIX = "preceptor-sandbox-"
_OVERHEAD_BYTES = 8 << 20
"""Memory that a fork of the zygote touches before the code does."""
_REMOVE_SECONDS = 2.0
_LOCK_SECONDS = 2.0


@dataclass(frozen=True)
class _Files:
    """Names of the files that both versions have."""

    limit: str
    limit_with_swap: str
    swap_is_extra: bool
    usage: str
    peak: str
    events: str
    anonymous: str
    processor: str
    processor_unit: float
    """Seconds."""


_FILES = {
    1: _Files(
        "memory.limit_in_bytes",
        "memory.memsw.limit_in_bytes",
        False,
        "memory.usage_in_bytes",
        "memory.max_usage_in_bytes",
        "memory.oom_control",
        "rss ",
        "cpuacct.usage",
        1e-9,
    ),
    2: _Files(
        "memory.max",
        "memory.swap.max",
        True,
        "memory.current",
        "memory.peak",
        "memory.events",
        "anon ",
        "cpu.stat",
        1e-6,
    ),
}
_CONTROLLERS = ("memory", "pids", "cpuacct")
"""In v1 each may have a folder of its own, of which only the first is indispensable; in v2 they are in one."""


@dataclass(frozen=True)
class _Folder:
    """A cgroup of this process's making, open, and the open folder it lies in."""

    parent: int
    own: int
    controllers: tuple[str, ...]


def _find(folders: tuple[_Folder, ...], controller: str) -> int | None:
    return next((each.own for each in folders if controller in each.controllers), None)


class Group:
    """One slot's cgroup: in v2 one folder, in v1 one for memory and, where they could be made, others for pids and for
    processor time."""

    def __init__(self, name: str, folders: tuple[_Folder, ...], version: int) -> None:
        self._name, self._folders = name, folders
        self._names = _FILES[version]
        self._overhead_bytes = _OVERHEAD_BYTES
        self._limits = (1 << 62, 0)  # none
        self._num_kills_before = 0
        self._memory_folder = folders[0].own
        self._pids_folder = _find(folders, "pids")
        self._usage = os.open(self._names.usage, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._memory_folder)
        self._bytes_before = 0
        self._events = os.open(self._names.events, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._memory_folder)
        try:  # absent from v2 before Linux 5.19, and not to be set back before 6.12
            self._peak = os.open(self._names.peak, os.O_RDWR | os.O_CLOEXEC, dir_fd=self._memory_folder)
        except OSError:
            self._peak = -1
        processor = _find(folders, "cpuacct")
        self._processor = -1
        if processor is not None:
            self._processor = os.open(self._names.processor, os.O_RDONLY | os.O_CLOEXEC, dir_fd=processor)
        self._seconds_before = 0.0

    def enter(self) -> None:
        """Move this process into the group."""
        for each in self._folders:
            write_at(each.own, "cgroup.procs", "0")

    @property
    def counts_processor(self) -> bool:
        """Whether the kernel counts processor time here, regardless of which process reaps the dead."""
        return self._processor >= 0

    def cpu_seconds(self) -> float:
        """Processor time used by this run so far, including its zygote's for it; 0 where it is not counted."""
        return self._cpu_seconds_ever() - self._seconds_before if self.counts_processor else 0.0

    def _cpu_seconds_ever(self) -> float:
        said = os.pread(self._processor, 64, 0).removeprefix(b"usage_usec ")
        return int(said.split(maxsplit=1)[0]) * self._names.processor_unit

    def note_overhead(self) -> None:
        """Take the group's present memory, the zygote's, as overhead that belongs to no run."""
        lines = _read(self._memory_folder, "memory.stat").splitlines()
        anonymous = sum(int(line.split()[1]) for line in lines if line.startswith(self._names.anonymous))
        self._overhead_bytes = anonymous + _OVERHEAD_BYTES
        self._num_kills_before = self._num_kills()

    def begin(self, memory_bytes: int, num_processes: int) -> None:
        """Set limits and counters for the next run. Raises OSError."""
        if self._limits != (memory_bytes, num_processes):
            self._set_limits(memory_bytes, num_processes)
        if self._peak >= 0:
            os.pwrite(self._peak, b"0", 0)
            self._bytes_before = int(os.pread(self._usage, 64, 0))  # the zygote, and files the kernel keeps cached
        self._num_kills_before = self._num_kills()
        if self.counts_processor:
            self._seconds_before = self._cpu_seconds_ever()

    def _set_limits(self, memory_bytes: int, num_processes: int) -> None:
        names, folder, text = self._names, self._memory_folder, str(memory_bytes + self._overhead_bytes)
        if names.swap_is_extra:
            write_at(folder, names.limit, text)
            with contextlib.suppress(FileNotFoundError):  # a kernel without swap
                write_at(folder, names.limit_with_swap, "0")
        else:
            # neither may pass the other: up from above, down from below
            order = [names.limit_with_swap, names.limit] if memory_bytes > self._limits[0] else []
            for name in order or [names.limit, names.limit_with_swap]:
                with contextlib.suppress(FileNotFoundError):
                    write_at(folder, name, text)
        if self._pids_folder is not None:
            write_at(self._pids_folder, "pids.max", str(num_processes + 1))
        self._limits = (memory_bytes, num_processes)

    def has_overflowed(self) -> bool:
        """Whether the kernel has ended a process of this run for want of memory."""
        return self._num_kills() > self._num_kills_before

    def _num_kills(self) -> int:
        _, found, rest = os.pread(self._events, 4096, 0).partition(b"oom_kill ")
        return int(rest.split()[0]) if found else 0

    def peak_bytes(self) -> int:
        """The most this run ever held; 0 where the kernel does not tell."""
        if self._peak < 0:
            return 0
        return max(0, int(os.pread(self._peak, 64, 0)) - self._bytes_before)

    def remove(self) -> None:
        """Remove the group, whose processes are dead. Raises OSError while the kernel sees some in it."""
        os.close(self._events)
        os.close(self._usage)
        for descriptor in (self._peak, self._processor):
            if descriptor >= 0:
                os.close(descriptor)
        deadline = time.monotonic() + _REMOVE_SECONDS
        for each in self._folders:
            os.close(each.own)
            if not _await_removal(partial(_try_to_remove, self._name, each.parent), deadline):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), self._name)


@dataclass(frozen=True)
class Place:
    """The folders in which the slots' cgroups are made; `Place.find` makes them, `remove` takes them away."""

    folders: tuple[_Folder, ...]
    name: str
    version: int

    @classmethod
    def find(cls) -> "Place | None":
        """A place where memory can be bounded, or None where this process may not make one."""
        own = _own_groups()
        candidates: list[tuple[int, dict[str, tuple[str, ...]]]] = []
        if "memory" in own:
            paths = {
                own[kind]: tuple(k for k in _CONTROLLERS if own.get(k) == own[kind])
                for kind in _CONTROLLERS
                if kind in own
            }
            candidates.append((1, paths))
        elif "" in own:
            candidates += [(2, {own[""]: _CONTROLLERS}), (2, {os.path.dirname(own[""]): _CONTROLLERS})]
        for version, paths in candidates:
            try:
                return cls._make(version, paths)
            except OSError:
                continue
        return None

    @classmethod
    def _make(cls, version: int, paths: dict[str, tuple[str, ...]]) -> "Place":
        """A folder in each of these, by path, for some controllers. Raises OSError when there is none for memory."""
        name = f"{_PREFIX}{os.getpid()}-{time.monotonic_ns()}"  # numbers of processes come again
        folders = []
        for path, controllers in paths.items():
            parent = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            with _sweeping(parent):
                try:
                    os.mkdir(name, dir_fd=parent)
                    own = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent)
                    fcntl.flock(own, fcntl.LOCK_SH)
                    if version == 2:
                        write_at(own, "cgroup.subtree_control", "+memory +pids")
                except OSError:
                    _try_to_remove(name, parent)
                    if "memory" in controllers:
                        raise
                    continue
            folders.append(_Folder(parent, own, controllers))
        return cls(tuple(folders), name, version)

    def make_group(self, keeper: int, number: int) -> Group:
        """A cgroup for one zygote of a keeper. Raises OSError."""
        name = f"{_group_prefix(keeper)}{number}"
        folders = []
        for each in self.folders:
            os.mkdir(name, dir_fd=each.own)
            own = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=each.own)
            folders.append(_Folder(each.own, own, each.controllers))
        return Group(name, tuple(folders), self.version)

    def remove_groups(self, keeper: int) -> bool:
        """Remove the cgroups of a keeper that was killed; False while there are processes in them."""
        is_removed = True
        for each in self.folders:
            for name in os.listdir(each.own):
                if name.startswith(_group_prefix(keeper)):
                    is_removed = _try_to_remove(name, each.own) and is_removed
        return is_removed

    def remove(self) -> None:
        """Remove the folders with all groups, whose processes are dead."""
        deadline = time.monotonic() + _REMOVE_SECONDS
        for each in self.folders:
            with _sweeping(each.parent):  # of a spawner that was killed not everything was dead when this one began
                is_removed = _remove_with_groups(self.name, each.own, each.parent)
            if not is_removed:
                _await_removal(partial(_remove_with_groups, self.name, each.own, each.parent), deadline)


def _group_prefix(keeper: int) -> str:
    return f"slot-{keeper}-"


def _try_to_remove(name: str, folder: int) -> bool:
    """Remove a cgroup; False when it has processes, or groups below it."""
    try:
        os.rmdir(name, dir_fd=folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _await_removal(remove: Callable[[], bool], deadline: float) -> bool:
    """Try to remove a cgroup until it is gone, or until then: the kernel may need a moment to see that its processes
    are dead."""
    while not (is_removed := remove()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return is_removed


def _read(folder: int, name: str) -> str:
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder), encoding="ascii") as file:
        return file.read()


def _own_groups() -> dict[str, str]:
    """The folder of this process's cgroup for each v1 controller, and for v2 under the empty name."""
    mounts = {}
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            fields, _, rest = line.partition(" - ")
            kind, _, options = rest.split()[:3]
            if kind in ("cgroup", "cgroup2"):
                root, point = fields.split()[3:5]
                for controller in options.split(",") if kind == "cgroup" else [""]:
                    mounts[controller] = (root, point)
    groups = {}
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            for controller in controllers.split(","):
                if controller in mounts:
                    root, point = mounts[controller]
                    below = path.removeprefix(root) if root != "/" else path
                    groups[controller] = (point + below).rstrip("/")
    return groups


@contextlib.contextmanager
def _sweeping(parent: int) -> Iterator[None]:
    """Remove what a sandbox that was killed with its spawner left in this open folder; during the block no other
    sandbox does that, or makes a folder there. Where somebody else keeps the lock nothing is removed.

    Each sandbox keeps its own folder locked as long as any of its processes has it open, which says more than a number
    of a process, perhaps another container's, that comes again."""
    is_locked = _try_to_lock(parent)
    try:
        for name in os.listdir(parent) if is_locked else ():
            if not name.startswith(_PREFIX):
                continue
            with contextlib.suppress(OSError):
                folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent)
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: somebody's
                    _remove_with_groups(name, folder, parent)
                finally:
                    os.close(folder)
        yield
    finally:
        if is_locked:
            fcntl.flock(parent, fcntl.LOCK_UN)


def _try_to_lock(folder: int) -> bool:
    """Lock it for this process, unless others hold it longer than sandboxes do: any user of the machine can."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        else:
            return True


def _remove_with_groups(name: str, folder: int, parent: int) -> bool:
    """Remove a sandbox's folder with the groups in it; False while there are processes in one."""
    for group in os.listdir(folder):
        _try_to_remove(group, folder)
    return _try_to_remove(name, parent)
