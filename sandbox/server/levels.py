"""The protection and the open risks of each isolation level, in words for operators of the sandbox."""

from types import MappingProxyType
from typing import Final

from sandbox.contract import Level

_EVERYWHERE: Final = (
    "only the system calls that programs of tasks need, with listed arguments; the others are refused",
    "no sockets; no process outside the run can be signalled, traced or slowed down",
    "wall time, processor time, output and processes of the whole run are limited",
)
_NAMESPACES: Final = (
    "an empty network, a process list of its own, and a read-only file tree without the host's own files",
    "64 MiB and 4,096 files in each of /box and /tmp, 16 MiB in /dev/shm, gone after the run",
)
_CGROUP: Final = ("the kernel counts and limits the memory of all its processes together, its own memory for them too",)
_MEASURED: Final = (
    "address space and private memory of each process are limited; pages, page tables, mappings, pipes, sockets and "
    "watches of all its processes together are measured every 50 ms, less often when that is dear",
)
_ALWAYS_OPEN: Final = (
    "bugs in the kernel behind an allowed call",
    "side channels: caches, timing, load, locks on files that all runs can read",
)
_UNMEASURED: Final = (
    "memory that a run takes between two measurements, and names that the kernel caches until memory is short",
    "slots of an ordinary user share the kernel's counters for that user, timers and queued signals among them",
)

PROTECTS: Final = MappingProxyType(
    {
        Level.FULL: (*_EVERYWHERE, *_NAMESPACES, *_CGROUP),
        Level.FULL_NOCGROUP: (*_EVERYWHERE, *_NAMESPACES, *_MEASURED),
        Level.CONTAINER: (*_EVERYWHERE, *_NAMESPACES, *_CGROUP, *_MEASURED),
        Level.WEAK: (
            *_EVERYWHERE,
            "of the host's files only the system's libraries and the Python can be read; none can be written, and no "
            "mode, owner, time or attribute of any file be changed",
            *_MEASURED,
        ),
    }
)
LEAVES_OPEN: Final = MappingProxyType(
    {
        Level.FULL: _ALWAYS_OPEN,
        Level.FULL_NOCGROUP: (*_ALWAYS_OPEN, "files in the run's folders are not counted as memory", *_UNMEASURED),
        Level.CONTAINER: (*_ALWAYS_OPEN, "the engine, which is root, is trusted"),
        Level.WEAK: (
            *_ALWAYS_OPEN,
            *_UNMEASURED,
            "no namespaces: which files of the host exist, their sizes, and its process numbers can be learned",
            "the run's folder is one of the host's: each file is limited to 64 MiB, their sum only by the disk",
            "processes of a run may outlive a keeper that is killed",
        ),
    }
)
