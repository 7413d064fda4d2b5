"""The server around the runs: admission, refusals, hanging up, dying, and what it leaves behind."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from sandbox.contract import Level, Limits, RunRequest, Status
from sandbox.http.edge import HEAD_SECONDS, LOOK_SECONDS, MAX_CONNECTIONS
from tests.ports import free_port
from tests.sandbox.conftest import (
    REPOSITORY,
    SandboxServer,
    cgroups_of,
    children_of,
    host_mounts,
    host_processes,
    skip_unless_root,
    watch,
)
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.namespaces]

SLEEPER = "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(600)', '{token}'])"


SLEEPER_AND_END = """
import subprocess, sys
subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)', '{token}'])
print('answer')
"""
"""Answers when its sleeper is killed."""


def post_sleeper(server: SandboxServer, token: str) -> None:
    limits = Limits(wall_seconds=60, cpu_seconds=60)
    with contextlib.suppress(httpx2.HTTPError):
        server.post(RunRequest(code=SLEEPER.format(token=token), limits=limits))


def start_sleeper(server: SandboxServer) -> str:
    """A run that lasts; returns when it runs, with what names its process."""
    token = uuid.uuid4().hex
    threading.Thread(target=post_sleeper, args=(server, token), daemon=True).start()
    wait_until(lambda: bool(host_processes(token)))
    return token


def test_health_tells_level_slots_and_queue(sandbox: SandboxServer) -> None:
    health = sandbox.health()
    assert health.level in (Level.FULL, Level.FULL_NOCGROUP)
    assert health.slots >= 2
    assert (health.running, health.queue) == (0, 0)


def test_a_full_queue_is_answered_429_and_drains() -> None:
    with SandboxServer(arguments=("--slots", "1", "--queue-limit", "1")) as server:
        with ThreadPoolExecutor(1) as pool:
            running = start_sleeper(server)
            waiting = pool.submit(server.run, "print(1)")
            wait_until(lambda: server.health().queue == 1)
            refused = server.client.post("/v1/run", json={"code": "print(2)"})
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.headers["content-type"] == "application/problem+json"
            assert refused.json()["status"] == 429
            never = server.client.post("/v1/run_batch", json={"runs": [{"code": "print(3)"}] * 3})
            assert (never.status_code, "retry-after" in never.headers) == (422, False)
            os.kill(find_sleeper(running), signal.SIGKILL)
            assert waiting.result().stdout == "1\n"
        assert server.run("print(1)").stdout == "1\n"


def test_a_key_is_asked_for_when_one_is_set() -> None:
    with SandboxServer(key="right") as server:
        url = f"http://127.0.0.1:{server.port}/v1/run"
        for sent in ("", "Bearer wrong", "right", "Bearer ü"):
            answer = httpx2.post(
                url, json={"code": "print(1)"}, headers=[(b"Authorization", sent.encode())], timeout=None
            )
            assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json")
        assert server.run("print(1)").stdout == "1\n"
        for user, status in (("sandbox:right", 200), ("sandbox:wrong", 401), ("right", 401), (":right", 401)):
            in_url = url.replace("//", f"//{user}@")
            assert httpx2.post(in_url, json={"code": "print(1)"}, timeout=None).status_code == status


def test_without_the_key_nothing_of_a_request_is_read_and_nothing_is_told() -> None:
    with SandboxServer(key="right") as server:
        url = f"http://127.0.0.1:{server.port}"
        assert httpx2.post(f"{url}/v1/run", content=b"{", timeout=None).status_code == 401
        assert [
            httpx2.get(url + path, timeout=None).status_code for path in ("/docs", "/redoc", "/openapi.json", "/x")
        ] == [401] * 4
        assert httpx2.get(f"{url}/healthz", timeout=None).status_code == 200
        for announced in ("Content-Length: 33000000", "Transfer-Encoding: chunked"):
            with socket.create_connection(("127.0.0.1", server.port), timeout=120) as connection:
                connection.sendall(f"POST /v1/run HTTP/1.1\r\nHost: x\r\n{announced}\r\n\r\n".encode())
                answer = read_all(connection)  # to its end: it hangs up, so that nothing more can be sent
                assert answer.startswith(b"HTTP/1.1 401")
        assert server.client.post("/v1/run", content=b"{").status_code == 422


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other end closes; TimeoutError if it does not."""
    data = bytearray()
    while piece := connection.recv(1 << 16):
        data += piece
    return bytes(data)


