"""Celery's consumer, less the two ways in which it ends when the broker goes away while a task runs.

When a connection is lost, kombu puts the messages of running tasks back by way of that very connection; and a task that
ends later acknowledges its message on it. Both raise an AttributeError, which Celery does not count among a
connection's errors, so the whole worker ends. Neither is needed: a message that was not acknowledged comes again, and
the row decides.
"""

from collections.abc import Callable
from typing import Any

import structlog
from celery.worker.consumer import Consumer

log = structlog.get_logger(__name__)


class LastingConsumer(Consumer):
    """Named by `worker_consumer` in the app's settings."""

    task_consumer: Any  # kombu's, which its stubs do not know of

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Give the lost connection up as it is."""
        if self.task_consumer is not None:
            self.task_consumer.channel.do_restore = False
        super().on_connection_error_after_connected(exc)

    def call_soon_ack(self, p: Callable[..., object], *args: object, **kwargs: object) -> object:
        """Send an acknowledgement soon; one that cannot be sent is only logged."""

        def acknowledge() -> None:
            try:
                p(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - whatever kombu raises on a closed channel
                log.warning("message not acknowledged", reason=repr(error)[:300])

        return super().call_soon_ack(acknowledge)  # type: ignore[misc]  # its stubs are of an older Celery
