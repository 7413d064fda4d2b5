"""Measurements: does a source teach? The gap between teacher and student, both drawn at one temperature."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final
from uuid import UUID

from pydantic import Field

from services.contracts.base import Contract, Float, Name, StatusChanges, View
from services.contracts.sources import ONLY_TEMPLATE, ContextSource
from services.contracts.templates import Template


class MeasurementStatus(StrEnum):
    """`measuring` while tasks are drawn; then `teaches` or `does_not_teach`, or `abandoned` with a reason. `lapsed`: it
    taught, and no new measurement has decided since, for too long."""

    MEASURING = "measuring"
    TEACHES = "teaches"
    DOES_NOT_TEACH = "does_not_teach"
    ABANDONED = "abandoned"
    LAPSED = "lapsed"


MEASUREMENT_CHANGES: StatusChanges[MeasurementStatus] = {
    MeasurementStatus.MEASURING: frozenset(
        {MeasurementStatus.TEACHES, MeasurementStatus.DOES_NOT_TEACH, MeasurementStatus.ABANDONED}
    ),
    MeasurementStatus.TEACHES: frozenset({MeasurementStatus.LAPSED}),
}


LOOKS: Final = (8, 16, 32, 64)
"""Numbers of tasks at which a measurement may end."""


class MeasurementCreate(Contract):
    """Measure what teaches now: of one expert or of all, in one domain or in all, one source or every one, shown by one
    template or by every one.

    minutes: for how long its draws go on without the loop and beside its share; then it goes on at the loop's pace.
    """

    expert_id: UUID | None = None
    domain: Name | None = None
    source: ContextSource | None = None
    template: Template | None = None
    minutes: Annotated[Float, Field(gt=0, le=10_000)] = 60.0


class Measurement(View):
    """One source of one expert in one domain, measured on train tasks.

    gap: the teacher's pass rate less the student's, over tasks; net: the gap less that of the control, which is shown
    the same thing from another task. low, high: ends of their intervals at the look that decided. num_tokens: drawn for
    it, of what several measurements share its part. temperature: of all its draws. policy_version: the one its newest
    tasks are drawn from. asked_until: until when a person wants it drawn without waiting for the loop; null where
    nobody asked for it.
    """

    id: UUID
    lineage_id: UUID
    expert_id: UUID
    source: ContextSource
    template: Template
    domain: str
    policy_version: str
    temperature: float
    asked_until: datetime | None
    status: MeasurementStatus
    reason: str | None
    num_looks: int
    num_tasks: int
    num_tokens: int
    gap: float | None
    gap_low: float | None
    gap_high: float | None
    net: float | None
    net_low: float | None
    net_high: float | None
    created_at: datetime
    decided_at: datetime | None


class MeasurementsAsked(Contract):
    """The measurements that a request began, or found under way; `GET /v1/measurements` shows how far they are."""

    measurements: list[Measurement]


def say(measurement: Measurement) -> str:
    """The verdict in words, e.g. "measured, not taught: -0.12 ± 0.06". The half of the interval stands behind ±."""
    gap = _interval(measurement.gap, measurement.gap_low, measurement.gap_high)
    if measurement.status is MeasurementStatus.MEASURING:
        far = f"measuring: {measurement.num_tasks} of {_next_look(measurement)} tasks"
        return far + (f", {gap} so far" if gap else "") + (f"; {measurement.reason}" if measurement.reason else "")
    if measurement.status is MeasurementStatus.ABANDONED:
        return f"undecided: {gap}; {measurement.reason}" if gap else f"abandoned: {measurement.reason}"
    if measurement.status is MeasurementStatus.LAPSED:
        return f"lapsed: {gap}; {measurement.reason}"
    if measurement.status is MeasurementStatus.TEACHES:
        return f"teaches: {gap}"
    said = f"measured, not taught: {gap}"
    if measurement.net_low is not None and measurement.net_low <= 0 and (measurement.gap_low or 0) > 0:
        net = _interval(measurement.net, measurement.net_low, measurement.net_high)
        return f"{said}, less the control {net}"
    return said


def say_about(measurement: Measurement) -> str:
    """Source, domain and verdict."""
    return f"{name_source(measurement)} in {measurement.domain}, {say(measurement)}"


def name_source(measurement: Measurement) -> str:
    """The source and, where there is a choice, how it is shown."""
    source = measurement.source.value.replace("_", " ")
    return source if measurement.source in ONLY_TEMPLATE else f"{source} ({measurement.template.value})"


def _interval(mean: float | None, low: float | None, high: float | None) -> str:
    return "" if mean is None or low is None or high is None else f"{mean:+.2f} ± {(high - low) / 2:.2f}"


def _next_look(measurement: Measurement) -> int:
    return LOOKS[min(measurement.num_looks, len(LOOKS) - 1)]