def test_connections_that_ask_nothing_are_refused_above_a_number_and_hung_up_on() -> None:
    with SandboxServer(arguments=("--slots", "1")) as server:
        idle = [socket.create_connection(("127.0.0.1", server.port), timeout=120) for _ in range(MAX_CONNECTIONS)]
        try:
            for each in idle[::2]:
                each.sendall(b"POST /v1/run HTTP/1.1\r\nHost: x\r\n")
            wait_until(lambda: server.client.post("/v1/run", json={"code": "1"}).status_code == 503)
            assert {each.recv(1) for each in idle} == {b""}
        finally:
            for each in idle:
                each.close()
        assert server.run("print(1)").stdout == "1\n"


def test_a_kept_connection_is_used_again_after_the_time_for_a_first_request() -> None:
    with (
        SandboxServer(arguments=("--slots", "1")) as server,
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port)) as client,  # has one connection
    ):
        for pause in (0.0, HEAD_SECONDS + LOOK_SECONDS + 1):
            time.sleep(pause)
            client.request("GET", "/healthz")
            answer = client.getresponse()
            answer.read()
            assert (answer.status, answer.will_close) == (200, False)


def test_other_addresses_than_loopback_need_a_key() -> None:
    environment = {"PATH": os.environ["PATH"]}
    command = [sys.executable, "-m", "sandbox", "--host", "0.0.0.0", "--port", str(free_port())]  # noqa: S104
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "SANDBOX_API_KEY" in ended.stderr


@pytest.mark.parametrize("variable", ["SANDBOX_API_KEY_FILE", "SANDBOX_METRICS_KEY_FILE"])
def test_a_key_whose_file_cannot_be_read_stops_the_start(variable: str, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], variable: str(tmp_path / "none")}
    command = [sys.executable, "-m", "sandbox", "--port", str(free_port())]
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert ended.returncode == 2
    assert f"{variable} cannot be read" in ended.stderr


def test_a_request_that_is_too_large_is_answered_413(sandbox: SandboxServer) -> None:
    lengths = (f"Content-Length: {33 << 20}", "Transfer-Encoding: chunked")
    for length in lengths:
        with socket.create_connection(("127.0.0.1", sandbox.port), timeout=120) as connection:
            head = (
                f"POST /v1/run HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {sandbox.key}\r\n"
                f"Content-Type: application/json\r\n{length}\r\n\r\n"
            )
            connection.sendall(head.encode())
            with contextlib.suppress(ConnectionError):  # it may hang up before we are done
                for _ in range(40 if "chunked" in length else 0):
                    connection.sendall(b"100000\r\n" + b" " * (1 << 20) + b"\r\n")
            answer = connection.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"application/problem+json" in answer


