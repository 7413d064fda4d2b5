"""A disk small enough to be filled: a memory file system, which only root can make."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

MB = 1_000_000
PREFIX = "preceptor-disk-"


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[str | None]:
    """Make `folder` a disk of its own of this size until the block ends; yields why that cannot be, or None."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=711", "tmpfs", str(folder)]
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
        for size in (1 << 20, 4096, 1):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass
    return filler


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of 20 MB of its own; skips, and says why, where none can be made."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        with mounted(folder, "20M") as problem:
            if problem is not None:
                pytest.skip(f"no disk can be mounted: {problem}")
            yield folder
    finally:
        folder.rmdir()
