"""Sending messages after a commit. Never raises: the sweep resends lost messages."""

from collections.abc import Sequence
from uuid import UUID

import structlog
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from services.jobs.app import LESSONS_QUEUE, app
from services.runtime.settings import Settings
from services.store.core.transaction import Store
from services.store.loop import groups

CONSULTATIONS_PER_MESSAGE = 16  # sent concurrently by one task

log = structlog.get_logger(__name__)


def _send(task: str, ids: Sequence[UUID]) -> None:
    try:
        app.send_task(task, args=[[str(i) for i in ids]])
    except (KombuError, RedisError, OSError) as error:
        log.warning("message not sent", task=task, ids=len(ids), reason=str(error))


def consultations(ids: Sequence[UUID]) -> None:
    """Send tasks for these consultations."""
    for start in range(0, len(ids), CONSULTATIONS_PER_MESSAGE):
        _send("consult", ids[start : start + CONSULTATIONS_PER_MESSAGE])


def effects(ids: Sequence[UUID]) -> None:
    """Send tasks that measure these effects of corrections."""
    if ids:
        _send("measure", ids)


def draws(store: Store, settings: Settings) -> None:
    """Send tasks for the groups that there is room for."""
    with store.transaction() as session:
        due = groups.take_due(
            session, max_in_flight=settings.max_groups_in_flight, resend_seconds=settings.resend_seconds
        )
    for group_id in due:
        _send("sample", [group_id])


def lessons() -> None:
    """Wake the trainer: there may be something to learn."""
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1)
            queue = connection.SimpleQueue(LESSONS_QUEUE, no_ack=True)
            queue.put({}, expiration=30)
            queue.close()
    except (KombuError, RedisError, OSError) as error:
        log.warning("trainer not woken", reason=str(error))
