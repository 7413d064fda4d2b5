"""The circuit breaker of experts: after many failures in a row an expert is not asked until it answers a check again.

The consultations of an active expert wait meanwhile, so that an outage costs them no tries. Those of an expert on
probation, whose answers carry no weight, end, so that no rollout waits for them. The pause between checks doubles with
each check that fails, and each time the expert is let in and fails at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from services.contracts.experts import Descriptor, ExpertStatus
from services.store.tables.loop import ExpertRow

FIRST_PAUSE: Final = timedelta(seconds=10)
LONGEST_PAUSE: Final = timedelta(minutes=30)
LOOK_LEASE: Final = timedelta(minutes=1)
"""How long one worker alone may check an expert."""


@dataclass(frozen=True)
class Look:
    """An expert that is due for a check: does the registered service answer at its endpoint?"""

    expert_id: UUID
    name: str
    endpoint: str
    descriptor: Descriptor
    signing_secret: str | None


def look_at(row: ExpertRow) -> Look:
    """The endpoint to check, and the expected descriptor."""
    described = Descriptor.model_validate(row.descriptor | {"version": row.version})
    return Look(row.id, row.name, row.endpoint, described, row.signing_secret)


def note_failure(session: Session, expert_id: UUID, reason: str, quarantine_after: int) -> None:
    """Count one; the last of so many in a row quarantines the expert."""
    row = _lock(session, expert_id)
    row.consecutive_failures += 1
    may = (ExpertStatus.ACTIVE.value, ExpertStatus.PROBATION.value)
    if row.consecutive_failures >= quarantine_after and row.status in may:
        row.was_active = row.status == ExpertStatus.ACTIVE.value
        row.status = ExpertStatus.QUARANTINED.value
        row.reason = f"{row.consecutive_failures} failures in a row, the last: {reason}"[:2000]
        _pause(row)


def note_answer(session: Session, expert_id: UUID) -> None:
    """The row of failures is over."""
    session.execute(
        update(ExpertRow)
        .where(ExpertRow.id == expert_id, (ExpertRow.consecutive_failures > 0) | (ExpertRow.num_pauses > 0))
        .values(consecutive_failures=0, num_pauses=0)
    )


def take_due(session: Session, limit: int) -> Sequence[Look]:
    """Experts to check now; no other worker gets them for a minute."""
    is_due = ExpertRow.retry_at.is_(None) | (ExpertRow.retry_at <= func.now())
    rows = session.scalars(
        select(ExpertRow)
        .where(ExpertRow.status == ExpertStatus.QUARANTINED.value, is_due)
        .order_by(ExpertRow.retry_at.nulls_first())
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    looks = [look_at(row) for row in rows]
    for row in rows:
        row.retry_at = func.now() + LOOK_LEASE
    return looks


def readmit(session: Session, expert_id: UUID, quarantine_after: int) -> bool:
    """Ask it again, with its former status: active or on probation. Its next failure, unless an answer comes before,
    quarantines it for longer. Returns False if its status was changed meanwhile."""
    row = _lock(session, expert_id)
    if row.status != ExpertStatus.QUARANTINED.value:
        return False
    row.status = ExpertStatus.PROBATION.value
    session.flush()
    if row.was_active:
        row.status = ExpertStatus.ACTIVE.value
    row.reason = None
    row.retry_at = None
    row.was_active = False
    row.consecutive_failures = quarantine_after - 1
    return True


def postpone(session: Session, expert_id: UUID, reason: str) -> None:
    """It is still away, for this reason; look again after a longer pause."""
    row = _lock(session, expert_id)
    if row.status == ExpertStatus.QUARANTINED.value:
        row.reason = reason[:2000]
        _pause(row)


def end(row: ExpertRow) -> None:
    """Start its counters anew: a person took it out of quarantine or registered it again."""
    row.consecutive_failures = 0
    row.num_pauses = 0
    row.retry_at = None
    row.was_active = False


def _pause(row: ExpertRow) -> None:
    row.retry_at = func.now() + min(FIRST_PAUSE * 2 ** min(row.num_pauses, 20), LONGEST_PAUSE)
    row.num_pauses += 1


def _lock(session: Session, expert_id: UUID) -> ExpertRow:
    return session.scalars(select(ExpertRow).where(ExpertRow.id == expert_id).with_for_update()).one()
