"""Measurements: does a source teach? The gap between teacher and student, both drawn at one temperature."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from services.contracts.base import Contract, Name, StatusChanges, View
from services.contracts.sources import ContextSource
from services.contracts.templates import Template


class MeasurementStatus(StrEnum):
    """`measuring` while tasks are drawn; then `teaches` or `does_not_teach`, or `abandoned` with a reason."""

    MEASURING = "measuring"
    TEACHES = "teaches"
    DOES_NOT_TEACH = "does_not_teach"
    ABANDONED = "abandoned"


MEASUREMENT_CHANGES: StatusChanges[MeasurementStatus] = {
    MeasurementStatus.MEASURING: frozenset(
        {MeasurementStatus.TEACHES, MeasurementStatus.DOES_NOT_TEACH, MeasurementStatus.ABANDONED}
    ),
}


class MeasurementCreate(Contract):
    """Measure what teaches now: of one expert or of all, in one domain or in all, one source or every one."""

    expert_id: UUID | None = None
    domain: Name | None = None
    source: ContextSource | None = None


class Measurement(View):
    """One source of one expert in one domain, measured on train tasks.

    gap: the teacher's pass rate less the student's, over tasks; net: the gap less that of the control, which is shown
    the same thing from another task. low, high: ends of their intervals at the look that decided. num_tokens: drawn for
    it. temperature: of all its draws. policy_version: the one its newest tasks are drawn from. by_hand: a person asked
    for it.
    """

    id: UUID
    lineage_id: UUID
    expert_id: UUID
    source: ContextSource
    template: Template
    domain: str
    policy_version: str
    temperature: float
    by_hand: bool
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
