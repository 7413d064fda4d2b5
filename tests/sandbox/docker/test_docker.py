"""The backend `docker`: only by name, refused where it cannot be had, and nothing is left of a container."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid

import docker
import httpx2
import pytest

from sandbox.contract import Limits, RunRequest, Status
from tests.ports import free_port
from tests.sandbox.conftest import (
    IMAGE,
    REPOSITORY,
    SandboxServer,
    host_processes,
    list_containers,
    skip_without_engine,
)

pytestmark = pytest.mark.integration


def refuse_to_start(*arguments: str, **environment: str) -> str:
    """What is said by a server that must not start."""
    command = [sys.executable, "-m", "sandbox", "--port", str(free_port()), "--backend", "docker", *arguments]
    environment = {"PATH": os.environ["PATH"], **environment}
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert ended.returncode == 3
    return ended.stdout  # the log


def test_without_an_engine_the_server_refuses_to_start() -> None:
    said = refuse_to_start(DOCKER_HOST="unix:///nowhere/docker.sock")
    assert "Docker cannot isolate" in said
    assert "Traceback" not in said


def test_without_its_image_the_server_refuses_to_start() -> None:
    skip_without_engine()
    assert "no image nobody/nothing" in refuse_to_start("--docker-image", "nobody/nothing")


def test_a_container_is_locked_down() -> None:
    skip_without_engine()
    with SandboxServer(arguments=("--backend", "docker", "--slots", "1")) as server:
        limits = Limits(wall_seconds=60, memory_bytes=128 << 20, processes=5)
        sleeper = RunRequest(code="import time; time.sleep(600)", limits=limits)
        thread = threading.Thread(target=server.post, args=(sleeper,))
        thread.start()
        while not list_containers(server):
            time.sleep(0.05)
        (container,) = list_containers(server)
        config, host = container.attrs["Config"], container.attrs["HostConfig"]
        container.kill()
        thread.join()
    assert (config["Image"], config["User"]) == (IMAGE, "65534:65534")
    assert (host["NetworkMode"], host["IpcMode"], host["ReadonlyRootfs"]) == ("none", "none", True)
    assert (host["CapDrop"], host["CapAdd"], host["Privileged"]) == (["ALL"], None, False)
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert (host["PidsLimit"], host["NanoCpus"]) == (7, 10**9)
    assert 128 << 20 < host["Memory"] < 256 << 20
    assert host["MemorySwap"] in (host["Memory"], -1)  # -1 where the kernel does not limit swap
    assert host["Binds"] is None
    assert set(host["Tmpfs"]) == {"/box", "/tmp", "/dev/shm"}  # noqa: S108


def test_a_run_whose_container_is_lost_is_retried_once_then_a_fault() -> None:
    skip_without_engine()
    with SandboxServer(arguments=("--backend", "docker", "--slots", "1")) as server:
        done = threading.Event()

        def kill_all() -> None:
            while not done.wait(0.2):
                for each in list_containers(server):
                    with contextlib.suppress(docker.errors.DockerException):
                        each.kill()

        threading.Thread(target=kill_all).start()
        try:
            result = server.run("import time; time.sleep(20)")
        finally:
            done.set()
        assert (result.status, server.health().runs_retried) == (Status.SANDBOX_ERROR, 1)
        assert server.run("print(1)").stdout == "1\n"


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_server_leaves_is_removed(signal_number: signal.Signals) -> None:
    skip_without_engine()
    token = uuid.uuid4().hex
    code = "import os, sys\n"
    code += f"os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(600)', '{token}'])"
    with SandboxServer(arguments=("--backend", "docker", "--slots", "1")) as server:
        request = RunRequest(code=code, limits=Limits(wall_seconds=60))

        def ask() -> None:
            with contextlib.suppress(httpx2.HTTPError):
                server.post(request)

        thread = threading.Thread(target=ask)
        thread.start()
        while not host_processes(token):
            time.sleep(0.05)
        server.process.send_signal(signal_number)
        server.process.wait()
        thread.join()
    if signal_number == signal.SIGKILL:  # then the next one does
        with SandboxServer(arguments=("--backend", "docker", "--slots", "1")):
            pass
    assert list_containers(server) == []
    assert host_processes(token) == []
