"""Commands to run, and what tests ask of processes they did not start themselves."""

import sys

import psutil
import redis

from tests.waiting import wait_until

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]


def python(code: str) -> list[str]:
    """The command that runs this code."""
    return [sys.executable, "-S", "-c", code]


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; one that ends between the two looks does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def await_gone(processes: list[psutil.Process]) -> None:
    """Return when none of them lives."""
    wait_until(lambda: not any(is_alive(process) for process in processes))


def await_written(client: redis.Redis) -> None:
    """Return when the broker has given its file everything: while an older part is synced it waits with that."""
    wait_until(lambda: client.info("persistence")["aof_buffer_length"] == 0)
