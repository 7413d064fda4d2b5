"""Refuses tasks and rollouts with 507 while a disk is nearly full.

The sweep measures the disks of the workers and stores the result; the api looks at its own disks too. Both are read at
most once a second, so that a thousand rollouts in a row cost no more than one.
"""

import threading
import time
from typing import Final

from services.runtime import space
from services.runtime.errors import PreceptorError
from services.runtime.settings import Settings
from services.store.core.transaction import Store
from services.store.loop import lineages, switches
from services.store.loop.lineages import LineageNotFound

KEPT_SECONDS: Final = 1.0


class OutOfSpace(PreceptorError):
    """A disk is nearly full, so no more rollouts are stored; training continues on the stored ones."""

    status_code = 507
    title = "Too little disk space"
    hint = "The request was not stored. Free space as the detail says, then send it again."
    retry_after_seconds = 30


class SpaceGuard:
    """Whether the disks have room, at most `KEPT_SECONDS` old. Safe to share between threads."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._turn = threading.Lock()
        self._looked_at = -KEPT_SECONDS
        self._shortage: str | None = None

    def check(self) -> None:
        """Pass while there is room. Errors: OutOfSpace (507), StoreUnavailable (503)."""
        with self._turn:
            if time.monotonic() - self._looked_at >= KEPT_SECONDS:
                self._shortage = space.find_shortage(self._settings) or self._read_row()
                self._looked_at = time.monotonic()
            shortage = self._shortage
        if shortage is not None:
            raise OutOfSpace(shortage)

    def _read_row(self) -> str | None:
        try:
            with self._store.reading() as session:
                return switches.get(session, lineages.get(session, self._settings.lineage).id).blocked_by
        except LineageNotFound:
            return None
