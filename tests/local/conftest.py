"""Folders for tests of the local servers."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.local.servers.postgres import EmbeddedPostgres


@pytest.fixture(autouse=True)
def heard_ctrl_c() -> Iterator[None]:
    """Ctrl-C is heard, as in a terminal: a shell that runs the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder other users can walk to; pytest's own temporary folders are closed."""
    folder = Path(tempfile.mkdtemp(prefix="preceptor-tests-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def initialised(server_folder: Path) -> Path:
    """The folder of a Postgres that has run once: a copy of it saves a test the second of initialising its own."""
    folder = server_folder / "initialised"
    with EmbeddedPostgres(folder, durable=False):
        return folder


@pytest.fixture
def postgres_folder(open_folder: Path, initialised: Path) -> Path:
    """A Postgres folder of the test's own, initialised."""
    subprocess.run(["cp", "-a", initialised, open_folder / "postgres"], check=True)
    return open_folder / "postgres"
