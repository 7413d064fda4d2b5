"""Dead letters: consultations and draws that used up their tries, kept with the reason so that they can be requeued."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.contracts.base import Page, check_change
from services.contracts.consultations import Consultation, ConsultationStatus
from services.contracts.experts import ExpertStatus
from services.contracts.persons import Right
from services.contracts.rollouts import GROUP_CHANGES, GroupStatus
from services.runtime.errors import NotFound
from services.store.core.pages import newest_first
from services.store.loop import consultations
from services.store.tables.loop import ConsultationRow, ExpertRow, GroupRow, TaskRow
from services.store.views import browse

MAX_AT_ONCE = 1000  # requeued in one transaction, so that none holds thousands of rows for long


class DrawNotFound(NotFound):
    """No draw with this id."""


@dataclass(frozen=True)
class DeadDraw:
    """A prompt that could not be drawn."""

    id: UUID
    task_id: UUID
    task_key: str
    purpose: str
    policy_version: str | None
    size: int
    failures: int
    reason: str | None
    created_at: datetime


def list_consultations(
    session: Session, lineage_id: UUID, rights: frozenset[Right], *, cursor: str | None, limit: int
) -> Page[Consultation]:
    """Dead consultations, newest first, as a person with these rights may see them. Errors: BadCursor."""
    return browse.list_consultations(
        session,
        lineage_id,
        rights,
        rollout_id=None,
        expert_id=None,
        status=ConsultationStatus.DEAD,
        cursor=cursor,
        limit=limit,
    )


def list_draws(session: Session, lineage_id: UUID, *, cursor: str | None, limit: int) -> Page[DeadDraw]:
    """Dead draws, newest first. Errors: BadCursor."""
    query = select(GroupRow).where(GroupRow.lineage_id == lineage_id, GroupRow.status == GroupStatus.DEAD.value)
    rows, following = newest_first(session, query, GroupRow.id, cursor, limit)
    keys = dict(
        session.execute(select(TaskRow.id, TaskRow.key).where(TaskRow.id.in_({row.task_id for row in rows}))).all()
    )
    items = [
        DeadDraw(
            id=row.id,
            task_id=row.task_id,
            task_key=keys[row.task_id],
            purpose=row.purpose,
            policy_version=row.policy_version,
            size=row.size,
            failures=row.failures,
            reason=row.reason,
            created_at=row.created_at,
        )
        for row in rows
    ]
    return Page[DeadDraw](items=items, next_cursor=following)


def requeue_consultations(session: Session, lineage_id: UUID) -> list[UUID]:
    """Ask dead consultations once more, the oldest first and at most MAX_AT_ONCE. Those of retired experts stay dead.

    Returns their ids, to be sent after the commit.
    """
    dead = session.scalars(
        select(ConsultationRow.id)
        .join(ExpertRow, ExpertRow.id == ConsultationRow.expert_id)
        .where(
            ConsultationRow.lineage_id == lineage_id,
            ConsultationRow.status == ConsultationStatus.DEAD.value,
            ExpertRow.status != ExpertStatus.RETIRED.value,
        )
        .order_by(ConsultationRow.id)
        .limit(MAX_AT_ONCE)
        .with_for_update(skip_locked=True, of=ConsultationRow)
    ).all()
    consultations.requeue_all(session, dead)
    return list(dead)


def requeue_draw(session: Session, draw_id: UUID) -> None:
    """Let a dead draw be tried again; the sweep sends it. Errors: DrawNotFound (404), IllegalStatusChange (409)."""
    row = session.scalar(select(GroupRow).where(GroupRow.id == draw_id).with_for_update())
    if row is None:
        raise DrawNotFound(f"no draw {draw_id}")
    _revive(session, [row])


def requeue_draws(session: Session, lineage_id: UUID) -> int:
    """Let dead draws be tried again, the oldest first and at most MAX_AT_ONCE; how many."""
    rows = session.scalars(
        select(GroupRow)
        .where(GroupRow.lineage_id == lineage_id, GroupRow.status == GroupStatus.DEAD.value)
        .order_by(GroupRow.id)
        .limit(MAX_AT_ONCE)
        .with_for_update(skip_locked=True)
    ).all()
    _revive(session, rows)
    return len(rows)


def _revive(session: Session, rows: Sequence[GroupRow]) -> None:
    for row in rows:
        check_change(GROUP_CHANGES, GroupStatus(row.status), GroupStatus.PENDING)
        row.status = GroupStatus.PENDING.value
        row.failures = 0
        row.reason = None
        row.sent_at = None
        row.not_before = func.now()
    session.flush()
