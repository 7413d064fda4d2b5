"""The newest measurement of every source."""

from collections import defaultdict
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy.orm import Session

from services.contracts.measurements import Measurement
from services.store.loop.newest_measurements import IS_DECIDED, IS_UNDER_WAY, select_newest
from services.store.tables.teaching import MeasurementRow


def newest(
    session: Session, lineage_id: UUID, expert_ids: Sequence[UUID] | None = None
) -> dict[UUID, list[Measurement]]:
    """By expert, the newest measurement of every source, domain and template: the last that was decided, and the one
    that is under way."""
    wanted = [MeasurementRow.lineage_id == lineage_id]
    if expert_ids is not None:
        wanted.append(MeasurementRow.expert_id.in_(expert_ids))
    rows = [row for which in (IS_DECIDED, IS_UNDER_WAY) for row in session.scalars(select_newest(*wanted, which))]
    rows.sort(key=lambda row: (row.domain, row.source, row.template))
    found: dict[UUID, list[Measurement]] = defaultdict(list)
    for row in rows:
        found[row.expert_id].append(Measurement.model_validate(row))
    return dict(found)
