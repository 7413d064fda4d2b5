"""The sandbox's own processes as the server holds them: the spawner, and a keeper for each slot and flavour.

To the runner they are a `Backend` with its `Keeper`s; `docker.backend` is another one.
"""

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Protocol, Self

from sandbox.contract import Level
from sandbox.errors import IsolationRefused
from sandbox.host.following import SETUP_SECONDS
from sandbox.host.launch import DEATH_SECONDS, START_SECONDS
from sandbox.inside import wire
from sandbox.inside.wire import Hello, Job, KeeperSpec, Outcome
from sandbox.server.languages import Toolchains
from sandbox.settings import SandboxSettings

STOP_SECONDS = 20.0
OPEN_PAUSES_SECONDS = (0.1, 0.2, 0.4, 0.8)
_BOOTSTRAP = """
import sys
sys.path.insert(0, sys.argv[1])
from sandbox.host.spawner import main
main(int(sys.argv[2]), sys.argv[3], tuple(sys.argv[4:]))
"""


_STRENGTH = {Level.FULL: 2, Level.FULL_NOCGROUP: 1, Level.CONTAINER: 1, Level.WEAK: 0}


def check_level(level: Level, minimum: Level) -> None:
    """Raises IsolationRefused for a level below the minimum."""
    if _STRENGTH[level] < _STRENGTH[minimum]:
        raise IsolationRefused(f"this machine allows the level {level}, the settings ask for {minimum}")


class KeeperLost(Exception):
    """The keeper ended or does not answer; this implies nothing about the code."""


class KeeperGone(KeeperLost):
    """The keeper ended without an answer."""


class Keeper(Protocol):
    """Runs one job after another, for one slot."""

    @property
    def has_ended(self) -> bool: ...

    async def ask(self, job: Job) -> Outcome:
        """Have a job run. Raises KeeperLost."""
        ...

    def cancel(self) -> None:
        """End the run that goes on, if one does; it is answered all the same."""
        ...

    def close(self) -> None:
        """Let the keeper end, and with it any run."""
        ...


class Backend(Protocol):
    """Where keepers come from, and how well their runs are isolated."""

    @property
    def level(self) -> Level: ...

    @property
    def toolchains(self) -> Toolchains: ...

    @property
    def is_ready(self) -> bool:
        """Whether keepers can be made now, without a restart first."""
        ...

    async def open(self, spec: KeeperSpec) -> Keeper:
        """A new keeper. Raises KeeperLost, IsolationRefused, OSError."""
        ...

    async def close(self) -> None:
        """End every run, and clean up after them."""
        ...


