"""The sandbox's own processes die, one or several, under load or not: no honest run pays for it."""

import contextlib
import fcntl
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandbox.contract import Level, Limits, RunRequest, RunResult, Status
from tests.sandbox.conftest import SandboxServer, cgroups_of, children_of, skip_unless_root
from tests.sandbox.server.test_server import alive, parent_of
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.namespaces]


def spawners_of(server: SandboxServer) -> list[int]:
    """The spawner, and its successor while that starts."""
    return [pid for pid in children_of(server.process.pid) if parent_of(pid) == server.process.pid]


def spawner_of(server: SandboxServer) -> int:
    """The one spawner, as soon as there is one and no other: after a kill it may still have to start."""
    found: list[int] = []

    def is_alone() -> bool:
        found[:] = spawners_of(server)
        return len(found) == 1

    wait_until(is_alone)
    return found[0]


def kill_spawner(server: SandboxServer) -> int:
    spawner = spawner_of(server)
    os.kill(spawner, signal.SIGKILL)
    wait_until(lambda: not alive(spawner))
    return spawner


def kill_successors(server: SandboxServer, num_kills: int, killed: list[int], done: threading.Event) -> None:
    """Kill so many spawners as soon as each is there, which is before it is ready."""
    while num_kills and not done.is_set():
        for spawner in spawners_of(server):
            if spawner not in killed:
                killed.append(spawner)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(spawner, signal.SIGKILL)
                num_kills -= 1


def run_while_successors_die(server: SandboxServer) -> RunResult:
    """A run asked for after a spawner was killed, while those that would replace it are killed too."""
    server.run("print(0)")  # has a spawner started where the last one was killed
    killed = [kill_spawner(server)]
    done = threading.Event()
    killer = threading.Thread(target=kill_successors, args=(server, 2, killed, done))
    killer.start()
    try:
        return server.run("print(1)")
    finally:
        done.set()
        killer.join()
        wait_until(lambda: not any(map(alive, killed)))


def test_a_spawner_whose_successors_die_at_their_start_is_replaced_all_the_same() -> None:
    with SandboxServer(arguments=("--slots", "2")) as server:
        # A run is tried twice. It is lost where a successor was killed each time, before it was ready, or where the
        # first try got a keeper of the killed spawner that was still ending.
        wait_until(lambda: run_while_successors_die(server).status == Status.SANDBOX_ERROR)
        assert [server.run(f"print({n})").stdout for n in range(3)] == ["0\n", "1\n", "2\n"]


def test_health_says_that_the_spawner_is_gone_until_a_run_has_brought_it_back() -> None:
    with SandboxServer(arguments=("--slots", "1")) as server:
        assert server.health().status == "ok"
        kill_spawner(server)
        assert server.health().status == "recovering"
        assert server.run("print(1)").stdout == "1\n"
        assert server.health().status == "ok"


@pytest.mark.parametrize("keepers_first", [True, False], ids=["keepers-first", "spawner-first"])
def test_a_spawner_killed_together_with_its_keepers_costs_no_run_its_answer(keepers_first: bool) -> None:
    code = "import time; time.sleep(0.2); print(1)"
    with SandboxServer(arguments=("--slots", "4")) as server, ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            runs = [pool.submit(server.run, code) for _ in range(4)]
            wait_until(lambda: server.health().running == 4)
            spawner = spawner_of(server)
            keepers = [pid for pid in children_of(spawner) if parent_of(pid) == spawner]
            if keepers_first:  # a run is tried twice: none may have a new keeper before the spawner is killed
                os.kill(spawner, signal.SIGSTOP)
            for pid in (*keepers, spawner) if keepers_first else (spawner, *keepers):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.005)  # so that the server turns to what is killed next
            wait_until(lambda: not any(map(alive, (spawner, *keepers))))  # noqa: B023 -- called at once
            assert [(run.result().status, run.result().stdout) for run in runs] == [(Status.OK, "1\n")] * 4


