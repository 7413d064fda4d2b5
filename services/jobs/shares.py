"""Every kind of work has its own bounded share of a worker's threads, so that no kind blocks another.

A message that finds its kind's share in use is dropped: its row still waits, and is sent again. Consultations need no
share, since no thread waits for an expert (asking.py). There are as many threads as all shares together and some to
spare, so a message never waits for another kind's thread.
"""

import threading
from collections.abc import Callable
from functools import wraps
from typing import Final, ParamSpec

import structlog

SPARE_THREADS: Final = 4  # for messages that are passed on or dropped

P = ParamSpec("P")

log = structlog.get_logger(__name__)


class Shares:
    """How many threads of a worker each kind of work may hold at once."""

    def __init__(self, num_draws: int) -> None:
        self._sizes = {"sample": num_draws, "maintain": 1, "measure": 1, "readmit": 1, "retain": 1}

    @property
    def num_threads(self) -> int:
        """The number of threads with which every share is always available."""
        return sum(self._sizes.values()) + SPARE_THREADS

    def bound(self, kind: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
        """A decorator: the function runs only while its kind's share is not used up; otherwise it returns at once."""
        places = threading.BoundedSemaphore(self._sizes[kind])

        def bind(work: Callable[P, None]) -> Callable[P, None]:
            @wraps(work)
            def run(*args: P.args, **kwargs: P.kwargs) -> None:
                if not places.acquire(blocking=False):
                    log.debug("no thread of its share is free", kind=kind)
                    return
                try:
                    work(*args, **kwargs)
                finally:
                    places.release()

            return run

        return bind
