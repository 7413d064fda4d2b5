"""A small disk that can be filled to its last byte: a memory file system, which only root can make."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

SIZE = "1500m"
_CHUNK = 1 << 20


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[str | None]:
    """Make `folder` a disk of its own until the block ends; yields why that could not be done, or None."""
    folder.mkdir(mode=0o711, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=711", "tmpfs", str(folder)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        yield str(error)
        return
    if made.returncode:
        yield made.stderr.strip() or "mount failed"
        return
    try:
        yield None
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take every free byte of the folder's disk; returns the file that holds them, to be deleted."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (_CHUNK, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(os.urandom(1) * size):
                    pass
    return filler