class KeeperProcess:
    """The connection to one keeper of the spawner's. Made by `open`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._is_asked = False

    @classmethod
    async def open(cls, connection: socket.socket) -> Self:
        """Wait until its zygote is warm. Raises KeeperLost."""
        keeper = cls(*await asyncio.open_unix_connection(sock=connection))
        try:
            async with asyncio.timeout(2 * START_SECONDS):
                hello = wire.unpack_hello(await keeper._receive())
            if hello.level is None:
                raise KeeperLost(f"the zygote could not be started: {hello.problem}")
        except TimeoutError:
            keeper.close()
            raise KeeperLost("the zygote did not start in time") from None
        except BaseException:
            keeper.close()
            raise
        return keeper

    @property
    def has_ended(self) -> bool:
        return self._reader.at_eof() or self._writer.is_closing()

    async def ask(self, job: Job) -> Outcome:
        """Have a job run. Raises KeeperLost."""
        self._is_asked = True
        try:
            async with asyncio.timeout(SETUP_SECONDS + job.wall_seconds + 4 * DEATH_SECONDS):
                self._writer.write(wire.pack(job))
                await self._writer.drain()
                return wire.unpack_outcome(await self._receive())
        except TimeoutError:
            raise KeeperLost("the run's keeper did not answer in time") from None
        except ConnectionError as error:
            raise KeeperLost(f"the run's keeper is gone: {error}") from error
        finally:
            self._is_asked = False

    async def _receive(self) -> bytes:
        try:
            (length,) = wire.HEADER.unpack(await self._reader.readexactly(wire.HEADER.size))
            return await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            raise KeeperGone("the run's keeper ended without an answer") from None

    def cancel(self) -> None:
        """End the run that goes on, if one does; it is answered all the same."""
        if self._is_asked and not self._writer.is_closing():
            self._writer.write(wire.CANCEL)

    def close(self) -> None:
        """Let the keeper end, and with it its zygote and any run."""
        self._writer.close()


class Namespaces:
    """The backend that isolates by this machine's own means: a spawner, replaced when it dies. Made by `start`."""

    def __init__(self, settings: SandboxSettings) -> None:
        self._settings = settings
        self._starting = asyncio.Lock()
        self._spawner: Spawner | None = None
        self._is_closed = False
        self.toolchains = Toolchains.find()
        self.level = Level.FULL

    @classmethod
    async def start(cls, settings: SandboxSettings) -> Self:
        """Start the spawner. Raises IsolationRefused, OSError."""
        backend = cls(settings)
        await backend._replace(None)
        return backend

    @property
    def is_ready(self) -> bool:
        """Whether there is a spawner. Without one the next run starts another."""
        return self._spawner is not None and self._spawner.is_alive

    async def open(self, spec: KeeperSpec) -> KeeperProcess:
        """A new keeper, forked by the spawner. One that ends before it is ready has run no code; another is asked for
        a few times: the cause may be about to end the spawner too.

        Raises KeeperLost, IsolationRefused, OSError.
        """
        for pause in OPEN_PAUSES_SECONDS:
            try:
                return await self._open_once(spec)
            except KeeperGone:
                await asyncio.sleep(pause)
        return await self._open_once(spec)

    async def _open_once(self, spec: KeeperSpec) -> KeeperProcess:
        spawner = self._spawner or await self._replace(None)
        try:
            connection = spawner.connect(spec)
        except (BrokenPipeError, ConnectionResetError):
            connection = (await self._replace(spawner)).connect(spec)
        return await KeeperProcess.open(connection)

    async def _replace(self, lost: "Spawner | None") -> "Spawner":
        """The spawner after this one: a new one, or one that another caller has started meanwhile.

        Raises KeeperLost after `close`, IsolationRefused, OSError; then there is none, and the next caller tries
        again.
        """
        async with self._starting:
            if lost is not None and self._spawner is lost:
                self._spawner = None
                await asyncio.to_thread(lost.stop)
            if self._is_closed:
                raise KeeperLost("the sandbox is stopping")
            if self._spawner is None:
                self._spawner = await self._start_spawner()
            return self._spawner

    async def _start_spawner(self) -> "Spawner":
        spawner, hello = await asyncio.to_thread(Spawner.start, self._settings, self.toolchains.packages)
        try:
            if hello.level is None:
                advice = "Allow unprivileged user namespaces, or choose the backend docker"
                if self._settings.minimum_level != Level.WEAK:
                    advice += ", or accept the level weak by name"
                raise IsolationRefused(f"cannot isolate: {hello.problem}. {advice}")
            level = Level(hello.level)
            check_level(level, self._settings.minimum_level)
        except IsolationRefused:
            await asyncio.to_thread(spawner.stop)
            raise
        self.level = level
        return spawner

    async def close(self) -> None:
        """End the spawner, which cleans up after every run."""
        self._is_closed = True
        async with self._starting:
            spawner, self._spawner = self._spawner, None
            if spawner is not None:
                await asyncio.to_thread(spawner.stop)


class Spawner:
    """The spawner's process and our end of its socket."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket) -> None:
        self._process = process
        self._control = control

    @classmethod
    def start(cls, settings: SandboxSettings, packages: tuple[str, ...]) -> tuple[Self, Hello]:
        """Start it and wait for its first words. Raises OSError, IsolationRefused."""
        if sys.platform != "linux":
            raise IsolationRefused(f"runs are isolated by Linux; this is {sys.platform}")
        control, other_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        interpreter = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
        weak_folder = str(settings.data_dir.resolve()) if settings.minimum_level == Level.WEAK else ""
        parent = str(Path(__file__).resolve().parents[2])
        arguments = [parent, str(other_end.fileno()), weak_folder, *packages]
        with other_end:
            process = subprocess.Popen(
                [interpreter, "-I", "-S", "-B", "-c", _BOOTSTRAP, *arguments],
                pass_fds=[other_end.fileno()],
                env={"PATH": os.defpath, "LANG": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is for the server, which then stops the spawner
            )
        spawner = cls(process, control)
        control.settimeout(START_SECONDS)
        try:
            said = control.recv(wire.MAX_PACKET_BYTES)
        except OSError as error:
            spawner.stop()
            raise IsolationRefused(f"the spawner did not start: {error}") from error
        if not said:
            spawner.stop()
            raise IsolationRefused("the spawner ended at its start")
        return spawner, wire.unpack_hello(said)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def connect(self, spec: KeeperSpec) -> socket.socket:
        """Have a keeper forked; gives the connection to it. Raises OSError when the spawner is gone."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                socket.send_fds(self._control, [wire.pack_packet(spec)], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        return ours

    def stop(self) -> None:
        """Close its socket and wait until it, and every run, is gone."""
        self._control.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
