"""Kill everything at random and count: nothing lost, nothing counted twice.

`python -m tests.chaos --tasks 300 --seed 0` draws every task once while workers, the trainer, Valkey (its data wiped)
and Postgres are killed with -9; then the killing stops, the loop runs dry, and the database is asked:

- every rollout is ready, or set aside with a reason; none is open;
- every consultation is settled, and answered at most once;
- every lesson is in at most one applied update, and none is forgotten: used, set aside or invalid;
- the trainer's last checkpoint is that of the last applied update.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sqlalchemy import text

from services import main
from services.cli.client import ApiClient, ApiProblem, ApiUnreachable
from services.contracts.status import LoopState, LoopSwitch
from services.contracts.tasks import Message, TaskCreate, TaskImport, TaskImported
from services.local import stack
from services.local.layout import Layout, free_port
from services.local.postgres import EmbeddedPostgres
from services.local.supervisor import ChildProcess, ProcessSpec
from services.local.valkey import EmbeddedValkey
from services.policy.modeling import make_tiny_policy
from services.settings import Settings
from services.store.store import Store

VICTIMS = ("worker-1", "worker-2", "trainer", "valkey", "postgres")
GROUP_SIZE = 2
QUIET_SECONDS = 300.0
SETTINGS = {
    "PRECEPTOR_GROUP_SIZE": str(GROUP_SIZE),
    "PRECEPTOR_MAX_NEW_TOKENS": "8",
    "PRECEPTOR_MAX_BACKLOG_LESSONS": "160",
    "PRECEPTOR_MAX_GROUPS_PER_TASK": "1",
    "PRECEPTOR_MAX_STALENESS": "1000",
    "PRECEPTOR_RESEND_SECONDS": "10",
    "PRECEPTOR_GROUP_LEASE_SECONDS": "20",
    "PRECEPTOR_CONSULTATION_LEASE_SECONDS": "20",
    "PRECEPTOR_LESSON_LEASE_SECONDS": "20",
    "PRECEPTOR_MAX_ATTEMPTS": "50",
    "PRECEPTOR_TRAINER_GROUPS_PER_UPDATE": "8",
    "PRECEPTOR_TRAINER_PATIENCE_SECONDS": "5",
    "PRECEPTOR_TRAINER_LORA_R": "4",
    "OMP_NUM_THREADS": "1",
}


@dataclass
class Counts:
    """What happened, and what the database says afterwards. The last four must be zero."""

    tasks: int = 0
    kills: dict[str, int] = field(default_factory=dict)
    rollouts: dict[str, int] = field(default_factory=dict)
    consultations: dict[str, int] = field(default_factory=dict)
    lessons: dict[str, int] = field(default_factory=dict)
    applied_updates: int = 0
    abandoned_updates: int = 0
    seconds: float = 0.0
    undrawn_tasks: int = 0
    unsettled: int = 0
    settled_twice: int = 0
    lessons_in_two_updates: int = 0
    lessons_forgotten: int = 0
    set_aside_without_reason: int = 0

    def faults(self) -> dict[str, int]:
        """The counts that must be zero and are not."""
        names = (
            "undrawn_tasks",
            "unsettled",
            "settled_twice",
            "lessons_in_two_updates",
            "lessons_forgotten",
            "set_aside_without_reason",
        )
        return {name: getattr(self, name) for name in names if getattr(self, name)}


class Victims:
    """The processes, startable and killable one by one."""

    def __init__(self, folder: Path) -> None:
        self.layout = Layout.open(folder / "data")
        self.postgres = EmbeddedPostgres(self.layout.postgres, port=free_port(), log=self.layout.log("postgres"))
        self.valkey = EmbeddedValkey(self.layout.valkey, port=free_port(), log=self.layout.log("valkey"))
        self.processes: dict[str, ChildProcess] = {}
        self._specs: dict[str, ProcessSpec] = {}

    def start(self, name: str, spec: ProcessSpec) -> None:
        """Start one process and wait until it is ready."""
        self._specs[name] = spec
        process = ChildProcess(spec, self.layout.log(name), [])
        process.start()
        self.processes[name] = process
        deadline = time.monotonic() + spec.ready_seconds
        while not process.is_ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} does not start; see {self.layout.log(name)}")
            time.sleep(0.1)

    def kill(self, name: str) -> None:
        """kill -9, and start it again; Valkey loses its data on the way."""
        if name == "postgres":
            self.postgres.kill()
            self.postgres.start()
        elif name == "valkey":
            self.valkey.kill()
            for path in self.layout.valkey.rglob("appendonlydir"):
                shutil.rmtree(path)
            self.valkey.start()
        else:
            self.processes[name].kill()
            self.processes[name].stop()
            self.start(name, self._specs[name])

    def revive(self) -> None:
        """Start again what ended by itself, as a supervisor would."""
        for name, process in list(self.processes.items()):
            if process.poll() is not None:
                self.start(name, self._specs[name])

    def stop(self) -> None:
        """Stop everything."""
        for process in reversed(list(self.processes.values())):
            process.ask_to_stop()
        for process in reversed(list(self.processes.values())):
            process.stop()
        self.valkey.stop()
        self.postgres.stop()


def run_chaos(
    num_tasks: int,
    seed: int,
    folder: Path,
    kill_every: float,
    say: Callable[[str], None],
    environ: Callable[[str, str], None] = os.environ.__setitem__,
) -> Counts:
    """Run it in an empty folder; kills come every `kill_every` seconds on average, chosen by `seed`.

    environ: sets a variable of this process's environment, which the processes inherit.
    """
    began = time.monotonic()
    counts = Counts(tasks=num_tasks, kills=dict.fromkeys(VICTIMS, 0))
    chance = random.Random(seed)
    model = folder / "model"
    make_tiny_policy(model)
    victims = Victims(folder)
    with ExitStack() as cleanup:
        cleanup.callback(victims.stop)
        victims.postgres.start()
        victims.valkey.start()
        told = stack.environment(victims.layout, victims.postgres.url, victims.valkey.url_of(0)) | SETTINGS
        for name, value in told.items():
            environ(name, value)
        settings = Settings()
        api = _bring_up(victims, settings, model)
        cleanup.callback(api.close)
        _import(api, num_tasks)
        api.post("/v1/loop", LoopSwitch(sampling=True, training=True), LoopState)
        store = Store(settings.database_url, pool_size=2)
        cleanup.callback(store.close)
        say(f"killing, seed {seed}")
        deck: list[str] = []
        while _undrawn(store) or _unfinished(store):
            time.sleep(chance.uniform(0.5, 1.5) * kill_every)
            deck = deck or chance.sample(VICTIMS, len(VICTIMS))  # every victim once a round
            victim = deck.pop()
            counts.kills[victim] += 1
            say(f"kill -9 {victim}; {_progress(store)}")
            victims.kill(victim)
            victims.revive()
            if sum(counts.kills.values()) * kill_every > 40 + 2 * num_tasks:
                say("long enough; now it may finish in peace")
                break
        deadline = time.monotonic() + QUIET_SECONDS
        while (_undrawn(store) or _unfinished(store)) and time.monotonic() < deadline:
            victims.revive()
            time.sleep(1)
        say(_progress(store))
        _count(store, counts)
    counts.seconds = time.monotonic() - began
    return counts


def _bring_up(victims: Victims, settings: Settings, model: Path) -> ApiClient:
    key = main.prepare_database(settings)
    assert key is not None
    for spec in stack.engines(settings, victims.layout, model, policy_threads=1):
        victims.start(spec.name, spec)
    main.prepare_lineage(settings)
    for spec in stack.faces(settings):
        victims.start(spec.name, spec)
    main.register_own_experts(settings, key)
    worker, beat = stack.workers(victims.layout)
    for number in (1, 2):
        victims.start(f"worker-{number}", _named(worker, f"worker-{number}"))
    victims.start("beat", beat)
    victims.start("trainer", stack.trainer(model, threads=1))
    return ApiClient(settings.api_url, key)


def _named(worker: ProcessSpec, name: str) -> ProcessSpec:
    return ProcessSpec(
        name, [*worker.argv, "--hostname", f"{name}@%h"], cwd=worker.cwd, stop_seconds=worker.stop_seconds
    )


def _import(api: ApiClient, num_tasks: int) -> None:
    rows = [
        TaskCreate(
            key=f"sum-{i}",
            domain="math",
            messages=[Message(role="user", content=f"What is {i} + {i}?")],
            metadata={"answer": str(2 * i), "reference": str(2 * i)},
        ).model_dump(mode="json")
        for i in range(num_tasks)
    ]
    deadline = time.monotonic() + 60
    while True:
        try:
            api.post("/v1/tasks/import", TaskImport(tasks=rows), TaskImported)
            return
        except (ApiProblem, ApiUnreachable):
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def _scalar(store: Store, query: str) -> int:
    """A count; asked again while the database is away."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with store.transaction() as session:
                return int(session.scalar(text(query)) or 0)
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _undrawn(store: Store) -> int:
    return _scalar(
        store,
        "SELECT count(*) FROM task t WHERE NOT EXISTS "
        "(SELECT FROM rollout_group g WHERE g.task_id = t.id AND g.status IN ('sampled', 'dead'))",
    )


