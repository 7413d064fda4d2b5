"""Measures the room on the disks, and decides whether it is enough to keep sampling.

It looks at the data folder's disk, the disk of an embedded database, the data folder's size, and the size that the
caller gives for the database. The disk of a database elsewhere cannot be seen from here; its size can be bounded.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from services.runtime.errors import ServiceUnavailable

if TYPE_CHECKING:  # the supervisor, which every command of the stack loads, asks for `find_full` alone
    from services.runtime.settings import Settings

GB: Final = 1_000_000_000
SIZE_KEPT_SECONDS: Final = 60.0
"""Between two walks of the data folder: a walk costs a call a file."""


FULL_BYTES: Final = 16 * 1024 * 1024
"""A disk with less counts as full, whatever the settings allow: the next segment of Postgres' log has this size."""
NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)


class DiskFull(ServiceUnavailable):
    """A file could not be written for want of room; what was written of it is deleted."""

    title = "The disk is full"
    hint = "Make room; what waits goes on by itself."


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Write `what` in this block. Raises DiskFull where the system says that there is no room."""
    try:
        yield
    except Exception as error:
        # some libraries and tools only quote the system's words, and copying a folder collects its errors
        if getattr(error, "errno", None) in NO_ROOM or os.strerror(errno.ENOSPC) in str(error):
            raise DiskFull(f"there is no room on the disk for {what}") from error
        raise


def find_full(home: Path) -> str | None:
    """Which disk is full, in words with what to do; None while each has room for the database's log."""
    for what, folder in places(home).items():
        if (free := free_bytes(folder)) < FULL_BYTES:
            return f"the disk of {what} is full ({free / 1_000_000:.1f} MB left); make room, and it goes on by itself"
    return None


def find_shortage(settings: Settings, database_bytes: int = 0) -> str | None:
    """Why there is too little room, in words with what to do; None when there is enough.

    database_bytes: the database's size, 0 where it is not known.
    """
    for what, folder in places(settings.home).items():
        if (free := free_bytes(folder)) < settings.min_free_gb * GB:
            return (
                f"the disk of {what} has {free / GB:.1f} GB left, less than"
                f" PRECEPTOR_MIN_FREE_GB={settings.min_free_gb:g}; make room, or lower it"
            )
    if (full := find_full(settings.home)) is not None:
        return full
    if settings.max_home_gb and (size := measured.size(settings.home)) > settings.max_home_gb * GB:
        return (
            f"the data folder has {size / GB:.1f} GB, more than PRECEPTOR_MAX_HOME_GB={settings.max_home_gb:g};"
            " delete what is not needed, or raise it"
        )
    if settings.max_database_gb and database_bytes > settings.max_database_gb * GB:
        return (
            f"the database has {database_bytes / GB:.1f} GB, more than PRECEPTOR_MAX_DATABASE_GB="
            f"{settings.max_database_gb:g}; raise it, or keep less (PRECEPTOR_KEEP_UNUSED_ROLLOUTS_DAYS)"
        )
    return None


def places(home: Path) -> dict[str, Path]:
    """The folders whose disks must not fill up, by what they are: the data folder, those of weights where they are
    disks of their own, and an embedded database's files."""
    found = {"the data folder": home}
    found |= {name: home / name for name in ("artifacts", "checkpoints") if (home / name).is_mount()}
    database = home / "postgres" / "pgdata"
    if database.is_symlink():  # otherwise it is on the data folder's disk
        found["the database"] = database.resolve()
    return found


def free_bytes(folder: Path) -> int:
    """What an ordinary user may still write on the disk of `folder`, or of the next folder above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


class Measured:
    """Sizes of folders, walked at most once in `SIZE_KEPT_SECONDS`."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._sizes: dict[Path, tuple[float, int]] = {}

    def size(self, folder: Path) -> int:
        """Bytes of the files below `folder`, and of an embedded database wherever it lies."""
        with self._turn:
            at, size = self._sizes.get(folder, (-SIZE_KEPT_SECONDS, 0))
            if time.monotonic() - at >= SIZE_KEPT_SECONDS:
                size = sum(tree_bytes(place) for place in places(folder).values())
                self._sizes[folder] = (time.monotonic(), size)
            return size


measured: Final = Measured()


def tree_bytes(folder: Path) -> int:
    """Bytes on disk of every file below `folder`; what cannot be read or goes meanwhile counts 0. Links are not
    followed."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
            except OSError:
                continue
    return total
