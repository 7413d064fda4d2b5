"""The level `weak`, on a machine that denies namespaces: only when asked for by name, and what it still holds."""

import os
import shutil
import sys
import tempfile
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.contract import Level, Limits, RunResult, Status
from sandbox.inside.weak import find_closed_folder
from tests.sandbox.conftest import ORDINARY_UID, SECRET, SandboxServer, host_processes, skip_unless_root

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    """A folder that an ordinary user may write to."""
    path = Path(tempfile.mkdtemp(prefix="weak-test-"))
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def weak(data_dir: Path) -> Iterator[SandboxServer]:
    arguments = ("--minimum-level", "weak", "--data-dir", str(data_dir))
    with SandboxServer(without_namespaces=True, arguments=arguments) as server:
        yield server
    assert list(data_dir.iterdir()) == []


def run(server: SandboxServer, code: str, limits: Limits | None = None) -> RunResult:
    return server.run(textwrap.dedent(code), limits=limits)


def test_without_being_asked_for_by_name_the_server_refuses_to_start(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="did not start: 3"), SandboxServer(without_namespaces=True):
        pass
    assert "Operation not permitted" in capfd.readouterr().out


def test_root_s_python_under_a_closed_folder_is_said_in_one_sentence(
    data_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    skip_unless_root()
    closed = find_closed_folder((os.path.realpath(sys.base_prefix),))
    if closed is None:
        pytest.skip("needs a Python that other users cannot reach")
    arguments = ("--minimum-level", "weak", "--data-dir", str(data_dir))
    with (
        pytest.raises(RuntimeError, match="did not start: 3"),
        SandboxServer(without_namespaces=True, user=0, arguments=arguments),
    ):
        pass
    assert f"who may not enter {closed}, where its Python is" in capfd.readouterr().out


def test_the_first_folder_that_others_may_not_enter_is_found() -> None:
    with tempfile.TemporaryDirectory() as name:
        inner = Path(name, "shut", "inner")
        inner.mkdir(parents=True)
        for folder in (Path(name), inner.parent, inner):
            folder.chmod(0o755)
        assert find_closed_folder((str(inner), "/usr/not/there")) is None
        inner.parent.chmod(0o750)
        assert find_closed_folder(("/usr", str(inner))) == str(inner.parent)


def test_every_result_says_weak(weak: SandboxServer) -> None:
    result = run(weak, "print(1 + 1)")
    assert (result.status, result.stdout, result.isolation) == (Status.OK, "2\n", Level.WEAK)
    assert weak.health().level == Level.WEAK


def test_files_go_in_and_come_back_and_nothing_stays(weak: SandboxServer, data_dir: Path) -> None:
    code = "import os\nopen('out', 'w').write(open('a/in').read() * 2)\nos.mkdir('shut', 0)"
    result = weak.run(code, files={"a/in": b"x"}, collect=("out", "shut"))
    assert result.files == {"out": b"xx"}
    (folder,) = data_dir.iterdir()
    assert len(list(folder.iterdir())) == weak.health().slots  # their zygotes' programs


def test_time_memory_and_output_are_bounded(weak: SandboxServer) -> None:
    assert run(weak, "while True: pass", Limits(wall_seconds=30, cpu_seconds=1)).status == Status.TIMEOUT
    assert run(weak, "import time; time.sleep(60)", Limits(wall_seconds=0.5)).status == Status.TIMEOUT
    bomb = "data = []\nwhile True: data.append(bytearray(1 << 20))"
    assert run(weak, bomb, Limits(wall_seconds=30, memory_bytes=96 << 20)).status == Status.MEMORY
    assert run(weak, "while True: print('x' * 999)", Limits(wall_seconds=30)).status == Status.OUTPUT


def test_files_of_the_host_can_be_neither_read_nor_written(weak: SandboxServer, data_dir: Path) -> None:
    repository = Path(__file__).resolve().parents[3]
    code = f"""
    import os
    server = "/proc/{weak.process.pid}"
    for path in ("/etc/passwd", "/proc/self/environ", server + "/environ", {str(repository / "pyproject.toml")!r}):
        try:
            print(open(path).read())
        except PermissionError:
            pass
        except FileNotFoundError:
            pass
    for folder in ("/", "/home", "/proc", {str(data_dir)!r}, {str(repository)!r}):
        try:
            print(os.listdir(folder))
        except PermissionError:
            pass
    for path in ("/tmp/x", "/usr/x", {str(data_dir / "x")!r}, "/dev/shm/x"):
        try:
            open(path, "w")
            print("wrote", path)
        except OSError:
            pass
    """
    result = run(weak, code)
    assert (result.status, result.stdout) == (Status.OK, "")
    assert SECRET not in result.stdout + result.stderr


def test_modes_and_times_of_the_host_s_files_cannot_be_changed(weak: SandboxServer) -> None:
    """Landlock leaves them open, and some may belong to the server's own user."""
    with tempfile.NamedTemporaryFile() as file:
        if os.getuid() == 0:
            os.chown(file.name, ORDINARY_UID, ORDINARY_UID)
        before = os.stat(file.name)
        code = f"""
        import os
        for change in (lambda path: os.chmod(path, 0), lambda path: os.utime(path, (1, 1)),
                       lambda path: os.chown(path, -1, os.getgid()), lambda path: os.setxattr(path, "user.x", b"x")):
            try:
                change({file.name!r})
                print("changed")
            except OSError:
                pass
        """
        assert (run(weak, code).status, run(weak, code).stdout) == (Status.OK, "")
        assert os.stat(file.name) == before


def test_no_socket_can_be_made(weak: SandboxServer) -> None:
    assert "PermissionError" in run(weak, "import socket; socket.socket()").stderr


def test_a_datagram_pair_which_could_be_pointed_at_the_host_s_sockets_cannot_be_made(weak: SandboxServer) -> None:
    code = "import socket\nsocket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)"
    assert "PermissionError" in run(weak, code).stderr


def test_the_server_cannot_be_signalled_or_traced(weak: SandboxServer) -> None:
    code = f"""
    import ctypes, os
    for pid in ({weak.process.pid}, os.getppid()):
        try:
            os.kill(pid, 9)
            print("killed", pid)
        except PermissionError:
            pass
        print(ctypes.CDLL(None).ptrace(16, pid, 0, 0))
    """
    result = run(weak, code)
    assert (result.status, result.stdout) == (Status.OK, "-1\n-1\n")
    assert run(weak, "print('alive')").stdout == "alive\n"


def test_daemons_and_fork_bombs_die_with_the_run(weak: SandboxServer) -> None:
    token = uuid.uuid4().hex
    daemon = f"""
    import os, sys, time
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)", "{token}"])
        os._exit(0)
    time.sleep(0.5)
    """
    assert run(weak, daemon).status == Status.OK
    assert host_processes(token) == []
    bomb = "import os\nwhile True:\n    with __import__('contextlib').suppress(OSError): os.fork()"
    result = run(weak, bomb, Limits(wall_seconds=1, cpu_seconds=30, processes=8))
    assert result.status == Status.TIMEOUT
    assert run(weak, "print('alive')").stdout == "alive\n"


def test_folders_nested_by_the_thousand_are_removed_and_break_nothing(weak: SandboxServer, data_dir: Path) -> None:
    code = """
    import os
    for number in range(2200):  # deeper than a path can be long
        os.mkdir("d")
        open("f", "w").close()
        os.symlink("/", "link")
        os.mkdir("shut", 0)
        os.chdir("d")
    print("made")
    """
    before = weak.health()
    result = weak.run(textwrap.dedent(code))
    assert (result.status, result.stdout) == (Status.OK, "made\n")
    assert run(weak, "print(2)").stdout == "2\n"
    (folder,) = data_dir.iterdir()
    assert len(list(folder.iterdir())) == before.slots  # their zygotes' programs
    assert weak.health().runs_retried == before.runs_retried


def test_processes_and_threads_work(weak: SandboxServer) -> None:
    code = """
    import subprocess, sys, tempfile, threading
    threading.Thread(target=print, args=("thread",)).start()
    print(subprocess.run([sys.executable, "-c", "print(40 + 2)"], capture_output=True, text=True).stdout.strip())
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"x")
    """
    assert sorted(run(weak, code).stdout.split()) == ["42", "thread"]
