"""One owner per folder: an advisory lock that the owner's children hold with it.

The lock belongs to the open file, and the children inherit that file: it is free only when the owner *and* all its
children are gone. So a free lock proves that no process of a killed predecessor still runs on the folder.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from services.local.processes.process import LocalError


class FolderInUse(LocalError):
    """Another process runs on this data folder."""

    title = "Data folder in use"


class FolderOfAnother(LocalError):
    """The data folder is closed to us."""

    title = "Data folder of another user"
    hint = "Run as that user, or set PRECEPTOR_HOME to a folder of your own."

    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder} belongs to another user")


class FolderLock:
    """An exclusive lock, taken by the constructor; children inherit `fd`."""

    def __init__(self, path: Path, wait_seconds: float) -> None:
        """Take the lock, waiting for the rest of a dying predecessor.

        Errors: FolderInUse when it stays taken, FolderOfAnother.
        """
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except PermissionError as error:
            raise FolderOfAnother(path.parent) from error
        deadline = time.monotonic() + wait_seconds
        while not try_lock(self.fd):
            if time.monotonic() > deadline:
                owner = os.pread(self.fd, 32, 0).decode(errors="replace").strip()
                os.close(self.fd)
                raise FolderInUse(
                    f"{path.parent} is in use by process {owner or 'unknown'}",
                    hint="`preceptor status` shows what runs there, `preceptor down` stops it. Or use another folder.",
                )
            time.sleep(0.05)
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give up our hold; children that still run keep theirs."""
        os.close(self.fd)


def try_lock(fd: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Take the lock unless another holder excludes it."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """True while someone holds the folder's lock. Errors: FolderOfAnother when we may not look."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # enough for a shared lock, on a read-only disk too
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError as error:
        raise FolderOfAnother(path.parent) from error
    try:
        return not try_lock(fd, fcntl.LOCK_SH)  # shared: two who look do not see each other
    finally:
        os.close(fd)