def _unfinished(store: Store) -> int:
    return (
        _scalar(store, "SELECT count(*) FROM rollout WHERE status = 'open'")
        + _scalar(store, "SELECT count(*) FROM lesson WHERE status IN ('open', 'ready', 'claimed')")
        + _scalar(store, "SELECT count(*) FROM consultation WHERE status IN ('pending', 'asked')")
    )


def _progress(store: Store) -> str:
    used = _scalar(store, "SELECT count(*) FROM lesson WHERE status = 'used'")
    updates = _scalar(store, "SELECT count(*) FROM \"update\" WHERE status = 'applied'")
    return (
        f"{_undrawn(store)} tasks to draw, {_unfinished(store)} rows under way, {used} lessons used, {updates} updates"
    )


def _count(store: Store, counts: Counts) -> None:
    with store.transaction() as session:
        for name in ("rollout", "consultation", "lesson"):
            rows = session.execute(text(f"SELECT status, count(*) FROM {name} GROUP BY status"))  # noqa: S608
            getattr(counts, f"{name}s").update({str(status): int(count) for status, count in rows})
    counts.applied_updates = _scalar(store, "SELECT count(*) FROM \"update\" WHERE status = 'applied'")
    counts.abandoned_updates = _scalar(store, "SELECT count(*) FROM \"update\" WHERE status = 'abandoned'")
    counts.undrawn_tasks = _undrawn(store)
    counts.unsettled = _scalar(store, "SELECT count(*) FROM rollout WHERE status = 'open'") + _scalar(
        store, "SELECT count(*) FROM consultation WHERE status IN ('pending', 'asked')"
    )
    counts.settled_twice = _scalar(
        store,
        "SELECT count(*) FROM (SELECT FROM answer WHERE status = 'current' GROUP BY consultation_id "
        "HAVING count(*) > 1) twice",
    )
    counts.lessons_in_two_updates = _scalar(
        store,
        'SELECT count(*) FROM (SELECT FROM update_lesson l JOIN "update" u ON u.id = l.update_id '
        "WHERE u.status = 'applied' AND l.status = 'applied' GROUP BY l.lesson_id HAVING count(*) > 1) twice",
    )
    counts.lessons_forgotten = _scalar(
        store,
        "SELECT count(*) FROM lesson WHERE status IN ('open', 'ready', 'claimed') OR (status = 'used' AND NOT EXISTS "
        '(SELECT FROM update_lesson l JOIN "update" u ON u.id = l.update_id WHERE l.lesson_id = lesson.id '
        "AND u.status = 'applied'))",
    )
    counts.set_aside_without_reason = _scalar(
        store, "SELECT count(*) FROM rollout WHERE status = 'set_aside' AND reason IS NULL"
    )


def run(arguments: Sequence[str]) -> int:
    """The command; 1 when something was lost or counted twice."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kill-every", type=float, default=4.0, help="seconds between kills, on average")
    parser.add_argument("--keep", action="store_true", help="keep the folder with the logs")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="preceptor-chaos-"))
    folder.chmod(0o711)
    began = time.monotonic()

    def say(line: str) -> None:
        sys.stdout.write(f"[{time.monotonic() - began:6.0f} s] {line}\n")
        sys.stdout.flush()

    try:
        counts = run_chaos(options.tasks, options.seed, folder, options.kill_every, say)
    finally:
        if options.keep:
            say(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.write(json.dumps(asdict(counts), indent=2) + "\n")
    if faults := counts.faults():
        sys.stdout.write(f"FAULTS: {faults}\n")
        return 1
    sys.stdout.write("nothing lost, nothing counted twice\n")
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
