"""Celery's consumer, without two crashes that happen if the broker disappears while a task runs.

After a lost connection, kombu puts the messages of running tasks back over the same connection, and a task that ends
later acknowledges its message on it. Both raise an AttributeError, which Celery does not treat as a connection error,
so the whole worker ends. Neither is needed: an unacknowledged message is redelivered, and the row decides.
"""

from collections.abc import Callable
from typing import Any

import structlog
from celery.worker.consumer import Consumer

log = structlog.get_logger(__name__)


class LastingConsumer(Consumer):
    """Named by `worker_consumer` in the app's settings."""

    task_consumer: Any  # kombu's, missing in its stubs

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Abandon the lost connection."""
        if self.task_consumer is not None:
            self.task_consumer.channel.do_restore = False
        super().on_connection_error_after_connected(exc)

    def call_soon_ack(self, p: Callable[..., object], *args: object, **kwargs: object) -> object:
        """Send an acknowledgement soon; one that cannot be sent is only logged."""

        def acknowledge() -> None:
            try:
                p(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - kombu raises many types on a closed channel
                log.warning("message not acknowledged", reason=repr(error)[:300])

        return super().call_soon_ack(acknowledge)  # type: ignore[misc]  # its stubs are of an older Celery
