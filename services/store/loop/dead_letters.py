"""Dead letters: consultations and draws that used up their tries, kept with the reason so that they can be requeued."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.contracts.base import check_change
from services.contracts.consultations import ConsultationStatus
from services.contracts.experts import ExpertStatus
from services.contracts.rollouts import GROUP_CHANGES, GroupStatus
from services.runtime.errors import NotFound
from services.store.loop import consultations
from services.store.tables.loop import ConsultationRow, ExpertRow, GroupRow

MAX_AT_ONCE = 1000  # requeued in one transaction, so that none holds thousands of rows for long


class DrawNotFound(NotFound):
    """No draw with this id."""


def requeue_consultations(session: Session, lineage_id: UUID) -> list[UUID]:
    """Ask dead consultations again, the oldest first and at most MAX_AT_ONCE; their ids, to be sent after the commit.

    Those of retired experts stay dead: no one would answer.
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


def requeue_draw(session: Session, draw_id: UUID) -> GroupRow:
    """Let a dead draw be tried again; the sweep sends it. Errors: DrawNotFound (404), IllegalStatusChange (409)."""
    row = session.scalar(select(GroupRow).where(GroupRow.id == draw_id).with_for_update())
    if row is None:
        raise DrawNotFound(f"no draw {draw_id}")
    _revive(session, [row])
    return row


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
