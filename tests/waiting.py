"""Waiting for something to happen. There is no deadline: pytest's own timeout ends a test that waits in vain."""

import time
from collections.abc import Callable


def wait_until(holds: Callable[[], bool], alive: Callable[[], bool] = lambda: True, pause: float = 0.02) -> None:
    """Return as soon as `holds()` is true; fail when it is false and whatever should make it true has ended.

    Units: pause in seconds, between two looks.
    """
    while True:
        was_alive = alive()  # asked first: what it did last counts
        if holds():
            return
        assert was_alive, "what should have brought it about has ended"
        time.sleep(pause)
