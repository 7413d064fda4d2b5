"""The newest measurement of every source."""

from collections import defaultdict
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy.orm import Session

from services.contracts.measurements import Measurement
from services.store.loop.newest_measurements import IS_DECIDED, select_newest
from services.store.tables.teaching import MeasurementRow


def newest(
    session: Session, lineage_id: UUID, expert_ids: Sequence[UUID] | None = None
) -> dict[UUID, list[Measurement]]:
    """By expert, the newest measurements of every source, domain and template: the last that was decided, and a newer
    one that is under way or was abandoned."""
    wanted = [MeasurementRow.lineage_id == lineage_id]
    if expert_ids is not None:
        wanted.append(MeasurementRow.expert_id.in_(expert_ids))
    decided = session.scalars(select_newest(*wanted, IS_DECIDED)).all()
    rows = [*decided, *(row for row in session.scalars(select_newest(*wanted)) if row not in decided)]
    rows.sort(key=lambda row: (row.domain, row.source, row.template))
    found: dict[UUID, list[Measurement]] = defaultdict(list)
    for row in rows:
        found[row.expert_id].append(Measurement.model_validate(row))
    return dict(found)
