"""Consulting experts."""

from uuid import UUID

from celery import Task

from services.jobs.app import app
from services.jobs.runtime import runtime


@app.task(name="consult", bind=True)
def consult(self: "Task[..., None]", consultation_ids: list[str]) -> None:
    """Send these consultations, each in its expert's queue (asking.py); safe to deliver twice.

    In a worker it returns at once and holds no thread. Called as a function it returns when they are answered.
    """
    held = runtime()
    held.asker.submit([UUID(one) for one in consultation_ids])
    if self.request.called_directly:
        held.asker.drain(held.settings.consultation_lease_seconds)
