"""A memory cgroup for each run, where this process may make one: below its own cgroup (v1, v2), or beside it (v2).

Folders are kept open, not named: the spawner looks for its place before it leaves the host's file tree.
Only the standard library; loads under `python -S`.
"""

import contextlib
import os
import time
from dataclasses import dataclass

from sandbox.isolation import write_at
from sandbox.wire import Job

_PREFIX = "preceptor-sandbox-"
_OVERHEAD_BYTES = 8 << 20
"""What PID 1 of a run, which is in the run's cgroup, touches for itself."""
_REMOVE_SECONDS = 2.0


@dataclass(frozen=True)
class Group:
    """One run's cgroup: in v2 one folder, in v1 one for memory and, where it could be made, one for pids."""

    parents: tuple[int, ...]
    name: str
    folders: tuple[int, ...]
    version: int

    def entries(self) -> tuple[int, ...]:
        """Open files; a process that writes "0" to each of them is in the group."""
        return tuple(os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder) for folder in self.folders)

    def num_oom_kills(self) -> int:
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        lines = _read(self.folders[0], name).splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))

    def peak_bytes(self) -> int:
        """The most it ever held; 0 where the kernel (v2 before 5.19) does not tell."""
        try:
            return int(_read(self.folders[0], "memory.peak" if self.version == 2 else "memory.max_usage_in_bytes"))
        except FileNotFoundError:
            return 0

    def remove(self) -> None:
        """Remove the group; its processes are dead, but the kernel may need a moment to see it."""
        deadline = time.monotonic() + _REMOVE_SECONDS
        for parent, folder in zip(self.parents, self.folders, strict=True):
            os.close(folder)
            while True:
                try:
                    os.rmdir(self.name, dir_fd=parent)
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.005)


@dataclass(frozen=True)
class Place:
    """The folder in which the runs' cgroups are made; `Place.find` makes it, `remove` takes it away."""

    parents: tuple[int, ...]
    folders: tuple[int, ...]
    name: str
    version: int

    @classmethod
    def find(cls) -> "Place | None":
        """A place where memory can be bounded, or None where this process may not make one."""
        own = _own_groups()
        candidates = []
        if "memory" in own:
            candidates.append((1, [own[kind] for kind in ("memory", "pids") if kind in own]))
        elif "" in own:
            candidates += [(2, [own[""]]), (2, [os.path.dirname(own[""])])]
        for version, parents in candidates:
            try:
                return cls._make(version, parents)
            except OSError:
                continue
        return None

    @classmethod
    def _make(cls, version: int, parents: list[str]) -> "Place":
        name = f"{_PREFIX}{os.getpid()}"
        parent_fds, folders = [], []
        for number, path in enumerate(parents):
            _sweep(path)
            try:
                os.mkdir(f"{path}/{name}")
                if version == 2:
                    with open(f"{path}/{name}/cgroup.subtree_control", "w", encoding="ascii") as file:
                        file.write("+memory +pids")
            except OSError:
                with contextlib.suppress(OSError):
                    os.rmdir(f"{path}/{name}")
                if number == 0:
                    raise
                continue
            parent_fds.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            folders.append(os.open(f"{path}/{name}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        return cls(tuple(parent_fds), tuple(folders), name, version)

    def make_group(self, name: str, job: Job) -> Group:
        """A cgroup with the job's limits. Raises OSError."""
        folders = []
        for parent in self.folders:
            os.mkdir(name, dir_fd=parent)
            folders.append(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent))
        group = Group(self.folders, name, tuple(folders), self.version)
        memory_bytes, num_processes = str(job.memory_bytes + _OVERHEAD_BYTES), str(job.processes + 1)
        if self.version == 2:
            write_at(folders[0], "memory.max", memory_bytes)
            with contextlib.suppress(FileNotFoundError):  # a kernel without swap
                write_at(folders[0], "memory.swap.max", "0")
            write_at(folders[0], "pids.max", num_processes)
            return group
        write_at(folders[0], "memory.limit_in_bytes", memory_bytes)
        with contextlib.suppress(FileNotFoundError):
            write_at(folders[0], "memory.memsw.limit_in_bytes", memory_bytes)
        for pids in folders[1:]:
            write_at(pids, "pids.max", num_processes)
        return group

    def remove(self) -> None:
        for parent, folder in zip(self.parents, self.folders, strict=True):
            for left in os.listdir(folder):
                with contextlib.suppress(OSError):
                    os.rmdir(left, dir_fd=folder)
            with contextlib.suppress(OSError):
                os.rmdir(self.name, dir_fd=parent)


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


def _sweep(path: str) -> None:
    """Remove what a sandbox that was killed with its spawner left here."""
    for entry in os.scandir(path):
        pid = entry.name.removeprefix(_PREFIX)
        if pid != entry.name and pid.isdecimal() and not os.path.exists(f"/proc/{pid}"):
            with contextlib.suppress(OSError):
                for left in os.scandir(entry.path):
                    if left.is_dir():
                        os.rmdir(left.path)
                os.rmdir(entry.path)
