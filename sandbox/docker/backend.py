"""The backend `docker`: a locked-down container for each run, for machines that forbid namespaces to ordinary programs
(macOS, recent Ubuntu) but have a Docker engine. Chosen by name only.

A container has no network, a read-only root, no capability, no way to new privileges, an ordinary user, one core,
limits of memory and processes, and tmpfs for writable folders; it is removed after its one job. Not protected against:
the engine runs as root and anyone who reaches its socket owns the machine, so this server is as trusted as the engine;
bugs in the kernel, as at every level. It costs a container's start for each run, two for a judgement.
"""

import asyncio
import contextlib
import json
import os
import socket
import struct
from dataclasses import replace
from typing import IO, Final, Self, cast

import docker
from docker.errors import DockerException, ImageNotFound, NotFound
from docker.types import LogConfig
from requests.exceptions import RequestException

from sandbox.contract import Level, Limits, RunRequest
from sandbox.errors import IsolationRefused
from sandbox.host import container_init
from sandbox.host.following import SETUP_SECONDS
from sandbox.host.program import read_modules
from sandbox.inside import wire
from sandbox.inside.isolation import BOX, BOX_BYTES, BOX_INODES, ENVIRONMENT, INSIDE_UID, SHM_BYTES
from sandbox.inside.wire import Ending, Flavour, Job, KeeperSpec, Outcome, Terms
from sandbox.inside.zygote import DEATH_SECONDS
from sandbox.server.languages import PROGRAMS, Toolchain, Toolchains, make_job
from sandbox.server.processes import KeeperLost

_LABEL: Final = "preceptor-sandbox"
_OVERHEAD_BYTES: Final = 96 << 20
"""Of a container beside its run's memory: PID 1 and kernel memory."""
_ENGINE_SECONDS: Final = 60
_STREAM_HEADER: Final = struct.Struct(">BxxxI")
_STDERR: Final = 2
_KEPT_COMPLAINT: Final = 4000
_BOOTSTRAP: Final = """
import json, os, sys
def read(size):
    data = b""
    while len(data) < size:
        piece = os.read(0, size - len(data))
        if not piece: sys.exit("no program was sent")
        data += piece
    return data
modules, environment = json.loads(read(int.from_bytes(read(4), "big")))
for path, text in modules.items():
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
os.execve(sys.executable, [sys.executable, "main.py"], environment)
"""
_PROBE: Final = f"""
import importlib.util, json, shutil
found = {{name: shutil.which(name) for name in {tuple(PROGRAMS.values())}}}
print(json.dumps([found, importlib.util.find_spec("numpy") is not None]))
"""


def _read_program() -> bytes:
    """The first message to a container: the files of its program and the environment of every run."""
    files = {"main.py": container_init.MAIN.encode(), **read_modules(*container_init.FOLDERS)}
    return json.dumps([{path: text.decode() for path, text in files.items()}, ENVIRONMENT]).encode("ascii")


