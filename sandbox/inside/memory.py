"""Memory held by the processes of a run, read from /proc where no cgroup counts it, and file locks, which no cgroup
counts.

Besides the processes' own pages it counts kernel memory kept for them: page tables, mappings, buffers of pipes and
sockets, epoll watches. A pipe, socket or mapping counts with its capacity. Not counted: files in the run's folders,
whose size is bounded, and memory that the kernel reclaims by itself when memory is short. Only the standard library.
"""

import os
import time
from collections.abc import Callable
from typing import Final

_PIPE_BYTES: Final = 64 << 10
_SOCKET_BYTES: Final = 208 << 10
"""`net.core.wmem_default`; a run cannot have larger buffers, nor pipes."""
_WATCH_BYTES: Final = 256
_MAPPING_BYTES: Final = 256
_ANCESTOR_BYTES: Final = 64
"""Of one mapping, for each process that it may have come down from by fork."""
_FREE_MAPPINGS: Final = 256
"""Of each process: libraries, heaps and stacks."""
_MOST_MAPPINGS: Final = 65530
"""`vm.max_map_count`."""
_MOST_FILES: Final = 256
MOST_LOCKS: Final = 4096
"""Of one run. No cgroup is charged for them."""
_READ_BYTES: Final = 1 << 20
"""Of one file of /proc. One that is longer is taken for as long as it can be."""
_WATCHES_BYTES: Final = 64 << 10
"""Watches of epolls; a program that opens each file once fills less than half of it."""
_COST_FACTOR: Final = 3
"""Reading the kernel's counters takes at most a quarter of the time."""


class Ledger:
    """The memory of one run's processes, whenever it is asked for. `proc` is an open /proc that shows all of them."""

    def __init__(self, proc: int) -> None:
        self._proc = proc
        self._num_processes = 0
        self._kernel_bytes = 0
        self._next_look = 0.0

    def count(self, pids: list[str], enough_bytes: int) -> int:
        """Memory held by these processes now. Above `enough_bytes` it looks closer: shared pages count once."""
        self._num_processes = max(self._num_processes, len(pids))
        statuses = [self._read(f"{pid}/status") for pid in pids]
        own = sum(_kilobytes(each, b"RssAnon:", b"RssShmem:") for each in statuses) * 1024
        tables = sum(_kilobytes(each, b"VmPTE:") for each in statuses) * 1024
        kernel_bytes = tables + self._look_at_kernel(pids, enough_bytes)
        if own + kernel_bytes > enough_bytes and len(pids) > 1:
            own = sum(map(self._share, pids, statuses)) * 1024
        return own + kernel_bytes

    def has_too_many_locks(self, find_pids: Callable[[], list[str]]) -> bool:
        """Whether these processes, which are looked for only when there is reason to, hold more than `MOST_LOCKS` of
        the file locks that this /proc shows."""
        locks = self._read("locks", _READ_BYTES)
        if locks.count(b"\n") <= MOST_LOCKS:
            return False
        owners = set(map(str.encode, find_pids()))
        return sum(not owners.isdisjoint(line.split()[4:6]) for line in locks.splitlines()) > MOST_LOCKS

    def _share(self, pid: str, status: bytes) -> int:
        """Kilobytes of a process, with its part of shared pages. A process that hides itself counts in full."""
        share = _kilobytes(self._read(f"{pid}/smaps_rollup"), b"Pss_Anon:", b"Pss_Shmem:")
        return share or _kilobytes(status, b"RssAnon:", b"RssShmem:")

    def _look_at_kernel(self, pids: list[str], enough_bytes: int) -> int:
        """Bytes that the kernel keeps for them, page tables aside; from the last look when that was dear. It looks no
        further when it has found enough."""
        started = time.monotonic()
        if started >= self._next_look:
            self._kernel_bytes = 0
            kept: set[str] = set()
            for pid in pids:
                self._kernel_bytes += self._bytes_of_mappings(pid) + self._bytes_of_files(pid, kept)
                if self._kernel_bytes > enough_bytes:
                    break
            now = time.monotonic()
            self._next_look = now + _COST_FACTOR * (now - started)
        return self._kernel_bytes

    def _bytes_of_mappings(self, pid: str) -> int:
        maps = self._read(f"{pid}/maps", _READ_BYTES)
        num_mappings = _MOST_MAPPINGS if len(maps) >= _READ_BYTES else maps.count(b"\n")
        return max(0, num_mappings - _FREE_MAPPINGS) * (_MAPPING_BYTES + _ANCESTOR_BYTES * self._num_processes)

    def _bytes_of_files(self, pid: str, kept: set[str]) -> int:
        """Kernel memory behind a process's open files: pipes and sockets not yet in `kept`, and epoll watches."""
        try:
            folder = os.open(f"{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._proc)
        except PermissionError:  # it hides itself, or has ended and waits to be buried
            return _MOST_FILES * _SOCKET_BYTES if b"VmPTE:" in self._read(f"{pid}/status") else 0
        except OSError:
            return 0
        num_bytes = 0
        try:
            for number in os.listdir(folder):
                target = _read_link(number, folder)
                if target == "anon_inode:[eventpoll]":
                    num_bytes += self._num_watches(pid, number) * _WATCH_BYTES
                elif target.startswith(("pipe:", "socket:")) and target not in kept:
                    kept.add(target)
                    num_bytes += _PIPE_BYTES if target.startswith("pipe:") else _SOCKET_BYTES
        except OSError:  # it has just ended
            pass
        finally:
            os.close(folder)
        return num_bytes

    def _num_watches(self, pid: str, number: str) -> int:
        watches = self._read(f"{pid}/fdinfo/{number}", _WATCHES_BYTES)
        return _MOST_FILES * _MOST_FILES if len(watches) >= _WATCHES_BYTES else watches.count(b"tfd:")

    def _read(self, path: str, num_bytes: int = 8192) -> bytes:
        """The beginning of a file of /proc; empty when its process has just ended or hides it."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
        except OSError:
            return b""
        data = bytearray()
        try:
            while len(data) < num_bytes and (piece := os.read(descriptor, num_bytes - len(data))):
                data += piece
        except OSError:
            pass
        finally:
            os.close(descriptor)
        return bytes(data)


def _read_link(name: str, folder: int) -> str:
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError:
        return ""


def _kilobytes(text: bytes, *names: bytes) -> int:
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(names))
