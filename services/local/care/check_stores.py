"""The checks of `preceptor doctor` on what keeps this installation's state: the database, the weights it names, and the
broker.
"""

import contextlib
import time
from datetime import timedelta
from typing import Final

import redis
from sqlalchemy import func, select, text

from services.local.care import clocks
from services.local.care.backup import find_fault
from services.local.care.clocks import SKEW_SECONDS
from services.local.care.findings import ASK_SECONDS, Finding, Findings, fail, ok, warn
from services.local.installation import Installation
from services.local.layout import Layout
from services.policy.artifacts import ArtifactStore
from services.runtime.space import GB
from services.store.core import migrate
from services.store.core.transaction import Store, StoreUnavailable
from services.store.ledger import fallbacks, policies
from services.store.loop import lineages, processes, switches
from services.store.loop.lineages import LineageNotFound
from services.store.tables.ledger import PolicyVersionRow

MIN_POSTGRES: Final = 150_000
NUM_LOOKED_AT: Final = 4
"""Weights a folder that are read while the database is down and cannot say which are needed."""


def check_database(installation: Installation) -> Findings:
    """Reachable, new enough, migrated, its clock with ours; the weights named by the ledger are on disk and whole."""
    if installation.database_url is None:
        yield warn("database", "not checked: it runs with the stack, which is down", "Start it: `preceptor up`.")
        yield from _check_newest_weights(installation.layout)
        return
    try:
        migrate.check_url(installation.database_url)
    except migrate.DatabaseUrlWrong as error:
        yield fail("database", error.detail, error.hint)
        return
    try:
        with open_store(installation) as store:
            yield from _look_into_database(installation, store)
    except StoreUnavailable as error:
        yield fail("database", error.detail, "Is DATABASE_URL right, and does the server run?")


def open_store(installation: Installation) -> contextlib.closing[Store]:
    """The database, until the block ends."""
    return contextlib.closing(Store(installation.settings.database_url, pool_size=1))


def _look_into_database(installation: Installation, store: Store) -> Findings:
    with store.reading() as session:
        began = time.time()
        version, shown, now = session.execute(
            text(
                "SELECT current_setting('server_version_num')::int, current_setting('server_version'),"
                " extract(epoch FROM clock_timestamp())::float8"
            )
        ).one()
        skew = now - (began + time.time()) / 2
        revision, size = (
            migrate.find_revision(session),
            session.scalar(text("SELECT pg_database_size(current_database())")),
        )
    found = f"Postgres {shown}, {int(size or 0) / GB:.2f} GB"
    if version < MIN_POSTGRES:
        yield fail("database", found, "Preceptor needs Postgres 15 or newer.")
    else:
        yield ok("database", found)
    yield clocks.judge_skew("clock of the database", skew, SKEW_SECONDS)
    head = migrate.find_head()
    if revision is not None and not migrate.knows(revision):
        found = f"the database is at {revision}, newer than this version of Preceptor, which knows {head}"
        yield fail("migration", found, "Install the version of Preceptor that migrated it.")
        return
    if revision != head:
        todo = "`preceptor up` migrates (elsewhere `preceptor init`); make a backup first."
        yield fail("migration", f"the database is at {revision or 'no schema'}, this version needs {head}", todo)
        return
    yield ok("migration", f"at {head}, which this version needs")
    yield from _check_weights(installation, store)


def _check_weights(installation: Installation, store: Store) -> Findings:
    """That the weights training and serving would continue from are there, bit for bit."""
    settings = installation.settings
    try:
        with store.reading() as session:
            lineage = lineages.get(session, settings.lineage)
            start = fallbacks.starting_point(session, lineage.id)
            refused = fallbacks.refusals(session, lineage.id)
            serving = policies.serving(session, lineage.id)
            blocked = switches.get(session, lineage.id).blocked_by
    except LineageNotFound:
        yield ok("weights", f"no lineage {settings.lineage!r} yet; the first `preceptor up` begins it")
        return
    if blocked is not None:
        yield fail("room to sample", blocked, "It resumes by itself once there is room.")
    yield _judge_gate(refused, serving)
    places = [
        (f"checkpoint of update {start.number}", settings.home / "checkpoints" / lineage.name, start.checkpoint_sha256)
        if start is not None
        else ("", settings.home, None),
        (f"weights of {serving.name}", settings.home / "artifacts", serving.artifact_sha256)
        if serving is not None
        else ("", settings.home, None),
    ]
    for what, folder, address in places:
        if address is None:
            continue
        fault = find_fault(ArtifactStore(folder), address)
        if fault is not None:
            yield fail(what, fault, "Restore the file from a backup; training cannot continue without it.")
        else:
            yield ok(what, f"{address[:12]}… is present and intact")


