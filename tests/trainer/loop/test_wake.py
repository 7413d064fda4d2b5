"""Hints that there may be something to learn: taken at once, and done without when the broker is away."""

import threading
import time

import pytest
from redis import Redis

from services.jobs.app import LESSONS_QUEUE, app
from tests.trainer.training import NOWHERE
from trainer.loop.wake import Wake

pytestmark = pytest.mark.integration


def put(url: str, number: int = 1) -> None:
    with app.connection_for_write(url) as connection:
        queue = connection.SimpleQueue(LESSONS_QUEUE, no_ack=True)
        for _ in range(number):
            queue.put({})
        queue.close()


def seconds_of(wake: Wake, seconds: float) -> float:
    began = time.monotonic()
    wake.wait(seconds)
    return time.monotonic() - began


def test_a_hint_ends_the_wait_and_every_hint_that_lies_there_is_taken(redis_url: str) -> None:
    wake = Wake(redis_url)
    put(redis_url, 5)
    wake.wait(600)
    with Redis.from_url(redis_url) as client:
        assert client.llen(LESSONS_QUEUE) == 0
    wake.close()


def test_a_hint_that_comes_while_it_waits_ends_the_wait(redis_url: str) -> None:
    wake = Wake(redis_url)
    timer = threading.Timer(0.5, put, [redis_url])
    timer.start()
    wake.wait(600)
    timer.join()
    wake.close()


def test_without_a_hint_it_waits_its_time(redis_url: str) -> None:
    wake = Wake(redis_url)
    assert seconds_of(wake, 1) >= 0.9
    wake.close()


def test_without_a_broker_it_is_a_clock() -> None:
    wake = Wake(NOWHERE.replace("http", "redis"))
    assert seconds_of(wake, 1) >= 0.9
    wake.close()
