"""Curves of a lineage: its updates' metrics by number, thinned out so that any history fits a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.contracts.base import JsonObject
from services.contracts.updates import UpdateStatus
from services.store.ledger import updates
from services.store.tables.ledger import UpdateRow

MAX_POINTS = 400  # as many as a screen has room for


@dataclass(frozen=True)
class Curves:
    """The metrics of applied updates. numbers, applied_at: [N], ascending; series: by name, [N], None where an
    update has no such metric. Metrics that are not numbers are left out."""

    numbers: tuple[int, ...]
    applied_at: tuple[datetime, ...]
    series: dict[str, tuple[float | None, ...]]


def read(session: Session, lineage_id: UUID, *, max_points: int = MAX_POINTS) -> Curves:
    """The curves over all applied updates, or over evenly spread ones of a longer history; the newest is among them."""
    last = updates.last_number(session, lineage_id)
    rows = session.execute(
        select(UpdateRow.number, UpdateRow.applied_at, UpdateRow.metrics)
        .where(
            UpdateRow.lineage_id == lineage_id,
            UpdateRow.status == UpdateStatus.APPLIED.value,
            UpdateRow.number.in_(choose_numbers(last, max_points)),
        )
        .order_by(UpdateRow.number)
    )
    return collect([(number, applied_at, metrics) for number, applied_at, metrics in rows if applied_at is not None])


def collect(measured: Sequence[tuple[int, datetime, JsonObject]]) -> Curves:
    """The curves of updates with their numbers, times and metrics, oldest first."""
    names = sorted({name for _, _, metrics in measured for name, value in metrics.items() if _is_number(value)})
    return Curves(
        numbers=tuple(number for number, _, _ in measured),
        applied_at=tuple(applied_at for _, applied_at, _ in measured),
        series={name: tuple(_as_number(metrics.get(name)) for _, _, metrics in measured) for name in names},
    )


def choose_numbers(last: int, max_points: int) -> Sequence[int]:
    """At most `max_points` of the numbers 1 to `last`, evenly spread and with the last among them."""
    step = max(1, -(-last // max_points))
    return range(last, 0, -step)[::-1]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
