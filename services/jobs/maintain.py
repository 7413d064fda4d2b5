"""The sweep, once a second: plan draws, resend lost messages, free leases of dead workers, close finished rows, take
measurements of what teaches a step on.

No draws are planned or sent while a disk is nearly full; `status` shows the reason.
"""

import os
import socket
from uuid import UUID

import structlog
from sqlalchemy import text
from sqlalchemy.orm import Session

from services.contracts.rollouts import Sampling
from services.jobs import dispatch
from services.jobs.app import app, shares
from services.jobs.runtime import runtime
from services.runtime import space
from services.runtime.settings import Settings
from services.store.core import row_counts
from services.store.core.transaction import Store
from services.store.corrections import claims, corrections, effects
from services.store.ledger import lessons
from services.store.loop import evaluations, groups, lineages, processes, settling, tasks
from services.store.loop import switches as loop
from services.store.tables.loop import GroupRow
from services.store.teaching import measurements, roll_in, rounds, scouts
from services.store.teaching.candidates import Ages
from services.store.teaching.roll_in import Teaching

_LOCK = 0x7072656365707402  # two sweeps at once would only wait for each other
_MAX_RESENT = 256
_MAX_MEASURED = 32  # at once: short answers that the policy server draws in one go

MAX_SKEW_SECONDS = 60.0

log = structlog.get_logger(__name__)


@app.task(name="maintain")
@shares.bound("maintain")
def maintain() -> None:
    """One sweep; returns at once while another one runs."""
    held = runtime()
    settings = held.settings
    shortage = _look_for_room(held.store, settings)
    with held.store.transaction() as session:
        if not session.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _LOCK}):
            return
        due = settling.sweep(session, resend_seconds=settings.resend_seconds, limit=_MAX_RESENT)
        claims.free_expired(session)
        freed = lessons.free_expired(session) + corrections.teach_waiting(session)
        evaluations.finish_complete(session)
        row_counts.fold(session)
        lineage = lineages.get(session, settings.lineage)
        processes.beat(session, "sweep", os.getpid(), "sweeping", {})
        _compare_clock(session)
        effects.plan(session, lineage.id)
        unmeasured = effects.take_due(session, resend_seconds=settings.resend_seconds, limit=_MAX_MEASURED)
        planned = []
        switches = loop.get(session, lineage.id)
        if switches.sampling and shortage is None:
            planned = _plan(session, lineage.id, settings)
        rules = measuring_rules(settings)
        may_draw = shortage is None
        measurements.advance(session, lineage.id, rules, is_sampling=switches.sampling, may_draw=may_draw)
        drawn = [(str(group.id), str(group.task_id)) for group in planned]
    for group_id, task_id in drawn:
        log.info("draw planned", group_id=group_id, task_id=task_id)
    dispatch.consultations(due)
    dispatch.effects(unmeasured)
    dispatch.draws(held.store, settings)
    if freed:
        dispatch.lessons()


def _plan(session: Session, lineage_id: UUID, settings: Settings) -> list[GroupRow]:
    """Plan train groups for as many tasks as there is room for, with the share that their teachers draw; scout those
    tasks and the next ones where teachers would have nothing of a task's own to draw after."""
    size, sampling = settings.group_size, train_sampling(settings)
    room = groups.find_room(session, lineage_id, max_backlog=settings.max_backlog_lessons, size=size)
    if not room:
        return []
    num_looked_at = room
    if settings.roll_in:
        num_looked_at = (room + scouts.AHEAD) * max(1, size // settings.roll_in_group_size)
    most = settings.max_groups_per_task
    nearest = tasks.least_drawn(session, lineage_id, most, size, num_looked_at, settings.seed)
    found = roll_in.choose(session, lineage_id, nearest, size=size, teaching=_teaching(settings))
    waiting = scouts.send(session, nearest, found.unheard, sampling)
    ready = [task for task in nearest if task.id not in waiting]
    sizes = {task_id: share.size for task_id, share in found.shares.items()}
    chosen = tasks.take_turns(ready, sizes, size=size, num_turns=room)
    return groups.plan(session, chosen, size=size, sampling=sampling, seed=settings.seed, shares=found.shares)


def _teaching(settings: Settings) -> Teaching:
    return Teaching(
        share=settings.roll_in,
        least_size=settings.roll_in_group_size,
        temperature=settings.teacher_temperature,
        contexts=runtime().contexts,
        num_precedents=settings.precedents,
    )


def _look_for_room(store: Store, settings: Settings) -> str | None:
    """Record for `status` why there is too little space, in its own transaction: a full disk may refuse others."""
    with store.transaction() as session:
        shortage = space.find_shortage(settings, _database_bytes(session) if settings.max_database_gb else 0)
        loop.block(session, lineages.get(session, settings.lineage).id, shortage)
    return shortage


def _compare_clock(session: Session) -> None:
    """Report under this machine's name that its clock is wrong, for as long as it is. No decision here depends on it:
    rows, deadlines and signatures are compared with the database's clock."""
    name = f"{processes.CLOCK_OF}{socket.gethostname()}"
    ahead = processes.compare_clock(session)
    if abs(ahead) <= MAX_SKEW_SECONDS:
        processes.forget(session, name)
        return
    words = f"{abs(ahead) / 60:.0f} minutes {'ahead of' if ahead > 0 else 'behind'} the database's clock"
    processes.beat(session, name, os.getpid(), words, {})


def _database_bytes(session: Session) -> int:
    return int(session.scalar(text("SELECT pg_database_size(current_database())")) or 0)


def train_sampling(settings: Settings) -> Sampling:
    """How train rollouts are drawn: the full softmax at the sampling temperature."""
    return Sampling(
        temperature=settings.sampling_temperature, max_new_tokens=settings.max_new_tokens, stop=settings.stop
    )


def measuring_rules(settings: Settings) -> rounds.Rules:
    """How student, teacher and control are drawn, all at the teacher's temperature."""
    return rounds.Rules(
        sampling=train_sampling(settings).model_copy(update={"temperature": settings.teacher_temperature}),
        seed=settings.seed,
        share=settings.measuring_share,
        max_tokens=settings.measuring_tokens,
        num_precedents=settings.precedents,
        ages=Ages(settings.remeasure_versions, settings.remeasure_answers),
        promote=settings.promote_measured,
    )
