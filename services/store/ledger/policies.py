"""Policy versions: published weights, the gate they passed, and which one serves."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, ScalarSelect, func, select
from sqlalchemy.orm import Session, aliased

from services.contracts.base import check_change
from services.contracts.policies import POLICY_CHANGES, GateReport, PolicyStatus, PolicyVersion
from services.contracts.updates import UpdateStatus
from services.runtime.errors import Conflict, NotFound
from services.store.tables.base import LineageRow
from services.store.tables.ledger import PolicyVersionRow, UpdateRow


class WeightsDeleted(Conflict):
    """The version's weights are gone: they were old, and retention deleted them."""

    title = "Weights deleted"
    hint = "Name a newer version; PRECEPTOR_KEEP_ADAPTERS_DAYS says how long weights are kept. A backup may have them."


class PolicyVersionNotFound(NotFound):
    """No policy version of that name in this lineage."""


def by_name(session: Session, lineage_id: UUID, name: str | None) -> PolicyVersionRow:
    """The version of that name; None means the serving one. Errors: PolicyVersionNotFound (404)."""
    if name is None:
        row = serving(session, lineage_id)
    else:
        row = session.scalar(
            select(PolicyVersionRow).where(PolicyVersionRow.lineage_id == lineage_id, PolicyVersionRow.name == name)
        )
    if row is None:
        raise PolicyVersionNotFound("no policy version serves" if name is None else f"no policy version {name!r}")
    return row


def serving(session: Session, lineage_id: UUID) -> PolicyVersionRow | None:
    """The version that serves; None only between a withdrawal and the next version."""
    return session.scalar(
        select(PolicyVersionRow).where(
            PolicyVersionRow.lineage_id == lineage_id, PolicyVersionRow.status == PolicyStatus.SERVING.value
        )
    )


def require_weights(row: PolicyVersionRow) -> None:
    """Pass when the version's weights are kept. Errors: WeightsDeleted (409)."""
    if row.weights_deleted_at is not None:
        raise WeightsDeleted(f"the weights of {row.name} were deleted on {row.weights_deleted_at:%Y-%m-%d}")


def can_be_drawn_from(session: Session, lineage_id: UUID, name: str) -> bool:
    """Whether the version has passed its gate, so that a policy server which lost it can be given it again."""
    passed = (PolicyStatus.SERVING.value, PolicyStatus.SUPERSEDED.value)
    return (
        session.scalar(
            select(PolicyVersionRow.id).where(
                PolicyVersionRow.lineage_id == lineage_id,
                PolicyVersionRow.name == name,
                PolicyVersionRow.status.in_(passed),
                PolicyVersionRow.weights_deleted_at.is_(None),
            )
        )
        is not None
    )


def latest(session: Session, lineage_id: UUID) -> PolicyVersionRow:
    """The version with the highest number, whatever became of it; version 0 is made with the lineage."""
    return session.scalars(
        select(PolicyVersionRow)
        .where(PolicyVersionRow.lineage_id == lineage_id)
        .order_by(PolicyVersionRow.number.desc())
        .limit(1)
    ).one()


def last_served_at(session: Session, lineage_id: UUID) -> datetime | None:
    """When a version last began to serve; None while it was always the base."""
    return session.scalar(select(func.max(PolicyVersionRow.served_at)).where(PolicyVersionRow.lineage_id == lineage_id))


def num_served(session: Session, lineage_id: UUID) -> int:
    """How many versions have begun to serve after the base: where the newest of them stands (`place`)."""
    return session.scalars(
        select(func.count(PolicyVersionRow.served_at)).where(PolicyVersionRow.lineage_id == lineage_id)
    ).one()


def place(version: type[PolicyVersionRow]) -> ScalarSelect[int]:
    """Where a version stands among those that served, by when it last began to; the base is 0 until it serves again.

    Staleness is a difference of places: a version that waits for the gate or was refused makes no rollout older.
    """
    served = aliased(PolicyVersionRow)
    return (
        select(func.count())
        .where(served.lineage_id == version.lineage_id, served.served_at <= _since(version))
        .correlate(version)
        .scalar_subquery()
    )


def is_stale(lineage_id: UUID, max_staleness: int) -> ColumnElement[bool]:
    """Of a PolicyVersionRow of this lineage: whether more than `max_staleness` versions began to serve after it did."""
    served = aliased(PolicyVersionRow)
    oldest = (
        select(served.served_at)
        .where(served.lineage_id == lineage_id, served.served_at.is_not(None))
        .order_by(served.served_at.desc())
        .offset(max_staleness)
        .limit(1)
        .scalar_subquery()
    )
    return (PolicyVersionRow.lineage_id == lineage_id) & (_since(PolicyVersionRow) < oldest)


