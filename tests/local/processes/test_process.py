"""What a guarded process promises: its output kept, and nothing of it left running."""

import signal
from pathlib import Path

import psutil
import pytest

from services.local.processes.process import GuardedProcess
from tests.local.commands import SLEEP, await_gone, python

pytestmark = pytest.mark.integration


def test_a_log_is_rotated_at_its_size_and_keeps_every_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.local.processes.process.LOG_MAX_BYTES", 100_000)
    monkeypatch.setattr("services.local.processes.process.LOG_BACKUPS", 9)
    code = "for n in range(50_000): print(n)"
    process = GuardedProcess(python(code), log=tmp_path / "a.log", env={}, cwd=tmp_path)
    assert process.wait(120.0) == 0
    logs = [*sorted(tmp_path.glob("a.log.*"), reverse=True), tmp_path / "a.log"]
    assert len(logs) > 2
    assert b"".join(log.read_bytes() for log in logs).split() == [str(n).encode() for n in range(50_000)]


def test_a_killed_guard_takes_its_command_with_it(tmp_path: Path) -> None:
    process = GuardedProcess(SLEEP, log=tmp_path / "a.log", env={}, cwd=tmp_path)
    command = psutil.Process(process.pid)
    guard = command.parent()
    assert guard is not None
    guard.kill()
    await_gone([command])
    assert process.wait(120.0) == -signal.SIGKILL


def test_what_a_command_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        "for new in (True, False):\n"
        "    child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'], start_new_session=new)\n"  # noqa: E501
        "    print(child.pid)"
    )
    process = GuardedProcess(python(code), log=tmp_path / "a.log", env={}, cwd=tmp_path)
    assert process.wait(120.0) == 0
    pids = (tmp_path / "a.log").read_text().split()
    assert len(pids) == 2
    assert not any(psutil.pid_exists(int(pid)) for pid in pids)
