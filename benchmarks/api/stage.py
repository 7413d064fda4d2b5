"""What the measurements run on: embedded Postgres (durable) and Valkey, a stand-in policy, the api process."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import httpx2
import psutil
from sqlalchemy import delete, text

from benchmarks.api.policy import BASE, TOKENIZER, VOCAB
from services.contracts.answers import AnswerKind
from services.contracts.experts import Descriptor
from services.contracts.tasks import Message, Split, TaskCreate
from services.local.layout import free_port
from services.local.servers.postgres import EmbeddedPostgres
from services.local.servers.valkey import EmbeddedValkey
from services.store.core import migrate
from services.store.core.transaction import Store
from services.store.loop import lineages, tasks
from services.store.people import keys, persons
from services.store.tables.loop import ExpertRow

START_SECONDS = 60
NUM_TASKS = 200


@dataclass(frozen=True)
class Cpu:
    """Processor seconds, user and system."""

    api: float
    postgres: float
    policy: float

    def __sub__(self, before: "Cpu") -> "Cpu":
        return Cpu(self.api - before.api, self.postgres - before.postgres, self.policy - before.policy)


@dataclass(frozen=True)
class Stage:
    """Everything that runs."""

    url: str
    key: str
    store: Store
    postgres: EmbeddedPostgres
    lineage_id: UUID
    task_ids: list[UUID]
    api_pid: int
    policy_pid: int
    postgres_pid: int

    def read_cpu(self) -> Cpu:
        """What the processes have used until now; of Postgres every backend, dead ones too."""
        return Cpu(_seconds(self.api_pid), _seconds_of_tree(self.postgres_pid), _seconds(self.policy_pid))

    def put_experts(self, count: int) -> None:
        """Let so many experts match every task; their questions stay where they are, for no worker runs."""
        with self.store.transaction() as session:
            session.execute(text("TRUNCATE consultation, rollout, rollout_group, idempotency CASCADE"))
            session.execute(delete(ExpertRow))
            for number in range(count):
                name = f"expert-{number}"
                descriptor = Descriptor(
                    name=name, version="1", kinds=[AnswerKind.SCORE], domains=["*"], deterministic=True, verifier=True
                )
                session.add(
                    ExpertRow(
                        lineage_id=self.lineage_id,
                        name=name,
                        endpoint=f"http://127.0.0.1:1/{name}",
                        version="1",
                        descriptor=descriptor.model_dump(mode="json"),
                        status="active",
                        granted=[],
                        trusted=True,
                        weight=1.0,
                        report={"endpoint": "", "descriptor": None, "checks": []},
                    )
                )


@contextmanager
def set_up(kept: Path | None = None) -> Iterator[Stage]:
    """Start everything in a folder of its own, deleted in the end, or in one that is kept for the next time."""
    with ExitStack() as stack:
        folder = kept or Path(tempfile.mkdtemp(prefix="preceptor-bench-"))
        folder.mkdir(exist_ok=True)
        folder.chmod(0o711)
        if kept is None:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        postgres = stack.enter_context(EmbeddedPostgres(folder / "postgres"))
        valkey = stack.enter_context(EmbeddedValkey(folder / "valkey"))
        migrate.upgrade(postgres.url)
        store = Store(postgres.url, pool_size=2)
        stack.callback(store.close)
        with store.transaction() as session:
            lineage = lineages.ensure(session, "main", "stand-in", BASE, TOKENIZER, VOCAB)
            owner = persons.find_owner(session)
            _, key = keys.issue(session, owner.id, f"benchmark-{time.time_ns()}")
            task_ids = [tasks.add(session, lineage.id, _task(number))[0].id for number in range(NUM_TASKS)]
            [postmaster] = session.execute(text("SELECT pg_read_file('postmaster.pid')")).scalars()
        policy_port, api_port = free_port(), free_port()
        environment = os.environ | {
            "DATABASE_URL": postgres.url,
            "REDIS_URL": valkey.url,
            "PRECEPTOR_POLICY_URL": f"http://127.0.0.1:{policy_port}",
            "PRECEPTOR_API_OPEN": "true",  # pages without a login: the first owner looks at them
        }
        policy = stack.enter_context(_run("benchmarks.api.policy", policy_port, environment, "/v1/policy"))
        api = stack.enter_context(_run("benchmarks.api.server", api_port, environment, "/healthz"))
        yield Stage(
            url=f"http://127.0.0.1:{api_port}",
            key=key,
            store=store,
            postgres=postgres,
            lineage_id=lineage.id,
            task_ids=task_ids,
            api_pid=api,
            policy_pid=policy,
            postgres_pid=int(postmaster.split()[0]),
        )


def _task(number: int) -> TaskCreate:
    return TaskCreate(
        key=f"task-{number}",
        domain=("math", "code/python", "tool-call")[number % 3],
        split=Split.TRAIN,
        messages=[Message(role="user", content=f"Question {number}: " + "what comes next? " * 20)],
        metadata={"answer": str(number)},
    )


@contextmanager
def _run(module: str, port: int, environment: dict[str, str], path: str) -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-m", module, "--port", str(port)], env=environment)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(f"http://127.0.0.1:{port}{path}"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{module} did not start")
            time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=2).is_success
    except httpx2.TransportError:
        return False


def _seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _seconds_of_tree(pid: int) -> float:
    parent = psutil.Process(pid)
    ended = parent.cpu_times()
    living = sum(_seconds(child.pid) for child in parent.children())
    return float(_seconds(pid) + living + ended.children_user + ended.children_system)
