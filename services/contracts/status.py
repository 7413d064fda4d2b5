"""The loop at one glance, as `preceptor status`, the demo and the pages show it."""

from datetime import datetime
from typing import Annotated, Final
from uuid import UUID

from pydantic import Field

from services.contracts.base import Bool, Contract, Int, JsonObject
from services.contracts.experts import ExpertStatus

MAX_UPDATES: Final = 2**31 - 1
"""The largest number of an update that the ledger can hold."""


class LoopSwitch(Contract):
    """Turn sampling or training on or off, or let the loop stop after an update; what is left out stays as it is.

    max_updates: the number of the last update to make; no_end: forget such a bound.
    """

    sampling: Bool | None = None
    training: Bool | None = None
    max_updates: Annotated[Int, Field(ge=0, le=MAX_UPDATES)] | None = None
    no_end: Bool = False


class LoopState(Contract):
    """The loop's switches as they are; `max_updates` None: no end."""

    sampling: bool
    training: bool
    max_updates: int | None


class TaskCount(Contract):
    """How many tasks a domain has in a split."""

    domain: str
    split: str
    num_tasks: int


class PassRate(Contract):
    """The share of passed answers among a domain's newest judged train rollouts."""

    domain: str
    num_judged: int
    pass_rate: float


class ProcessState(Contract):
    """The last word of a process; `counters` are totals since its start (seconds where they end in `_seconds`)."""

    name: str
    pid: int
    activity: str
    counters: JsonObject
    started_at: datetime
    beat_at: datetime


class UpdateSummary(Contract):
    """An applied update with its metrics."""

    id: UUID
    number: int
    metrics: JsonObject
    applied_at: datetime


class WaitedFor(Contract):
    """An expert that holds rollouts open until it answers, or until the last of these consultations ends at `until`."""

    expert_id: UUID
    expert: str
    expert_status: ExpertStatus
    num_rollouts: int
    since: datetime
    until: datetime


class Status(Contract):
    """The state of one lineage's loop; `waits_for` says in words what keeps it from drawing or training more,
    `unjudged` which domains with tasks no active verifier covers."""

    lineage: str
    model: str
    serving: str | None
    loop: LoopState
    tasks: list[TaskCount]
    backlog: int
    waits_for: list[str]
    waited_for: list[WaitedFor] = []
    unjudged: list[str] = []
    groups: dict[str, int]
    rollouts: dict[str, int]
    consultations: dict[str, int]
    lessons: dict[str, int]
    corrections: dict[str, int]
    num_updates: int
    last_updates: list[UpdateSummary]
    pass_rates: list[PassRate]
    processes: list[ProcessState]