def _since(version: type[PolicyVersionRow]) -> ColumnElement[datetime]:
    return func.coalesce(version.served_at, version.created_at)


def newest(session: Session, lineage_id: UUID, *, before: UUID | None, limit: int) -> Sequence[PolicyVersionRow]:
    """Versions, newest first, from before the given id."""
    query = select(PolicyVersionRow).where(PolicyVersionRow.lineage_id == lineage_id)
    if before is not None:
        query = query.where(PolicyVersionRow.id < before)
    return session.scalars(query.order_by(PolicyVersionRow.id.desc()).limit(limit)).all()


def candidates(session: Session, lineage_id: UUID) -> Sequence[PolicyVersionRow]:
    """Versions still before the gate, oldest first."""
    return session.scalars(
        select(PolicyVersionRow)
        .where(PolicyVersionRow.lineage_id == lineage_id, PolicyVersionRow.status == PolicyStatus.CANDIDATE.value)
        .order_by(PolicyVersionRow.number)
    ).all()


def checkpoints(session: Session, lineage_id: UUID) -> list[str]:
    """Checkpoints that training may fall back to: of the updates that made the serving version and the candidates."""
    wanted = (PolicyStatus.SERVING.value, PolicyStatus.CANDIDATE.value)
    made = session.scalars(
        select(UpdateRow.checkpoint_sha256)
        .join(
            PolicyVersionRow,
            (PolicyVersionRow.lineage_id == UpdateRow.lineage_id)
            & (PolicyVersionRow.update_number == UpdateRow.number),
        )
        .where(
            PolicyVersionRow.lineage_id == lineage_id,
            PolicyVersionRow.status.in_(wanted),
            UpdateRow.status == UpdateStatus.APPLIED.value,
        )
    )
    return [address for address in made if address is not None]


def add_candidate(session: Session, lineage_id: UUID, *, artifact_sha256: str, update_number: int) -> PolicyVersionRow:
    """A new version, before the gate. Names carry the lineage and a number, and are never used again."""
    lineage = session.get_one(LineageRow, lineage_id, with_for_update=True)
    parent = serving(session, lineage_id)
    number = (
        1
        + session.scalars(
            select(func.max(PolicyVersionRow.number)).where(PolicyVersionRow.lineage_id == lineage_id)
        ).one()
    )
    row = PolicyVersionRow(
        lineage_id=lineage_id,
        number=number,
        name=f"{lineage.name}-v{number}",
        parent_id=None if parent is None else parent.id,
        artifact_sha256=artifact_sha256,
        update_number=update_number,
    )
    session.add(row)
    session.flush()
    return row


def reject(session: Session, version_id: UUID, gate: GateReport | None, reason: str) -> PolicyVersionRow:
    """The gate refused the candidate. Errors: IllegalStatusChange (409)."""
    row = _lock(session, version_id)
    _change(row, PolicyStatus.REJECTED)
    row.gate = None if gate is None else gate.model_dump(mode="json")
    row.reason = reason
    session.flush()
    return row


def serve(session: Session, version_id: UUID, gate: GateReport | None = None) -> PolicyVersionRow:
    """Make a candidate that passed the gate, or a superseded version, the serving one; the old one is superseded.

    Errors: IllegalStatusChange, WeightsDeleted (409).
    """
    row = _lock(session, version_id)
    require_weights(row)
    old = serving(session, row.lineage_id)
    if old is not None and old.id == row.id:
        return row
    if old is not None:
        _change(old, PolicyStatus.SUPERSEDED)
        session.flush()
    _change(row, PolicyStatus.SERVING)
    if gate is not None:
        row.gate = gate.model_dump(mode="json")
    row.served_at = func.clock_timestamp()  # two in one transaction have an order
    session.flush()
    return row


def _lock(session: Session, version_id: UUID) -> PolicyVersionRow:
    row = session.get_one(PolicyVersionRow, version_id)
    session.get_one(LineageRow, row.lineage_id, with_for_update=True)
    session.refresh(row)
    return row


def _change(row: PolicyVersionRow, new: PolicyStatus) -> None:
    check_change(POLICY_CHANGES, PolicyStatus(row.status), new)
    row.status = new.value


def view(row: PolicyVersionRow) -> PolicyVersion:
    """The contract of a row."""
    return PolicyVersion.model_validate(row)
