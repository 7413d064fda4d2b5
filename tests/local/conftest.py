"""Folders for tests of the local servers."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder other users can walk to; pytest's own temporary folders are closed."""
    folder = Path(tempfile.mkdtemp(prefix="preceptor-tests-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)