def _judge_gate(refused: fallbacks.Refusals, serving: PolicyVersionRow | None) -> Finding:
    """Whether trained versions get to serve."""
    said = fallbacks.describe(refused, serving)
    if said is None:
        return ok("gate", "the newest tested version is serving")
    if len(refused.versions) == 1 and not refused.fallbacks:
        return warn(
            "gate", said, "`preceptor policies show NAME` has the check that failed; a single refusal is harmless."
        )
    todo = (
        "`preceptor policies show NAME` has the checks that failed. Lower PRECEPTOR_TRAINER_LEARNING_RATE, or raise the"
        " bound that is too tight (PRECEPTOR_TRAINER_GATE_…), and start again."
    )
    return fail("gate", said, todo)


def _check_newest_weights(layout: Layout) -> Findings:
    """That the newest weights are whole, bit for bit: which are needed only the database can say."""
    folders = [layout.artifacts]
    if layout.checkpoints.is_dir():
        folders += sorted(folder for folder in layout.checkpoints.iterdir() if folder.is_dir())
    for folder in folders:
        stored = [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
        newest = sorted(stored, key=lambda path: path.stat().st_mtime, reverse=True)[:NUM_LOOKED_AT]
        if not newest:
            continue
        faults = [fault for path in newest if (fault := find_fault(ArtifactStore(folder), path.name)) is not None]
        what = f"newest weights in {folder.relative_to(layout.root)}"
        if faults:
            yield fail(what, "; ".join(faults), "If the database names them, restore the files from a backup.")
        else:
            yield ok(what, f"the newest {len(newest)} of {len(stored)} are whole")


def check_beats(installation: Installation) -> Findings:
    """That no process which tells the database that it lives has been silent."""
    if not installation.is_up:
        return
    try:
        with open_store(installation) as store, store.reading() as session:
            now = session.scalars(select(func.now())).one()
            rows = [(row.name, row.activity, now - row.beat_at) for row in processes.latest(session)]
    except StoreUnavailable:
        return  # said above
    for name, activity, silent in rows:
        yield clocks.judge_beat(name, activity, silent / timedelta(seconds=1))


def check_broker(installation: Installation) -> Finding:
    """Reachable, and writing its queue to disk."""
    if installation.redis_url is None:
        return warn("broker", "not checked: it runs with the stack, which is down", "Start it: `preceptor up`.")
    try:
        with redis.Redis.from_url(
            installation.settings.redis_url, socket_timeout=ASK_SECONDS, socket_connect_timeout=ASK_SECONDS
        ) as client:
            info = client.info()
    except (redis.RedisError, OSError, ValueError) as error:  # ValueError: no address of a broker
        return fail("broker", f"it does not answer: {error}", "Is REDIS_URL right, and does the server run?")
    assert isinstance(info, dict)
    found = f"{info.get('server_name', 'redis')} {info.get('valkey_version') or info.get('redis_version')}"
    policy = info.get("maxmemory_policy")
    if policy is not None and policy != "noeviction":
        return fail("broker", f"{found} drops keys when full ({policy})", "Set `maxmemory-policy noeviction`.")
    if not info.get("aof_enabled"):
        todo = "Nothing is lost, but messages wait for the sweep after a restart: set `appendonly yes`."
        return warn("broker", f"{found} writes no append-only file", todo)
    return ok("broker", f"{found}, append-only file on, nothing is evicted")
