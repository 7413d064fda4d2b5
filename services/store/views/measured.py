"""Measurements in words, and the newest one of every source."""

from collections import defaultdict
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from services.contracts.measurements import Measurement, MeasurementStatus
from services.contracts.sources import ContextSource
from services.store.tables.teaching import MeasurementRow
from services.store.views.looks import LOOKS


def say(measurement: Measurement) -> str:
    """The verdict in words, e.g. "measured, not taught: -0.12 ± 0.06". The half of the interval stands behind ±."""
    gap = _interval(measurement.gap, measurement.gap_low, measurement.gap_high)
    if measurement.status is MeasurementStatus.MEASURING:
        far = f"measuring: {measurement.num_tasks} of {_next_look(measurement)} tasks"
        return far + (f", {gap} so far" if gap else "") + (f"; {measurement.reason}" if measurement.reason else "")
    if measurement.status is MeasurementStatus.ABANDONED:
        return f"abandoned: {measurement.reason}"
    if measurement.status is MeasurementStatus.TEACHES:
        return f"teaches: {gap}"
    said = f"measured, not taught: {gap}"
    if measurement.net_low is not None and measurement.net_low <= 0 and (measurement.gap_low or 0) > 0:
        net = _interval(measurement.net, measurement.net_low, measurement.net_high)
        return f"{said}, less the control {net}"
    return said


def say_about(measurement: Measurement) -> str:
    """Source, domain and verdict."""
    return f"{name(measurement)} in {measurement.domain}, {say(measurement)}"


def name(measurement: Measurement) -> str:
    """The source and, where there is a choice, how it is shown."""
    source = measurement.source.value.replace("_", " ")
    fixed = (ContextSource.PRECEDENTS, ContextSource.FEEDBACK, ContextSource.DISTRIBUTION)
    return source if measurement.source in fixed else f"{source} ({measurement.template.value})"


def _interval(mean: float | None, low: float | None, high: float | None) -> str:
    return "" if mean is None or low is None or high is None else f"{mean:+.2f} ± {(high - low) / 2:.2f}"


def _next_look(measurement: Measurement) -> int:
    return LOOKS[min(measurement.num_looks, len(LOOKS) - 1)]


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
