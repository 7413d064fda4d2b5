"""The newest measurement of every source."""

from collections import defaultdict
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from services.contracts.measurements import Measurement, MeasurementStatus
from services.store.tables.teaching import MeasurementRow


def newest(
    session: Session, lineage_id: UUID, expert_ids: Sequence[UUID] | None = None
) -> dict[UUID, list[Measurement]]:
    """By expert, the newest measurement of every source, domain and template: the one that is under way, and the last
    that was decided."""
    is_open = MeasurementRow.status == MeasurementStatus.MEASURING.value
    key = (MeasurementRow.expert_id, MeasurementRow.domain, MeasurementRow.source, MeasurementRow.template, is_open)
    query = (
        select(MeasurementRow)
        .where(MeasurementRow.lineage_id == lineage_id, MeasurementRow.status != MeasurementStatus.ABANDONED.value)
        .ext(distinct_on(*key))
        .order_by(*key, MeasurementRow.id.desc())
    )
    if expert_ids is not None:
        query = query.where(MeasurementRow.expert_id.in_(expert_ids))
    found: dict[UUID, list[Measurement]] = defaultdict(list)
    for row in session.scalars(query):
        found[row.expert_id].append(Measurement.model_validate(row))
    return dict(found)