def test_an_unknown_path_or_method_is_a_problem_document(sandbox: SandboxServer) -> None:
    for answer in (sandbox.client.get("/nowhere"), sandbox.client.get("/v1/run")):
        assert answer.status_code in (404, 405)
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_run_whose_caller_hung_up_is_ended(sandbox: SandboxServer) -> None:
    token = uuid.uuid4().hex
    body = RunRequest(code=SLEEPER.format(token=token), limits=Limits(wall_seconds=60)).model_dump_json().encode()
    with socket.create_connection(("127.0.0.1", sandbox.port)) as connection:
        head = (
            f"POST /v1/run HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {sandbox.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        wait_until(lambda: bool(host_processes(token)))
        assert sandbox.health().running == 1
    wait_until(lambda: host_processes(token) == [])
    wait_until(lambda: sandbox.health().running == 0)


@pytest.mark.parametrize("ordinary_user", [False, True], ids=["this-user", "ordinary-user"])
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_ends_leaves_no_process_no_cgroup_and_no_mount(
    signal_number: signal.Signals, ordinary_user: bool
) -> None:
    if ordinary_user:
        skip_unless_root()
    mounts_before = host_mounts()
    with SandboxServer(ordinary_user=ordinary_user) as server:
        tokens = [start_sleeper(server) for _ in range(2)]
        family = children_of(server.process.pid)
        made, processes = cgroups_of(family), watch(family)
        assert all(host_processes(token) for token in tokens)
        if server.health().level == Level.FULL:
            assert made
        server.process.send_signal(signal_number)
        server.process.wait()
        wait_until(lambda: not any(process.is_running() for process in processes))
        assert not any(host_processes(token) for token in tokens)
        assert [folder for folder in made if folder.exists()] == []
    assert host_mounts() == mounts_before


def test_a_server_dies_with_its_parent() -> None:
    port = free_port()
    command = f"{sys.executable} -m sandbox --port {port} --die-with-parent & echo $!; sleep 600"
    with subprocess.Popen(["/bin/sh", "-c", command], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        server_pid = int(parent.stdout.readline())

        def is_up() -> bool:
            with contextlib.suppress(httpx2.TransportError):
                return httpx2.get(f"http://127.0.0.1:{port}/healthz", timeout=None).status_code == 200
            return False

        wait_until(is_up)
        family = [server_pid, *children_of(server_pid)]
        sleep = [pid for pid in children_of(parent.pid) if pid not in family]
        parent.kill()
        for pid in sleep:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(alive(pid) for pid in family))


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def find_sleeper(token: str, but: int = 0) -> int:
    """The process with this token, as soon as there is one besides that other one."""
    found: list[int] = []

    def is_there() -> bool:
        found[:] = [pid for pid in host_processes(token) if pid != but]
        return bool(found)

    wait_until(is_there)
    return found[0]


def find_processes_above(sleeper: int) -> tuple[int, int]:
    """The zygote of the run that has this process, and its keeper."""
    zygote = sleeper
    while namespace_pid(zygote) != 1:
        zygote = parent_of(zygote)
    return zygote, parent_of(zygote)


@pytest.mark.parametrize("which", ["zygote", "keeper"])
def test_a_dead_zygote_is_replaced_and_its_run_retried_once_and_counted(sandbox: SandboxServer, which: str) -> None:
    sandbox.run("pass")  # so that the slot has its keeper
    before = sandbox.health()
    limits = Limits(wall_seconds=60, cpu_seconds=60)
    token = uuid.uuid4().hex
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(sandbox.run, SLEEPER_AND_END.format(token=token), limits=limits)
        first = find_sleeper(token)
        zygote, keeper = find_processes_above(first)
        os.kill(zygote if which == "zygote" else keeper, signal.SIGKILL)
        os.kill(find_sleeper(token, but=first), signal.SIGKILL)
        result = answer.result()
    assert (result.status, result.stdout) == (Status.OK, "answer\n")
    after = sandbox.health()
    assert after.runs_retried == before.runs_retried + 1
    assert after.zygotes_replaced == before.zygotes_replaced + 1


def test_a_fault_of_the_sandbox_is_not_the_code_s_and_the_next_run_works(sandbox: SandboxServer) -> None:
    limits = Limits(wall_seconds=60, cpu_seconds=60)
    token = uuid.uuid4().hex
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(sandbox.post, RunRequest(code=SLEEPER.format(token=token), limits=limits))
        first = find_sleeper(token)
        os.kill(find_processes_above(first)[0], signal.SIGKILL)
        os.kill(find_processes_above(find_sleeper(token, but=first))[0], signal.SIGKILL)
        result = answer.result()
    assert (result.status, result.exit_code) == (Status.SANDBOX_ERROR, None)
    assert "not the code" in result.reason
    wait_until(lambda: host_processes(token) == [])
    assert sandbox.run("print('next')").stdout == "next\n"


def test_a_spawner_that_died_is_replaced(sandbox: SandboxServer) -> None:
    (spawner,) = [pid for pid in children_of(sandbox.pid) if parent_of(pid) == sandbox.pid]
    os.kill(spawner, signal.SIGKILL)
    wait_until(lambda: not alive(spawner))
    assert sandbox.run("print('next')").stdout == "next\n"
    assert sandbox.run("print('again')").isolation == sandbox.health().level


def namespace_pid(pid: int) -> int:
    """The number of a process in its innermost pid namespace."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("NSpid:")]
    return int(line.split()[-1])


def parent_of(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


@pytest.mark.parametrize("unit", [b"[],", b"{},", b"1,", b'"a",', b'{"a":[]},', b"[" * 100])
def test_a_body_of_very_many_values_is_refused_while_it_arrives(sandbox: SandboxServer, unit: bytes) -> None:
    body = b'{"code": [' + unit * ((20 << 20) // len(unit)) + b"0]}"
    head = (
        f"POST /v1/judge HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {sandbox.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", sandbox.port), timeout=120) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(head.encode() + body)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413")
