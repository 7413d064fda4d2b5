"""The sweep, once a second: plan draws, send again what was lost, free what dead workers held, close what is done."""

import structlog
from sqlalchemy import text

from services.contracts.rollouts import Sampling
from services.jobs import dispatch
from services.jobs.app import app
from services.jobs.runtime import runtime
from services.settings import Settings
from services.store import consultations, corrections, evaluations, groups, idempotency, lessons, lineages, logins, loop

_LOCK = 0x7072656365707402  # two sweeps at once would only wait for each other
_MAX_RESENT = 256

log = structlog.get_logger(__name__)


@app.task(name="maintain")
def maintain() -> None:
    """One sweep; does nothing while another one runs."""
    held = runtime()
    settings = held.settings
    with held.store.transaction() as session:
        if not session.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _LOCK}):
            return
        due = consultations.sweep(session, resend_seconds=settings.resend_seconds, limit=_MAX_RESENT)
        corrections.free_expired(session)
        freed = lessons.free_expired(session)
        evaluations.finish_complete(session)
        lineage = lineages.get(session, settings.lineage)
        planned = []
        if loop.get(session, lineage.id).sampling:
            planned = groups.plan(
                session,
                lineage.id,
                max_backlog=settings.max_backlog_lessons,
                max_groups_per_task=settings.max_groups_per_task,
                size=settings.group_size,
                sampling=train_sampling(settings),
                seed=settings.seed,
            )
        drawn = [(str(group.id), str(group.task_id)) for group in planned]
    for group_id, task_id in drawn:
        log.info("draw planned", group_id=group_id, task_id=task_id)
    dispatch.consultations(due)
    dispatch.draws(held.store, settings)
    if freed:
        dispatch.lessons()


@app.task(name="forget")
def forget() -> None:
    """Drop what is kept for a while only: the answers behind old idempotency keys, sessions long over."""
    with runtime().store.transaction() as session:
        idempotency.forget_old(session)
        logins.forget_old(session)


def train_sampling(settings: Settings) -> Sampling:
    """How train rollouts are drawn: the full softmax at the sampling temperature."""
    return Sampling(
        temperature=settings.sampling_temperature, max_new_tokens=settings.max_new_tokens, stop=settings.stop
    )
