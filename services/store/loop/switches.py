"""The loop's switches: whether it samples and trains, and where it stops."""

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.store.tables.loop import LoopRow


def get(session: Session, lineage_id: UUID) -> LoopRow:
    """The switches of a lineage; made with the lineage, so they are always there."""
    return session.scalars(select(LoopRow).where(LoopRow.lineage_id == lineage_id)).one()


def switch(
    session: Session, lineage_id: UUID, *, sampling: bool | None = None, training: bool | None = None
) -> LoopRow:
    """Turn sampling or training on or off; None leaves a switch as it is."""
    row = get(session, lineage_id)
    if sampling is not None:
        row.sampling = sampling
    if training is not None:
        row.training = training
    session.flush()
    return row


def stop_after(session: Session, lineage_id: UUID, max_updates: int | None) -> LoopRow:
    """Stop after the update of this number; None goes on for as long as there are tasks."""
    row = get(session, lineage_id)
    row.max_updates = max_updates
    session.flush()
    return row


def block(session: Session, lineage_id: UUID, reason: str | None) -> LoopRow:
    """Keep the sampler from drawing for this reason, or let it go on; written only when it changes."""
    row = get(session, lineage_id)
    if row.blocked_by != reason:
        row.blocked_by = reason
        session.flush()
    return row