class DockerEngine:
    """Makes keepers whose runs are containers. Create with `start`, and close."""

    level = Level.CONTAINER
    is_ready = True

    def __init__(self, api: docker.APIClient, image: str) -> None:
        self._api = api
        self._image = image
        self._owner = f"{socket.gethostname()}/{os.getpid()}"
        self.program = _read_program()
        self.toolchains = Toolchains({})

    @classmethod
    async def start(cls, image: str) -> Self:
        """Find the engine, the image and the languages it can run. Raises IsolationRefused."""
        try:
            engine = cls(await asyncio.to_thread(_connect, image), image)
            await asyncio.to_thread(engine._sweep)
            engine.toolchains = await engine._find_toolchains()
        except (DockerException, RequestException, KeeperLost) as error:
            raise IsolationRefused(f"Docker cannot isolate: {error}") from error
        return engine

    async def _find_toolchains(self) -> Toolchains:
        request = RunRequest(code=_PROBE, limits=Limits(wall_seconds=30, cpu_seconds=30))
        keeper = await self.open(KeeperSpec(0, Flavour.LEAN))
        outcome = await keeper.ask(make_job(request, Toolchain("main.py")))
        if outcome.exit_code != 0:
            said = outcome.stderr.decode(errors="replace") or outcome.fault
            raise IsolationRefused(f"the first run in a container ended as {outcome.ending}: {said}")
        programs, has_numpy = json.loads(outcome.stdout)
        return Toolchains.choose(programs, has_numpy=has_numpy, where=f"the image {self._image}")

    async def open(self, spec: KeeperSpec) -> "ContainerKeeper":
        """A keeper; its containers are made when it is asked."""
        return ContainerKeeper(self, spec.flavour)

    async def close(self) -> None:
        """Remove all remaining containers."""
        with contextlib.suppress(DockerException, RequestException):
            await asyncio.to_thread(self._remove_all, self._owner)

    def _sweep(self) -> None:
        """Remove the containers of killed servers of this machine."""
        host = socket.gethostname()
        for each in self._api.containers(all=True, filters={"label": _LABEL}):
            owner = each["Labels"][_LABEL]
            owner_host, _, pid = owner.partition("/")
            if owner_host == host and not _is_alive(int(pid)):
                self._remove_all(owner)

    def _remove_all(self, owner: str) -> None:
        for each in self._api.containers(all=True, filters={"label": f"{_LABEL}={owner}"}):
            self.remove(each["Id"])

    def create(self, job: Job) -> str:
        """Make the container of one job; gives its id."""
        own = f"mode=700,uid={INSIDE_UID},gid={INSIDE_UID},nosuid,nodev,nr_inodes={BOX_INODES}"
        memory_bytes = job.memory_bytes + _OVERHEAD_BYTES
        host_config = self._api.create_host_config(
            network_mode="none",
            ipc_mode="none",
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            pids_limit=job.processes + container_init.NUM_OWN_TASKS,
            mem_limit=memory_bytes,
            memswap_limit=memory_bytes,
            nano_cpus=10**9,
            tmpfs={
                BOX: f"{own},exec,size={BOX_BYTES}",
                "/tmp": f"{own},exec,size={BOX_BYTES}",  # noqa: S108 -- the run's own
                "/dev/shm": f"{own},noexec,size={SHM_BYTES}",  # noqa: S108 -- the run's own
            },
            log_config=LogConfig(type="none"),
        )
        made = self._api.create_container(
            self._image,
            entrypoint=["python3", "-I", "-S", "-B", "-c", _BOOTSTRAP],
            user=f"{INSIDE_UID}:{INSIDE_UID}",
            working_dir=BOX,
            hostname="sandbox",
            stdin_open=True,
            healthcheck={"test": ["NONE"]},
            labels={_LABEL: self._owner},
            host_config=host_config,
        )
        return str(made["Id"])

    def attach_and_start(self, container_id: str) -> IO[bytes]:
        """Start it; gives its standard streams as the library's socket, which must be kept while they are used."""
        stream = self._api.attach_socket(container_id, {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
        self._api.start(container_id)
        return cast(IO[bytes], stream)

    def ran_out_of_memory(self, container_id: str) -> bool:
        """Whether the kernel ended it for want of memory."""
        return bool(self._api.inspect_container(container_id)["State"]["OOMKilled"])

    def remove(self, container_id: str) -> None:
        """Kill and remove it."""
        with contextlib.suppress(NotFound):
            self._api.remove_container(container_id, force=True, v=True)


def _connect(image: str) -> docker.APIClient:
    api = docker.from_env(timeout=_ENGINE_SECONDS).api
    try:
        api.inspect_image(image)
    except ImageNotFound:
        raise IsolationRefused(f"the engine has no image {image}; pull one that has python3") from None
    return api


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class _Container:
    """One job's container. `with` removes it."""

    def __init__(self, engine: DockerEngine, container_id: str) -> None:
        self._engine = engine
        self._id = container_id
        self._complaint = b""
        self._stream: IO[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def start(self, terms: Terms, job: Job) -> None:
        """Start it and hand it the job. Raises DockerException, RequestException, OSError."""
        self._stream = await asyncio.to_thread(self._engine.attach_and_start, self._id)
        raw = cast(
            socket.socket, getattr(self._stream, "_sock", self._stream)
        )  # wrapped or not, as the engine is reached
        self._reader, self._writer = await asyncio.open_connection(sock=raw.dup())
        self._writer.write(wire.pack_framed(self._engine.program))
        self._writer.write(wire.pack_framed(wire.pack_packet(terms)))
        self._writer.write(wire.pack(replace(job, partner=None)))
        await self._writer.drain()

    async def follow(self, partner: "_Container | None") -> Outcome:
        """The outcome of its job; messages of the run to its partner are passed on. Raises KeeperLost, OSError."""
        letters = bytearray()
        while True:
            try:
                kind, length = _STREAM_HEADER.unpack(await self._reader.readexactly(_STREAM_HEADER.size))
                data = await self._reader.readexactly(length)
            except asyncio.IncompleteReadError:
                return await self._explain_end()
            if kind == _STDERR:
                self._complaint = (self._complaint + data)[-_KEPT_COMPLAINT:]
                continue
            letters += data
            for letter, body in wire.take_lettered(letters):
                if letter == wire.OUTCOME_LETTER:
                    return wire.unpack_outcome(body)
                if partner is not None:
                    partner.tell(letter, body)

    def tell(self, letter: bytes, body: bytes) -> None:
        """Pass on a letter to its container, which may have ended. Little is ever under way: `wire.WINDOW_BYTES`."""
        assert self._writer is not None
        if not self._writer.is_closing():
            self._writer.write(wire.pack_lettered(letter, body))

    async def _explain_end(self) -> Outcome:
        if await asyncio.to_thread(self._engine.ran_out_of_memory, self._id):
            return Outcome(Ending.MEMORY)
        complaint = self._complaint.decode(errors="replace").strip()
        raise KeeperLost(f"the container ended without an answer: {complaint}".rstrip(": "))

    def cancel(self) -> None:
        """Have the run ended; its outcome is still reported."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.write_eof()

    async def remove(self) -> None:
        """End it by force."""
        if self._writer is not None:
            self._writer.close()
        if self._stream is not None:
            self._stream.close()
        with contextlib.suppress(DockerException, RequestException):
            await asyncio.to_thread(self._engine.remove, self._id)


class ContainerKeeper:
    """Runs each job in a container of its own, and a job's partner in another one beside it."""

    has_ended = False

    def __init__(self, engine: DockerEngine, flavour: Flavour) -> None:
        self._engine = engine
        self._terms = Terms(
            flavour,
            has_cgroup=False,
            has_processor_counter=False,
            owns_user=False,
            readable=(),
            in_container=True,
        )
        self._running: list[_Container] = []
        self._is_cancelled = False

    async def ask(self, job: Job) -> Outcome:
        """Have a job run. Raises KeeperLost."""
        jobs = [job] if job.partner is None else [job, job.partner]
        self._is_cancelled = False
        try:
            async with asyncio.timeout(SETUP_SECONDS + job.wall_seconds + 4 * DEATH_SECONDS):
                for each in jobs:
                    self._running.append(_Container(self._engine, await asyncio.to_thread(self._engine.create, each)))
                await asyncio.gather(
                    *(each.start(self._terms, its) for each, its in zip(self._running, jobs, strict=True))
                )
                if self._is_cancelled:
                    self.cancel()
                return await self._follow()
        except TimeoutError:
            raise KeeperLost("the run's container did not answer in time") from None
        except (DockerException, RequestException, OSError) as error:
            raise KeeperLost(f"the engine failed: {error}") from error
        finally:
            running, self._running = self._running, []
            await asyncio.shield(asyncio.gather(*(each.remove() for each in running)))

    async def _follow(self) -> Outcome:
        main, *others = self._running
        if not others:
            return await main.follow(None)
        (partner,) = others
        async with asyncio.TaskGroup() as group:
            partners = group.create_task(_as_outcome(partner, main))
            outcome = await _as_outcome(main, partner)
            partner.cancel()
        other = partners.result()
        fault = next((each for each in (outcome, other) if each.ending == Ending.FAULT), None)
        return fault or wire.with_partner(outcome, other)

    def cancel(self) -> None:
        """End the run that goes on, if one does; it is answered all the same."""
        self._is_cancelled = True
        for each in self._running:
            each.cancel()

    def close(self) -> None:
        """Let go of it; a job that goes on is ended."""
        self.cancel()


async def _as_outcome(container: _Container, partner: _Container) -> Outcome:
    """The outcome of its job, or the fault; a fault of one side does not keep the other from ending."""
    try:
        outcome = await container.follow(partner)
    except (KeeperLost, OSError) as error:
        outcome = Outcome(Ending.FAULT, fault=str(error))
    partner.tell(wire.ENDED_LETTER, b"")
    return outcome
