"""The trainer's heartbeat: a thread that renews the leases of claimed lessons and reports the current activity.

It touches no weights. While the database is away, each beat tries again; whether a lease was lost shows in the commit
that needs it.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self
from uuid import UUID

import structlog

from services.runtime import alive
from services.store.core.transaction import Store, StoreUnavailable
from services.store.ledger import lessons
from services.store.loop import processes

BEAT_SECONDS = 2.0
NAME = "trainer"

log = structlog.get_logger("trainer")


class Pulse:
    """The trainer's current activity, and seconds spent on each. Use as a context manager.

    Counters that end in `_seconds` are totals since the start: in the model, waiting for lessons, publishing.
    """

    def __init__(self, store: Store, owner: UUID, lease_seconds: float) -> None:
        self._store = store
        self._owner = owner
        self._lease_seconds = lease_seconds
        self._interval = min(BEAT_SECONDS, lease_seconds / 4)
        self._activity = "starting"
        self._counters: dict[str, float] = {}
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._changed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._changed.set()
        self._thread.join()
        self.say("stopped")
        self._beat()

    def say(self, activity: str) -> None:
        """Set the current activity; a change is reported at once."""
        with self._guard:
            changed = activity != self._activity
            self._activity = activity
        if changed:
            self._changed.set()

    def count(self, name: str, amount: float = 1) -> None:
        """Add to a counter."""
        with self._guard:
            self._counters[name] = self._counters.get(name, 0) + amount

    def totals(self) -> dict[str, float]:
        """The counters as they are."""
        with self._guard:
            return dict(self._counters)

    @contextmanager
    def spending(self, name: str, activity: str) -> Iterator[None]:
        """Count the block's seconds under `name`_seconds and report its activity."""
        self.say(activity)
        began = time.monotonic()
        try:
            yield
        finally:
            self.count(f"{name}_seconds", time.monotonic() - began)

    def _run(self) -> None:
        while not self._ended.is_set():
            self._changed.wait(self._interval)
            self._changed.clear()
            self._beat()

    def _beat(self) -> None:
        with self._guard:
            activity, counters = self._activity, {name: round(value, 3) for name, value in self._counters.items()}
        try:
            with self._store.transaction() as session:
                lessons.renew(session, self._owner, self._lease_seconds)
                processes.beat(session, NAME, os.getpid(), activity, dict(counters))
            alive.touch()
        except StoreUnavailable as error:
            log.warning("heartbeat missed", reason=error.detail)
