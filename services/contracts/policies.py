"""Policy versions: published weights of one lineage, immutable, each with the gate report it passed or failed."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from services.contracts.base import Contract, StatusChanges, View


class PolicyStatus(StrEnum):
    """At most one version of a lineage is `serving`."""

    CANDIDATE = "candidate"
    SERVING = "serving"
    REJECTED = "rejected"
    SUPERSEDED = "superseded"
    WITHDRAWN = "withdrawn"


POLICY_CHANGES: StatusChanges[PolicyStatus] = {
    PolicyStatus.CANDIDATE: frozenset({PolicyStatus.SERVING, PolicyStatus.REJECTED, PolicyStatus.WITHDRAWN}),
    PolicyStatus.SERVING: frozenset({PolicyStatus.SUPERSEDED, PolicyStatus.WITHDRAWN}),
    PolicyStatus.SUPERSEDED: frozenset({PolicyStatus.SERVING, PolicyStatus.WITHDRAWN}),
    PolicyStatus.REJECTED: frozenset({PolicyStatus.WITHDRAWN}),
}


class GateCheck(Contract):
    """One measured check of the gate: its value, its bound and whether it held."""

    name: str
    passed: bool
    value: float
    bound: float
    detail: str = ""


class GateReport(Contract):
    """Every check a candidate was put through."""

    checks: list[GateCheck]

    @property
    def passed(self) -> bool:
        """Whether every check held."""
        return all(check.passed for check in self.checks)


class PolicyVersion(View):
    """A stored policy version; `number` 0 is the base itself and has no adapter."""

    id: UUID
    lineage_id: UUID
    number: int
    name: str
    parent_id: UUID | None
    status: PolicyStatus
    reason: str | None
    artifact_sha256: str | None
    update_number: int
    gate: GateReport | None
    created_at: datetime
    served_at: datetime | None
