"""Waits for a hint that there may be something to learn. Hints may be lost, late or too many; rows decide."""

import time
from queue import Empty
from typing import Any

from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from services.jobs.app import LESSONS_QUEUE, app

MAX_DRAINED = 1000  # hints taken at once; they all mean the same


class Wake:
    """The queue of hints. With the broker away it is a clock."""

    def __init__(self, redis_url: str) -> None:
        self._url = redis_url
        self._connection: Any = None  # kombu's, which is untyped
        self._queue: Any = None

    def wait(self, seconds: float) -> None:
        """Return at the next hint, or after `seconds`. Every hint is acknowledged at once."""
        began = time.monotonic()
        try:
            queue = self._open()
            queue.get(block=True, timeout=seconds)
            for _ in range(MAX_DRAINED):
                queue.get(block=False)
        except Empty:
            return
        except (KombuError, RedisError, OSError):
            self.close()
            time.sleep(max(0.0, seconds - (time.monotonic() - began)))

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection, self._queue = self._connection, None, None
        if connection is not None:
            connection.release()

    def _open(self) -> Any:
        if self._queue is None:
            self._connection = app.connection_for_read(self._url)
            self._connection.ensure_connection(max_retries=1)
            self._queue = self._connection.SimpleQueue(LESSONS_QUEUE, no_ack=True)
        return self._queue
