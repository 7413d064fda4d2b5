"""A disk small enough to be filled."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MB = 1_000_000


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of 20 MB of its own."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a disk needs root")
    folder = Path(tempfile.mkdtemp(prefix="preceptor-disk-"))
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20M", "tmpfs", folder], check=False).returncode:
        folder.rmdir()
        pytest.skip("this machine lets nobody mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()
