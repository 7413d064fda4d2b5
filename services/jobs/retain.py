"""Retention, once an hour: deletes old rows and weights that are no longer needed, a bounded batch at a time."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy import text
from sqlalchemy.orm import Session

from services.jobs.app import app, shares
from services.jobs.runtime import runtime
from services.runtime.settings import Settings
from services.store.core import idempotency
from services.store.core.transaction import Store
from services.store.corrections import drafts
from services.store.loop import retention
from services.store.people import logins

_LOCK: Final = 0x7072656365707403  # two at once would only wait for each other
GROUPS_A_BATCH: Final = 100
ROWS_A_BATCH: Final = 5_000
MOST_SECONDS: Final = 300.0
"""For each kind per hour; the rest is deleted in the next hour."""

log = structlog.get_logger(__name__)


@app.task(name="retain")
@shares.bound("retain")
def retain() -> None:
    """Delete rows and weights past their retention; returns at once while another run is in progress."""
    held = runtime()
    counted = apply(held.store, held.settings)
    if any(counted.values()):
        log.info("expired rows and weights deleted", **counted)


def apply(store: Store, settings: Settings) -> dict[str, int]:
    """One round; the number of deletions by kind."""
    with store.transaction() as session:
        drafts.forget_old(session)
        num_sessions = logins.forget_old(session)
    return {
        "login_sessions": num_sessions,
        "idempotency_keys": _repeat(
            store,
            lambda session: _as_batch(
                idempotency.forget_old(session, settings.keep_idempotency_days, ROWS_A_BATCH), ROWS_A_BATCH
            ),
        ),
        "attempts": _walk(store, settings.keep_attempts_days, retention.delete_attempts, ROWS_A_BATCH),
        "groups": _walk(store, settings.keep_unused_rollouts_days, retention.delete_unused_groups, GROUPS_A_BATCH),
        "weights": delete_weights(store, settings) if settings.keep_adapters_days else 0,
    }


def _walk(store: Store, days: float, step: Callable[[Session, float, int], retention.Walked], limit: int) -> int:
    if not days:  # kept for ever
        return 0

    def batch(session: Session) -> tuple[int, bool]:
        walked = step(session, days, limit)
        return walked.num_deleted, walked.at_end

    return _repeat(store, batch)


def _as_batch(num_deleted: int, limit: int) -> tuple[int, bool]:
    return num_deleted, num_deleted < limit


def _repeat(store: Store, batch: Callable[[Session], tuple[int, bool]]) -> int:
    """Run one batch per transaction until no work is left or the time is up."""
    total = 0
    until = time.monotonic() + MOST_SECONDS
    while time.monotonic() < until:
        with store.transaction() as session:
            if not session.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _LOCK}):
                return total
            num_deleted, at_end = batch(session)
        total += num_deleted
        if at_end:
            break
    return total


def delete_weights(store: Store, settings: Settings) -> int:
    """Delete the old weights on this machine, after marking their versions; returns the number."""
    folder = settings.home / "artifacts"
    with store.transaction() as session:
        retention.retire_old_weights(session, settings.keep_adapters_days, settings.max_staleness)
    present = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    with store.transaction() as session:
        deletable = retention.choose_deletable(session, present)
    for address in deletable:
        _delete_tree(folder / address)
    return len(deletable)


def _delete_tree(path: Path) -> None:
    """Delete an artifact without ever leaving a part of it under its address."""
    doomed = path.with_name(f".deleting-{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    if doomed.is_dir():
        shutil.rmtree(doomed)
    else:
        doomed.unlink()
