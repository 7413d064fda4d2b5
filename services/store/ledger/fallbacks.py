"""Falling back: after too many refusals by the gate, training goes on from the version that serves.

The updates in between stay applied in the ledger, and the numbers go on; only the weights they made are left behind.
The next update names the fallback's checkpoint as its parent. A row here is the one commit of a fallback: until it is
there training goes on from the last applied update, afterwards from the row's checkpoint.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, exists, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from services.contracts.policies import PolicyStatus
from services.store.core import audit
from services.store.ledger import policies, updates
from services.store.tables.ledger import FallbackRow, PolicyVersionRow

Number = int | InstrumentedAttribute[int] | ColumnElement[int]


@dataclass(frozen=True)
class StartingPoint:
    """Where the next update begins: after the update of this number, from this checkpoint.

    fell_back_to: the version whose weights they are, when they are not those of that update.
    """

    number: int
    checkpoint_sha256: str
    fell_back_to: str | None = None


@dataclass(frozen=True)
class Refusals:
    """The versions that the gate has refused since one last began to serve.

    versions: those in a row since then or since the last fallback, oldest first. fallbacks: since then, oldest first.
    """

    versions: Sequence[PolicyVersionRow]
    fallbacks: Sequence[FallbackRow]


def newest(session: Session, lineage_id: UUID) -> FallbackRow | None:
    """The last fallback; None before the first."""
    return session.scalar(
        select(FallbackRow).where(FallbackRow.lineage_id == lineage_id).order_by(FallbackRow.id.desc()).limit(1)
    )


def starting_point(session: Session, lineage_id: UUID) -> StartingPoint | None:
    """The checkpoint from which training continues; None before the first update."""
    last, back = updates.last_applied(session, lineage_id), newest(session, lineage_id)
    number, applied_at = (0, None) if last is None else (last.number, last.applied_at)
    if back is not None and back.after_update == number and (applied_at is None or back.created_at >= applied_at):
        name = session.get_one(PolicyVersionRow, back.version_id).name
        return StartingPoint(number, back.checkpoint_sha256, name)
    if last is None:
        return None
    assert last.checkpoint_sha256 is not None  # a constraint of the table
    return StartingPoint(number, last.checkpoint_sha256)


def refusals(session: Session, lineage_id: UUID) -> Refusals:
    """The versions that the gate has refused since one last began to serve."""
    since = policies.last_served_at(session, lineage_id)
    back = session.scalars(
        select(FallbackRow)
        .where(FallbackRow.lineage_id == lineage_id, *([] if since is None else [FallbackRow.created_at > since]))
        .order_by(FallbackRow.id)
    ).all()
    after: datetime | None = back[-1].created_at if back else since
    versions = session.scalars(
        select(PolicyVersionRow)
        .where(
            PolicyVersionRow.lineage_id == lineage_id,
            PolicyVersionRow.status == PolicyStatus.REJECTED.value,
            PolicyVersionRow.gate.is_not(None),  # versions that training had overtaken were not refused
            *([] if after is None else [PolicyVersionRow.created_at > after]),
        )
        .order_by(PolicyVersionRow.number)
    ).all()
    return Refusals(versions, back)


def record(
    session: Session,
    version: PolicyVersionRow,
    *,
    checkpoint_sha256: str,
    fresh_optimizer: bool,
    refused: Sequence[PolicyVersionRow],
) -> FallbackRow:
    """Go on from this version's weights from now on; candidates of the weights that are left behind are rejected."""
    row = FallbackRow(
        lineage_id=version.lineage_id,
        version_id=version.id,
        version_update=version.update_number,
        after_update=updates.last_number(session, version.lineage_id),
        checkpoint_sha256=checkpoint_sha256,
        fresh_optimizer=fresh_optimizer,
        num_refused=len(refused),
        reason=refused[-1].reason,
    )
    session.add(row)
    for candidate in policies.candidates(session, version.lineage_id):
        policies.reject(session, candidate.id, None, f"left behind: training fell back to {version.name}")
    audit.record(
        session,
        audit.SYSTEM,
        "training.fall_back",
        "policy_version",
        version.id,
        {
            "version": version.name,
            "after_update": row.after_update,
            "refused": [one.name for one in refused],
            "checkpoint_sha256": checkpoint_sha256,
            "optimizer": "fresh" if fresh_optimizer else "as it was",
        },
    )
    session.flush()
    return row


def carries(version_update: Number, update: Number, lineage_id: UUID) -> ColumnElement[bool]:
    """Whether weights made after `version_update` include `update`: it came before and was not left behind."""
    return (func.coalesce(version_update, 0) >= update) & ~exists().where(
        FallbackRow.lineage_id == lineage_id,
        FallbackRow.version_update < update,
        FallbackRow.after_update >= update,
        FallbackRow.after_update < version_update,
    )


def describe(found: Refusals, serving: PolicyVersionRow | None) -> str | None:
    """The fate of the newest versions, in a sentence; None while none was refused since one began to serve."""
    name = "the base" if serving is None else serving.name
    if found.fallbacks:
        last = found.fallbacks[-1]
        said = (
            f"training fell back to {name} after update {last.after_update}, when the gate had refused"
            f" {_count(last.num_refused)} in a row; the last reason: {last.reason}"
        )
        if len(found.fallbacks) > 1:
            said += (
                f". This is fallback number {len(found.fallbacks)} since {name} began to serve: the gate refuses"
                " whatever is trained from it"
            )
        return said
    if found.versions:
        last_one = found.versions[-1]
        return (
            f"the gate refused the newest {_count(len(found.versions))}, and {name} still serves; "
            f"{last_one.name}: {last_one.reason}"
        )
    return None


def _count(number: int) -> str:
    return "version" if number == 1 else f"{number} versions"
