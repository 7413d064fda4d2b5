"""A sandbox server in a process of its own: as this user, as an ordinary one, on Docker, in compose; and its client."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import docker
import httpx2
import psutil
import pytest
from docker.errors import DockerException, ImageNotFound
from requests.exceptions import RequestException

from sandbox.contract import BatchRequest, BatchResult, Level, Limits, RunRequest, RunResult, SandboxHealth
from sandbox.settings import SandboxSettings
from tests import disks
from tests.ports import free_port
from tests.waiting import wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
ORDINARY_UID = 62_000 + os.getpid() % 2_000
"""Of this process's own: the kernel counts processes, and what else it bounds, of all tests with one user together."""
TESTS_BEGAN = time.monotonic_ns()
SECRET = "a-secret-of-the-server"  # noqa: S105 -- bait


@dataclass
class SandboxServer:
    """One server process; `with` stops it."""

    ordinary_user: bool = False
    without_namespaces: bool = False
    """As an ordinary user whom the system denies them."""
    user: int = ORDINARY_UID
    """Whom the server becomes in these two cases."""
    arguments: tuple[str, ...] = ()
    key: str | None = None
    port: int = field(default_factory=free_port)

    def __enter__(self) -> SandboxServer:
        command = [sys.executable, "-m", "sandbox", "--port", str(self.port), "--die-with-parent", *self.arguments]
        if self.ordinary_user or self.without_namespaces:
            helper = str(Path(__file__).with_name("as_ordinary_user.py"))
            user = f"{self.user}{'!' if self.without_namespaces else ''}"
            command = [sys.executable, helper, user, *command]
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "BAIT": SECRET}
        if self.key is not None:
            environment["SANDBOX_API_KEY"] = self.key
        self.process = subprocess.Popen(command, env=environment, cwd=REPOSITORY, start_new_session=True)
        self.client = self._make_client()
        wait_until(lambda: self.process.poll() is not None or self._answers())
        if self.process.poll() is not None:
            self.__exit__()
            raise RuntimeError(f"the sandbox did not start: {self.process.poll()}")
        return self

    def _answers(self) -> bool:
        with contextlib.suppress(httpx2.TransportError):
            return self.client.get("/healthz").status_code == 200
        return False

    def __exit__(self, *_: object) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait()

    def _make_client(self) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key is not None else {}
        return httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=120, headers=headers)

    @property
    def pid(self) -> int:
        """The server's process, as this machine numbers it."""
        return self.process.pid

    @property
    def url(self) -> str:
        """For clients that are given nothing else: with the key, if there is one."""
        return f"http://{f'sandbox:{self.key}@' if self.key else ''}127.0.0.1:{self.port}"

    @property
    def in_containers(self) -> bool:
        """Whether runs see a container's PID 1 and its image's files."""
        return self.health().level == Level.CONTAINER

    def health(self) -> SandboxHealth:
        return SandboxHealth.model_validate_json(self.client.get("/healthz").raise_for_status().content)

    def post(self, request: RunRequest) -> RunResult:
        answer = self.client.post(
            "/v1/run", content=request.model_dump_json(), headers={"Content-Type": "application/json"}
        )
        return RunResult.model_validate_json(answer.raise_for_status().content)

    def run(
        self,
        code: str,
        *,
        stdin: str = "",
        files: dict[str, bytes] | None = None,
        collect: tuple[str, ...] = (),
        limits: Limits | None = None,
    ) -> RunResult:
        limits = limits or Limits(wall_seconds=30, cpu_seconds=20)
        return self.post(RunRequest(code=code, stdin=stdin, files=files or {}, collect=collect, limits=limits))

    def run_batch(self, requests: tuple[RunRequest, ...]) -> BatchResult:
        body = BatchRequest(runs=requests).model_dump_json()
        answer = self.client.post("/v1/run_batch", content=body, headers={"Content-Type": "application/json"})
        return BatchResult.model_validate_json(answer.raise_for_status().content)


@dataclass
class ComposeServer(SandboxServer):
    """The service `sandbox` of docker-compose.yml, opened to loopback, in a project of its own; `with` removes it."""

    key: str | None = SECRET
    project: str = f"preceptor-test-{os.getpid()}"

    def __enter__(self) -> ComposeServer:
        try:
            self._compose("up", "--build", "--wait", "sandbox")
        except subprocess.CalledProcessError as error:
            said = f"{error.stdout}{self._compose('logs', '--no-color')}"
            self._remove()
            raise RuntimeError(f"docker compose up failed:\n{said}") from None
        self.client = self._make_client()
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self._remove()

    def _remove(self) -> None:
        self._compose("down", "--rmi", "local", "--volumes")

    def _compose(self, *arguments: str) -> str:
        """What docker compose says. Raises CalledProcessError."""
        files = ["--file", "docker-compose.yml", "--file", "containers/publish.yaml"]
        command = ["docker", "compose", "--project-name", self.project, "--progress", "plain", *files, *arguments]
        environment = {**os.environ, "SANDBOX_API_KEY": self.key or "", "SANDBOX_PORT": str(self.port)}
        return subprocess.run(
            command,
            cwd=REPOSITORY,
            env=environment,
            check=True,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ).stdout

    @property
    def label(self) -> str:
        """What all that belongs to the project carries."""
        return f"com.docker.compose.project={self.project}"

    @property
    def container(self) -> docker.models.containers.Container:
        (container,) = docker.from_env().containers.list(filters={"label": self.label})
        return container

    @property
    def pid(self) -> int:
        inside = children_of(int(self.container.attrs["State"]["Pid"]))
        (server,) = [pid for pid in host_processes("\0-m\0sandbox\0") if pid in inside]
        return server


