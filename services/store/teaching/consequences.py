"""What follows from a measurement for its expert: ready to be promoted, promoted, or sent back to probation."""

from collections.abc import Collection
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from services.contracts.experts import ExpertStatus
from services.contracts.measurements import Measurement, MeasurementStatus, say_about
from services.store.loop import experts
from services.store.tables.loop import ExpertRow
from services.store.tables.teaching import MeasurementRow

_DECIDED = (MeasurementStatus.TEACHES.value, MeasurementStatus.DOES_NOT_TEACH.value)


def apply(session: Session, expert_ids: Collection[UUID], *, promote: bool) -> None:
    """Draw the consequences of these experts' newest measurements.

    One on probation that teaches in some domain is ready to be promoted; with `promote` it is, if its conformance run
    passed. An active one that is no verifier and not our own goes back to probation once every source of it was
    measured and none teaches.
    """
    for expert_id in sorted(expert_ids):
        expert = session.get_one(ExpertRow, expert_id)
        newest = _find_newest(session, expert_id)
        teaching = [one for one in newest if one.status is MeasurementStatus.TEACHES]
        if expert.status == ExpertStatus.PROBATION.value and teaching:
            experts.note_teaches(session, expert_id, "; ".join(map(say_about, teaching)), promote=promote)
        elif newest and not teaching and not _is_measured(session, expert_id):
            experts.note_does_not_teach(session, expert_id, "; ".join(map(say_about, newest)))


def _find_newest(session: Session, expert_id: UUID) -> list[Measurement]:
    """Its newest decided measurement of every source, domain and template."""
    key = (MeasurementRow.domain, MeasurementRow.source, MeasurementRow.template)
    rows = session.scalars(
        select(MeasurementRow)
        .where(MeasurementRow.expert_id == expert_id, MeasurementRow.status.in_(_DECIDED))
        .ext(distinct_on(*key))
        .order_by(*key, MeasurementRow.id.desc())
    )
    return [Measurement.model_validate(row) for row in rows]


def _is_measured(session: Session, expert_id: UUID) -> bool:
    """Whether a measurement of it is under way."""
    measuring = MeasurementRow.status == MeasurementStatus.MEASURING.value
    found = select(MeasurementRow.id).where(MeasurementRow.expert_id == expert_id, measuring)
    return session.scalar(found.limit(1)) is not None
