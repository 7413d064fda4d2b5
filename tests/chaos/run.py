"""One run: everything is disturbed while every task is drawn once; then peace, and the invariants are asked."""

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sqlalchemy import text

from services.cli.client import ApiClient, ApiProblem, ApiUnreachable
from services.contracts.experts import Expert, ExpertCreate
from services.contracts.status import LoopState, LoopSwitch
from services.contracts.tasks import Message, TaskCreate, TaskImport, TaskImported
from services.local.supervise import stack
from services.policy.model.tiny import make_tiny_policy
from services.runtime.settings import Settings
from services.store.core.transaction import Store
from tests.chaos.flood import flood_corrections
from tests.chaos.invariants import find_violations
from tests.chaos.processes import VICTIMS, Victims
from tests.chaos.strangers import serve_strangers
from tests.disks import fill, mounted

GROUP_SIZE = 2
QUIET_SECONDS = 420.0
FROZEN_SECONDS = 12.0  # longer than the deadline of every call that a request makes
FULL_SECONDS = 12.0
DISK_SIZE = "1500m"  # of the data folder, where a disk can be mounted
FLOOD = 40  # corrections at once
FLOOD_SECONDS = 10.0  # watched after the last of them
SETTINGS = {
    "PRECEPTOR_GROUP_SIZE": str(GROUP_SIZE),
    "PRECEPTOR_MAX_NEW_TOKENS": "8",
    "PRECEPTOR_MAX_BACKLOG_LESSONS": "160",
    "PRECEPTOR_MAX_GROUPS_PER_TASK": "1",
    "PRECEPTOR_MAX_STALENESS": "1000",
    "PRECEPTOR_MIN_FREE_GB": "0.05",
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
    """What happened, and what the database says afterwards. `violations` and `starved_floods` must be none."""

    tasks: int = 0
    disturbances: dict[str, int] = field(default_factory=dict)
    not_disturbed: dict[str, str] = field(default_factory=dict)
    ended_by_themselves: dict[str, int] = field(default_factory=dict)
    corrections: int = 0
    starved_floods: int = 0
    refused_by_busy: int = 0
    answered_by_confident: int = 0
    rollouts: dict[str, int] = field(default_factory=dict)
    consultations: dict[str, int] = field(default_factory=dict)
    lessons: dict[str, int] = field(default_factory=dict)
    applied_updates: int = 0
    abandoned_updates: int = 0
    seconds: float = 0.0
    violations: dict[str, int] = field(default_factory=dict)


def run_chaos(
    num_tasks: int,
    seed: int,
    folder: Path,
    disturb_every: float,
    say: Callable[[str], None],
    environ: Callable[[str, str], None] = os.environ.__setitem__,
) -> Counts:
    """Run it in an empty folder; a disturbance comes every `disturb_every` seconds on average, chosen by `seed`.

    environ: sets a variable of this process's environment, which the processes inherit.
    """
    began = time.monotonic()
    with ExitStack() as cleanup:
        chaos = cleanup.enter_context(_Chaos.begin(num_tasks, folder, say, environ))
        chance = random.Random(seed)
        say(f"disturbing, seed {seed}")
        deck: list[str] = []
        left = max(40 + 2 * num_tasks, 2 * len(chaos.kinds) * disturb_every)
        while left > 0 and (chaos.has_work() or sum(chaos.counts.disturbances.values()) < len(chaos.kinds)):
            pause = chance.uniform(0.5, 1.5) * disturb_every
            left -= pause
            time.sleep(pause)
            deck = deck or chance.sample(sorted(chaos.kinds), len(chaos.kinds))  # every kind once a round
            chaos.disturb(deck.pop())
        say("now it may finish in peace")
        deadline = time.monotonic() + QUIET_SECONDS
        while chaos.has_work() and time.monotonic() < deadline:
            chaos.revive()
            time.sleep(1)
        chaos.count()
        counts = chaos.counts
    counts.seconds = time.monotonic() - began
    return counts


class _Chaos:
    """The running product, what can be done to it, and what was."""

    def __init__(self, victims: Victims, api: ApiClient, store: Store, counts: Counts, say: Callable[[str], None]):
        self.counts = counts
        self._victims, self._api, self._store, self._say = victims, api, store, say
        self.kinds: dict[str, Callable[[], None]] = {
            **{f"kill -9 {name}": partial(victims.kill, name) for name in VICTIMS},
            "freeze postgres": lambda: victims.freeze_postgres(FROZEN_SECONDS),
            "flood corrections": self._flood,
        }
        counts.disturbances = dict.fromkeys(self.kinds, 0)

    @classmethod
    @contextmanager
    def begin(
        cls, num_tasks: int, folder: Path, say: Callable[[str], None], environ: Callable[[str, str], None]
    ) -> Iterator["_Chaos"]:
        """The product with its tasks and two strangers among its experts, until the block ends."""
        counts = Counts(tasks=num_tasks)
        with ExitStack() as cleanup:
            model = folder / "model"
            make_tiny_policy(model)
            (folder / "data").mkdir(mode=0o711)
            no_disk = cleanup.enter_context(mounted(folder / "data", DISK_SIZE))
            victims = Victims(folder)
            cleanup.callback(victims.stop)
            victims.postgres.start()
            victims.valkey.start()
            told = stack.environment(victims.layout, victims.postgres.url, victims.valkey.url_of(0)) | SETTINGS
            for name, value in told.items():
                environ(name, value)
            settings = Settings()
            api = cleanup.enter_context(victims.bring_up(settings, model))
            store = Store(settings.database_url, pool_size=2)
            cleanup.callback(store.close)
            url, busy, confident = cleanup.enter_context(serve_strangers())
            for stranger in (busy, confident):
                api.post("/v1/experts", ExpertCreate(endpoint=f"{url}/{stranger.descriptor.name}"), Expert)
            busy.is_open = False
            _import(api, num_tasks)
            api.post("/v1/loop", LoopSwitch(sampling=True, training=True), LoopState)
            chaos = cls(victims, api, store, counts, say)
            if no_disk is None:
                chaos.kinds["fill the disk"] = chaos._fill_disk
                counts.disturbances["fill the disk"] = 0
            else:
                counts.not_disturbed["fill the disk"] = no_disk
            yield chaos
            counts.refused_by_busy, counts.answered_by_confident = busy.num_refused, confident.num_answered

    def disturb(self, kind: str) -> None:
        """Do one of `kinds`, and start again what ended of it, as the supervisor would."""
        self._say(f"{kind}; {self._progress()}")
        self.kinds[kind]()
        self.counts.disturbances[kind] += 1
        self.revive()

    def revive(self) -> None:
        """Start again what ended by itself."""
        for name in self._victims.revive():
            self._say(f"{name} had ended by itself")
            self.counts.ended_by_themselves[name] = self.counts.ended_by_themselves.get(name, 0) + 1

    def has_work(self) -> bool:
        """Whether a task is still to be drawn, or a row is under way that somebody waits for."""
        return bool(self._undrawn() or self._unfinished())

    def count(self) -> None:
        """Fill in what the database says."""
        self._say(self._progress())
        with self._store.transaction() as session:
            for name in ("rollout", "consultation", "lesson"):
                rows = session.execute(text(f"SELECT status, count(*) FROM {name} GROUP BY status"))  # noqa: S608
                getattr(self.counts, f"{name}s").update({str(status): int(count) for status, count in rows})
        self.counts.applied_updates = self._scalar("SELECT count(*) FROM \"update\" WHERE status = 'applied'")
        self.counts.abandoned_updates = self._scalar("SELECT count(*) FROM \"update\" WHERE status = 'abandoned'")
        self.counts.violations = find_violations(self._store)

    def _fill_disk(self) -> None:
        filler = fill(self._victims.layout.root)
        try:
            time.sleep(FULL_SECONDS)
        finally:
            filler.unlink()

    def _flood(self) -> None:
        found = flood_corrections(self._api, self._store, FLOOD, FLOOD_SECONDS, self._say)
        self.counts.corrections += found.num_corrections
        self.counts.starved_floods += found.is_starved

    def _scalar(self, query: str) -> int:
        """A count; asked again while the database is away."""
        deadline = time.monotonic() + 60
        while True:
            try:
                with self._store.transaction() as session:
                    return int(session.scalar(text(query)) or 0)
            except Exception:
                if time.monotonic() > deadline:
                    raise
                self.revive()
                time.sleep(0.5)

    def _undrawn(self) -> int:
        return self._scalar(
            "SELECT count(*) FROM task t WHERE NOT EXISTS "
            "(SELECT FROM rollout_group g WHERE g.task_id = t.id AND g.status IN ('sampled', 'dead'))"
        )

    def _unfinished(self) -> int:
        return self._scalar(
            "SELECT (SELECT count(*) FROM rollout WHERE status = 'open')"
            " + (SELECT count(*) FROM lesson WHERE status IN ('open', 'ready', 'claimed'))"
            " + (SELECT count(*) FROM policy_version WHERE status = 'candidate')"
            " + (SELECT count(*) FROM consultation c JOIN expert e ON e.id = c.expert_id"
            "    WHERE c.status IN ('pending', 'asked') AND e.status = 'active')"
        )

    def _progress(self) -> str:
        used = self._scalar("SELECT count(*) FROM lesson WHERE status = 'used'")
        updates = self._scalar("SELECT count(*) FROM \"update\" WHERE status = 'applied'")
        return (
            f"{self._undrawn()} tasks to draw, {self._unfinished()} rows under way, "
            f"{used} lessons used, {updates} updates"
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