def skip_unless_root() -> None:
    if os.getuid() != 0:
        pytest.skip("needs root, to become another user; this session already is an ordinary one")


IMAGE = SandboxSettings().docker_image


def skip_without_engine() -> None:
    """Containers need a Docker engine that this user may talk to, and an image that it has."""
    problem = _look_for_engine()
    if problem:
        with warnings.catch_warnings(action="ignore", category=ResourceWarning):
            gc.collect()  # a socket that Docker's library leaves open when nobody answers
        pytest.skip(problem)


def _look_for_engine() -> str:
    """What is missing, or nothing."""
    try:
        docker.from_env(timeout=10).images.get(IMAGE)
    except ImageNotFound:
        return f"needs the image {IMAGE}: docker pull {IMAGE}"
    except (DockerException, RequestException) as error:
        return f"needs a Docker engine: {error}"
    return ""


def skip_without_compose() -> None:
    """The tests look at the container's processes from outside, and end some."""
    skip_without_engine()
    if os.getuid() != 0:
        pytest.skip("needs root, to look at a container's processes from outside")
    asked = subprocess.run(["docker", "compose", "version"], capture_output=True, text=True)
    if asked.returncode != 0:
        pytest.skip(f"needs docker compose: {asked.stderr.strip().splitlines()[0]}")


def list_left_of(server: ComposeServer) -> list[str]:
    """Containers, networks, volumes and images of a project."""
    engine, filters = docker.from_env(), {"label": server.label}
    found = [*engine.containers.list(all=True, filters=filters), *engine.networks.list(filters=filters)]
    images = [engine.images.list(name=f"{server.project}-{service}") for service in ("sandbox", "secrets")]
    found += [*engine.volumes.list(filters=filters), *images[0], *images[1]]
    return [str(each) for each in found]


def list_containers(server: SandboxServer) -> list[docker.models.containers.Container]:
    """Containers of this server's runs, ended ones too."""
    label = f"preceptor-sandbox={socket.gethostname()}/{server.process.pid}"
    return list(docker.from_env().containers.list(all=True, filters={"label": label}, ignore_removed=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what is marked as being about namespaces where the runs are in containers."""
    items[:] = [item for item in items if not (_is_on_docker(item) and item.get_closest_marker("namespaces"))]


def _is_on_docker(item: pytest.Item) -> bool:
    callspec = getattr(item, "callspec", None)
    return callspec is not None and callspec.params.get("sandbox") == "docker"


@pytest.fixture(scope="session", params=["this-user", "ordinary-user", "docker", "compose"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[SandboxServer]:
    """A running sandbox; every test that takes it runs as this user, from root as an ordinary one too, on Docker where
    there is an engine, and in compose where there is that too."""
    if request.param == "ordinary-user":
        skip_unless_root()
    elif request.param == "docker":
        skip_without_engine()
    elif request.param == "compose":
        skip_without_compose()
    mounts_before = host_mounts()
    with make_server(request.param) as server:
        yield server
        family = [server.pid, *children_of(server.pid)]
        made, processes = cgroups_of(family), watch(family)
    if isinstance(server, ComposeServer):
        assert list_left_of(server) == []
    elif request.param == "docker":
        assert list_containers(server) == []
    # whatever the attacks did, they left nothing behind
    wait_until(lambda: not any(process.is_running() for process in processes))
    assert [folder for folder in made if folder.exists()] == []
    assert host_mounts() == mounts_before


def watch(pids: list[int]) -> list[psutil.Process]:
    """Those of the processes that are there, told from later ones that get their numbers."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return found


def host_mounts() -> list[str]:
    """The host's mounts, but for those of a Docker engine and of the tests that run beside these."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if "docker" not in line and disks.PREFIX not in line]


def make_server(mode: str) -> SandboxServer:
    """The server of one of the fixture's modes, not yet started."""
    if mode == "compose":
        return ComposeServer()
    return SandboxServer(
        ordinary_user=mode == "ordinary-user", arguments=("--backend", "docker") if mode == "docker" else ()
    )


def cgroups_of(pids: list[int]) -> list[Path]:
    """The folders of cgroups that these processes have made; to be asked for while they live, since the numbers of
    processes come again. What an earlier sandbox left may lie where none of these looks."""

    def is_theirs(name: str) -> bool:
        pid, began = name.split("-")[2:]
        return pid in map(str, pids) and began.isdecimal() and int(began) > TESTS_BEGAN

    walk = os.walk("/sys/fs/cgroup")  # passes over folders that other sandboxes remove meanwhile
    found = [Path(folder, name) for folder, names, _ in walk for name in names if name.startswith("preceptor-sandbox-")]
    return [path for path in found if is_theirs(path.name)]


def host_processes(token: str) -> list[int]:
    """Processes of the host, in any namespace, whose command line holds the token."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if token.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def children_of(pid: int) -> list[int]:
    """Every living descendant of a process, in any namespace."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        for child in parents.get(todo.pop(), []):
            found.append(child)
            todo.append(child)
    return found
