"""The common part of embedded servers: a folder with its lock, a password, and a port found by trying.

Not covered: a server's start command and its readiness check.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Self
from urllib.parse import quote

from services.local.layout import free_port, keep_password
from services.local.processes.lock import FolderLock
from services.local.processes.process import GuardedProcess, LocalError, ProcessFailed, Runnable, describe_status, tail

LOCK_WAIT_SECONDS = 10.0  # time that a killed predecessor's guards may need
PORT_ATTEMPTS = 5  # each on another free port


class EmbeddedServer(Runnable, ABC):
    """One server on the folder `data_dir`, which holds its data, password, lock and log. A context manager."""

    name: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, data_dir: Path, port: int | None = None, durable: bool = True, log: Path | None = None) -> None:
        """Describe it; `start` starts it. `durable=False` (tests) trades the data's safety for speed."""
        super().__init__()
        self._folder = data_dir.absolute()
        self._port = port
        self._durable = durable
        self.log = log or self._folder / f"{self.name}.log"

    @property
    def port(self) -> int:
        """Where it listens. Errors: LocalError before the first start."""
        if self._port is None:
            raise LocalError(f"{self.title} has not been started, so it has no port yet")
        return self._port

    @property
    def quoted_password(self) -> str:
        """The generated password as a URL carries it."""
        return quote(keep_password(self._folder / "password"), safe="")

    def start(self) -> Self:
        """Start and wait until it accepts connections. Errors: FolderInUse, ProcessFailed, LocalError."""
        if self._process is not None and self._process.poll() is None:
            raise LocalError(f"this {self.title} is running already")
        self._make_folder()
        lock = FolderLock(self._folder / "lock", LOCK_WAIT_SECONDS)
        try:
            self._prepare()
            self._start_on_a_port(lock)
        finally:
            lock.release()  # the guard, the server and its children hold it from here on
        return self

    def is_ready(self) -> bool:
        """True from the end of `start` on: it waits itself."""
        return self.poll() is None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start_on_a_port(self, lock: FolderLock) -> None:
        for attempt in range(1, PORT_ATTEMPTS + 1):
            port = self._port or free_port()
            log_start = self.log.stat().st_size if self.log.exists() else 0
            process = self._launch(port, lock.fd)
            self._process = process  # from here on `stop` and `kill` end it, from another thread too
            if self._await_ready(process, port):
                self._port = port
                return
            status = process.stop()
            with self.log.open("rb") as log:
                log.seek(log_start)
                said = log.read()
            if b"Address already in use" not in said:
                raise ProcessFailed(
                    f"{self.title} did not become ready ({describe_status(status)}); its log {self.log} ends:\n"
                    f"{tail(self.log)}"
                )
            if self._port is not None or attempt == PORT_ATTEMPTS:
                break
        raise ProcessFailed(
            f"{self.title} cannot listen on port {port}: another process has it",
            hint="Stop that process, or leave the port out to have a free one chosen.",
        )

    @abstractmethod
    def _make_folder(self) -> None:
        """Make the folder with the mode this server needs."""

    @abstractmethod
    def _prepare(self) -> None:
        """Prepare the folder under its lock before the server is launched."""

    @abstractmethod
    def _launch(self, port: int, lock_fd: int) -> GuardedProcess:
        """Start it on this port; it inherits the lock."""

    @abstractmethod
    def _await_ready(self, process: GuardedProcess, port: int) -> bool:
        """True once this very server, not another on the port, accepts connections; False if it ended or hangs."""
