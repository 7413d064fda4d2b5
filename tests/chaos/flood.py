"""Post many corrections at once to a running stack, and watch whether anything else stands still.

`python -m tests.chaos.flood --home DIR --database URL --corrections 500` floods the stack that
`preceptor up --home DIR` runs, with its loop on; the chaos run calls `flood_corrections`. Measured: the longest time
without a sweep, and the longest time from a drawn rollout to its verdicts.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import UUID

from sqlalchemy import text

from services.cli.client import ApiClient
from services.contracts.corrections import (
    Correction,
    CorrectionCreate,
    CorrectionItem,
    CorrectionOutcome,
    CorrectionSubmit,
)
from services.contracts.ids import new_id
from services.contracts.persons import PersonCreate, PersonCreated
from services.contracts.rollouts import BatchedRollout, RolloutBatch, RolloutsStored
from services.contracts.tasks import Message, TaskCreate, TaskImport, TaskImported
from services.local.credentials import read_credentials
from services.local.layout import Layout
from services.store.core.transaction import Store, StoreUnavailable

NUM_PEOPLE = 16
NUM_TASKS = 50
POLL_SECONDS = 0.5
STARVED_SECONDS = 60.0


@dataclass
class Flood:
    """What was seen. Times in seconds; verdicts are those about rollouts that the loop drew meanwhile."""

    num_corrections: int
    posting_seconds: float
    watched_seconds: float = 0.0
    longest_sweep_silence: float = 0.0
    longest_verdict: float = 0.0
    num_verdicts: int = 0
    num_updates: int = 0
    num_used: int = 0
    num_measured: int = 0
    num_unmeasured: int = 0

    @property
    def is_starved(self) -> bool:
        """Whether corrections kept the sweep or a verdict waiting for longer than a minute."""
        return max(self.longest_sweep_silence, self.longest_verdict) > STARVED_SECONDS


def flood_corrections(
    api: ApiClient, store: Store, num_corrections: int, seconds: float, say: Callable[[str], None]
) -> Flood:
    """Correct so many answers to new tasks at once, then watch for so many seconds more."""
    stop = threading.Event()
    silence: list[float] = []
    items = _open_items(api, num_corrections)
    say(f"{len(items)} answers wait for people")
    began_at = _ask(store, "SELECT extract(epoch FROM now())")
    began = time.monotonic()
    watcher = threading.Thread(target=_watch_sweep, args=(store, stop, silence))
    watcher.start()
    try:
        _correct(api, items)
        found = Flood(len(items), posting_seconds=time.monotonic() - began)
        say(f"posted in {found.posting_seconds:.1f} s")
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(min(15.0, seconds))
            _count(store, found, began_at)
            say(json.dumps(asdict(found) | {"longest_sweep_silence": max(silence, default=0.0)}))
    finally:
        stop.set()
        watcher.join()
    found.watched_seconds = time.monotonic() - began
    found.longest_sweep_silence = max(silence, default=0.0)
    return found


def _open_items(api: ApiClient, num: int) -> list[UUID]:
    """Rollouts from elsewhere, each put into the human queue."""
    name = new_id().hex
    tasks = [
        TaskCreate(
            key=f"flood-{name}-{i}",
            domain="math",
            messages=[Message(role="user", content=f"{i} + {i}?")],
            metadata={"answer": str(2 * i), "reference": str(2 * i)},
        ).model_dump(mode="json")
        for i in range(min(num, NUM_TASKS))
    ]
    imported = api.post("/v1/tasks/import", TaskImport(tasks=tasks), TaskImported).tasks
    rows = [BatchedRollout(task_id=imported[i % len(imported)].id, text=f"{i}") for i in range(num)]
    stored = api.post("/v1/rollouts/batch", RolloutBatch(rollouts=rows), RolloutsStored)
    rollouts = [row.id for row in stored.rollouts if row.id is not None]
    with ThreadPoolExecutor(NUM_PEOPLE) as pool:
        asked = pool.map(
            lambda one: api.post("/v1/corrections", CorrectionCreate(rollout_id=one), Correction), rollouts
        )
        return [item.id for item in asked]


def _correct(api: ApiClient, items: Sequence[UUID]) -> None:
    """Every item by somebody, as many people at once as there are."""

    def work(person: int) -> None:
        with _new_person(api) as own:
            for item in items[person::NUM_PEOPLE]:
                own.post(f"/v1/corrections/{item}/claim", None, CorrectionItem)
                body = CorrectionSubmit(verdict="corrected", text=f"the sum is {item.int % 97}")
                own.post(f"/v1/corrections/{item}/submit", body, CorrectionOutcome)

    with ThreadPoolExecutor(NUM_PEOPLE) as pool:
        list(pool.map(work, range(NUM_PEOPLE)))


@contextmanager
def _new_person(api: ApiClient) -> Iterator[ApiClient]:
    made = api.post("/v1/persons", PersonCreate(name=f"flood-{new_id().hex}"), PersonCreated)
    with ApiClient(api.url, made.api_key) as own:
        yield own


def _watch_sweep(store: Store, stop: threading.Event, silence: list[float]) -> None:
    while not stop.wait(POLL_SECONDS):
        silence.append(_ask(store, "SELECT extract(epoch FROM now() - beat_at) FROM process WHERE name = 'sweep'"))


VERDICTS = """
SELECT count(c.settled_at), extract(epoch FROM max(coalesce(c.settled_at, now()) - c.created_at))
FROM rollout r JOIN consultation c ON c.rollout_id = r.id JOIN expert e ON e.id = c.expert_id
WHERE r.sampler_logprobs IS NOT NULL AND e.descriptor->>'verifier' = 'true' AND c.created_at > to_timestamp(:began)
"""


def _count(store: Store, found: Flood, began: float) -> None:
    with store.transaction() as session:
        num, longest = session.execute(text(VERDICTS), {"began": began}).one()
    found.num_verdicts, found.longest_verdict = int(num), float(longest or 0)
    found.num_updates = int(_ask(store, 'SELECT count(*) FROM "update" WHERE applied_at > to_timestamp(:began)', began))
    found.num_used = int(_ask(store, "SELECT count(*) FROM lesson WHERE late AND status = 'used'"))
    found.num_measured = int(_ask(store, "SELECT count(*) FROM correction_effect WHERE status = 'measured'"))
    found.num_unmeasured = int(_ask(store, "SELECT count(*) FROM correction_effect WHERE status = 'pending'"))


def _ask(store: Store, query: str, began: float | None = None) -> float:
    """A number; asked again while the database is away."""
    while True:
        try:
            with store.transaction() as session:
                return float(session.scalar(text(query), {} if began is None else {"began": began}) or 0)
        except StoreUnavailable:
            time.sleep(POLL_SECONDS)


def run(arguments: Sequence[str]) -> int:
    """The command; 1 when the sweep or a verdict took longer than a minute."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.flood", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--home", type=Path, required=True, help="the data folder of the running stack")
    parser.add_argument("--database", required=True, help="its database's URL")
    parser.add_argument("--corrections", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=240.0, help="to watch after the last was posted")
    options = parser.parse_args(arguments)
    credentials = read_credentials(Layout.open(options.home))
    assert credentials is not None, "no stack was ever started on this folder"

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    with ExitStack() as cleanup:
        api = cleanup.enter_context(ApiClient(credentials.api_url, credentials.api_key))
        store = Store(options.database, pool_size=3)
        cleanup.callback(store.close)
        found = flood_corrections(api, store, options.corrections, options.seconds, say)
    say(json.dumps(asdict(found), indent=2))
    return int(found.is_starved)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
