"""Group commit: single rollouts that arrive at the same time share one transaction, and each gets its own answer.

While one group of requests is being stored, those that arrive wait in line and form the next group. Where the database
refuses a group, its requests are stored one by one, so that only the culprit fails.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Annotated, Final

import psycopg
from fastapi import Depends, Request
from sqlalchemy.exc import DBAPIError

from services.api.ingest import Ingest, Row
from services.store.loop.ingest import Outcome

MAX_GROUP: Final = 512

Waiting = tuple[Row, "Future[Outcome]"]


class GroupCommit:
    """The line of single rollouts and the thread that stores them. Any event loop may call `add`."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest
        self._lock = threading.Lock()
        self._line: deque[Waiting] = deque()
        self._is_storing = False
        self._thread = ThreadPoolExecutor(1, "ingest")

    def close(self) -> None:
        """Store the waiting rows, and end."""
        self._thread.shutdown(wait=True)

    async def add(self, row: Row) -> Outcome:
        """The outcome of the row, after the commit. Errors: as `Ingest.store`."""
        answer: Future[Outcome] = Future()
        with self._lock:
            self._line.append((row, answer))
            if not self._is_storing:
                self._is_storing = True
                self._thread.submit(self._drain)
        return await asyncio.wrap_future(answer)

    def _drain(self) -> None:
        while group := self._take():
            self._store(group)

    def _take(self) -> list[Waiting]:
        """The requests that wait, up to one with an idempotency key that is in the group: it finds the first's answer
        in the next group."""
        group: list[Waiting] = []
        keys: set[str] = set()
        with self._lock:
            while self._line and len(group) < MAX_GROUP and self._line[0][0].key not in keys:
                row, answer = self._line.popleft()
                if not answer.set_running_or_notify_cancel():
                    continue  # they hung up
                group.append((row, answer))
                keys.update(() if row.key is None else (row.key,))
            self._is_storing = bool(group)
        return group

    def _store(self, group: Sequence[Waiting]) -> None:
        try:
            outcomes = self._ingest.store([row for row, _ in group])
        except (DBAPIError, psycopg.Error) as refusal:
            if len(group) == 1:
                group[0][1].set_exception(refusal)
            else:
                for one in group:
                    self._store([one])
        except Exception as fault:  # noqa: BLE001  # the waiting requests get it; the api renders it
            for _, answer in group:
                answer.set_exception(fault)
        else:
            for (_, answer), outcome in zip(group, outcomes, strict=True):
                answer.set_result(outcome)


async def _get_group_commit(request: Request) -> GroupCommit:
    of_app: GroupCommit = request.app.state.group_commit
    return of_app


GroupCommitDep = Annotated[GroupCommit, Depends(_get_group_commit)]
