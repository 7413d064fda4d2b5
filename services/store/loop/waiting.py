"""The experts that open rollouts wait for: they may train and have not answered yet."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.contracts.consultations import ConsultationStatus
from services.contracts.experts import ExpertStatus
from services.contracts.rollouts import RolloutStatus
from services.contracts.status import WaitedFor
from services.store.loop import trust
from services.store.tables.loop import ConsultationRow, ExpertRow, RolloutRow

LONG: Final = timedelta(seconds=10)  # an answer that takes less than this is how the loop works, not a wait


def read(session: Session, lineage_id: UUID) -> list[WaitedFor]:
    """The experts that hold rollouts of the lineage open, whoever is waited for longest first."""
    since, until = func.min(ConsultationRow.created_at), func.max(ConsultationRow.deadline)
    rows = session.execute(
        select(ExpertRow.id, ExpertRow.name, ExpertRow.status, func.count(), since, until)
        .join(ConsultationRow, ConsultationRow.expert_id == ExpertRow.id)
        .join(RolloutRow, RolloutRow.id == ConsultationRow.rollout_id)
        .where(
            RolloutRow.lineage_id == lineage_id,
            RolloutRow.status == RolloutStatus.OPEN.value,
            ConsultationRow.status.in_([ConsultationStatus.PENDING.value, ConsultationStatus.ASKED.value]),
            trust.may_train(ExpertRow),
        )
        .group_by(ExpertRow.id)
        .order_by(since, ExpertRow.id)
    )
    return [
        WaitedFor(
            expert_id=expert_id, expert=name, expert_status=ExpertStatus(status), num_rollouts=num, since=a, until=b
        )
        for expert_id, name, status, num, a, b in rows
    ]


def describe(waited_for: Iterable[WaitedFor], now: datetime) -> Iterator[str]:
    """A sentence for every expert that has been waited for longer than usual."""
    for one in waited_for:
        if one.expert_status is not ExpertStatus.QUARANTINED and now - one.since < LONG:
            continue
        rollouts = "1 rollout waits" if one.num_rollouts == 1 else f"{one.num_rollouts} rollouts wait"
        away = ""
        if one.expert_status is ExpertStatus.QUARANTINED:
            away = ", which is in quarantine (`preceptor experts list` says why)"
        since, until = (moment.astimezone(UTC).strftime("%H:%M:%S") for moment in (one.since, one.until))
        yield f"{rollouts} for the expert {one.expert}{away}, since {since} and until {until} UTC at the latest"