@pytest.mark.parametrize("ordinary_user", [False, True], ids=["this-user", "ordinary-user"])
def test_spawners_that_die_under_load_cost_no_run_its_answer(ordinary_user: bool) -> None:
    if ordinary_user:
        skip_unless_root()
    answered = [0] * 4  # by asker
    made: list[Path] = []
    wrong: list[str] = []
    done = threading.Event()
    rng = random.Random(0)

    def ask(asker: int) -> None:
        while not done.is_set():
            number = rng.randrange(10**9)
            code = f"import time; time.sleep({rng.random() * 0.15}); print({number} * 2)"
            result = server.post(RunRequest(code=code, limits=Limits(wall_seconds=30, cpu_seconds=20)))
            if (result.status, result.stdout) != (Status.OK, f"{number * 2}\n"):
                wrong.append(f"{result.status}: {result.reason} {result.stderr}")
            answered[asker] += 1

    with SandboxServer(ordinary_user=ordinary_user, arguments=("--slots", "4")) as server:
        askers = [threading.Thread(target=ask, args=(asker,)) for asker in range(4)]
        for each in askers:
            each.start()
        try:
            for _ in range(3):
                wait_until(have_all_grown(answered, tuple(answered)))  # a run is tried twice: none may meet two kills
                made += cgroups_of([spawner_of(server)])
                kill_spawner(server)
            wait_until(have_all_grown(answered, tuple(answered)))  # the successor removes what the last one left
        finally:
            done.set()
            for each in askers:
                each.join()
        assert wrong == []
        made += cgroups_of(children_of(server.process.pid))
    assert [folder for folder in made if folder.exists()] == []


def test_the_cgroup_of_a_slot_goes_with_its_keeper() -> None:
    with SandboxServer(arguments=("--slots", "1")) as server:
        if server.health().level != Level.FULL:
            pytest.skip("needs a cgroup that this user may make")
        for _ in range(3):
            keeper = keeper_of(server)
            os.kill(keeper, signal.SIGKILL)
            wait_until(lambda: not alive(keeper))  # noqa: B023 -- called at once
            assert server.run("print(1)").stdout == "1\n"
        kept = f"slot-{keeper_of(server)}-0"
        wait_until(
            lambda: all(
                [path.name for path in each.glob("slot-*")] == [kept]
                for each in cgroups_of(children_of(server.process.pid))
            )
        )


def test_cgroups_of_a_killed_sandbox_are_removed_by_the_next_one_and_of_the_living_none() -> None:
    with SandboxServer(arguments=("--slots", "1")) as server:
        if server.health().level != Level.FULL:
            pytest.skip("needs a cgroup that this user may make")
        made = cgroups_of(children_of(server.process.pid))
    lost = [folder.with_name(f"preceptor-sandbox-{os.getpid()}-lost") for folder in made]
    held = [folder.with_name(f"preceptor-sandbox-1-held{os.getpid()}") for folder in made]  # as in another container
    with contextlib.ExitStack() as locks:
        with contextlib.ExitStack() as alone:  # before it is locked, a sandbox of another test could remove it
            for parent in {folder.parent for folder in made}:
                alone.enter_context(locked(parent, fcntl.LOCK_EX))
            for folder in (*lost, *held):
                (folder / "slot-1-0").mkdir(parents=True)
            for folder in held:
                locks.enter_context(locked(folder, fcntl.LOCK_SH))
        with SandboxServer(arguments=("--slots", "1")) as server, SandboxServer(arguments=("--slots", "1")) as other:
            assert [folder for folder in lost if folder.exists()] == []
            assert all((folder / "slot-1-0").exists() for folder in held)
            for each in (server, other):
                assert len(cgroups_of(children_of(each.process.pid))) == len(made)
    with SandboxServer(arguments=("--slots", "1")):
        assert [folder for folder in held if folder.exists()] == []


def test_a_lock_on_the_host_s_folder_stops_no_sandbox() -> None:
    with SandboxServer(arguments=("--slots", "1")) as server:
        if server.health().level != Level.FULL:
            pytest.skip("needs a cgroup that this user may make")
        parents = [folder.parent for folder in cgroups_of(children_of(server.process.pid))]
    with contextlib.ExitStack() as locks:
        for folder in parents:
            locks.enter_context(locked(folder, fcntl.LOCK_SH))
        with SandboxServer(arguments=("--slots", "1")) as server:
            assert server.health().level == Level.FULL
            assert server.run("print(1)").stdout == "1\n"
            made = cgroups_of(children_of(server.process.pid))
        assert [folder for folder in made if folder.exists()] == []


@contextlib.contextmanager
def locked(folder: Path, kind: int) -> Iterator[None]:
    """The folder's lock, as sandboxes take it, until the block ends."""
    file = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(file, kind)
        yield
    finally:
        os.close(file)


def keeper_of(server: SandboxServer) -> int:
    spawner = spawner_of(server)
    (keeper,) = [pid for pid in children_of(spawner) if parent_of(pid) == spawner]
    return keeper


def have_all_grown(answered: list[int], before: tuple[int, ...]) -> Callable[[], bool]:
    """Whether every asker has had two more answers: one that it waited for, one to a run begun since."""
    return lambda: all(now >= then + 2 for now, then in zip(answered, before, strict=True))
