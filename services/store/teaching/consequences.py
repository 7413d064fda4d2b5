"""What follows from a measurement for its expert: ready to be promoted, promoted, or sent back to probation."""

from collections.abc import Collection
from uuid import UUID

from sqlalchemy.orm import Session

from services.contracts.experts import ExpertStatus
from services.contracts.measurements import Measurement, MeasurementStatus, say_about
from services.contracts.sources import ContextSource
from services.store.loop import experts
from services.store.loop.newest_measurements import IS_UNDER_WAY, find_verdicts, select_newest
from services.store.tables.loop import ExpertRow
from services.store.tables.teaching import MeasurementRow
from services.store.teaching import candidates


def apply(session: Session, expert_ids: Collection[UUID], *, promote: bool) -> None:
    """Draw the consequences of these experts' newest measurements.

    One on probation that teaches in some domain is ready to be promoted, until that lapses; with `promote` it is, if
    its conformance run passed. An active one that is no verifier and not our own goes back to probation once everything
    of it that could be measured was, in every domain and by every template, and none of it teaches. Measurements that
    may never end, because there is nothing to show or no rollout to read a distribution on, are not waited for.
    """
    for expert_id in sorted(expert_ids):
        expert = session.get_one(ExpertRow, expert_id)
        decided = find_verdicts(session, MeasurementRow.expert_id == expert_id)
        newest = [Measurement.model_validate(row) for row in decided]
        teaching = [one for one in newest if one.status is MeasurementStatus.TEACHES]
        if expert.status == ExpertStatus.PROBATION.value and teaching:
            experts.note_teaches(session, expert_id, "; ".join(map(say_about, teaching)), promote=promote)
        elif newest and not teaching and _is_all_known(session, expert, decided):
            experts.note_does_not_teach(session, expert_id, "; ".join(map(say_about, newest)))
        elif not teaching:
            experts.note_lapsed(session, expert_id)


def _is_all_known(session: Session, expert: ExpertRow, decided: Collection[MeasurementRow]) -> bool:
    """Whether nothing of the expert is under way or was never decided, but for what may never be."""
    under_way = session.scalars(select_newest(MeasurementRow.expert_id == expert.id, IS_UNDER_WAY)).all()
    endless = [row for row in under_way if _may_never_end(session, row)]
    known = {(row.domain, candidates.key_of(row)) for row in (*decided, *endless)}
    return len(endless) == len(under_way) and candidates.find_measurable(session, expert) <= known


def _may_never_end(session: Session, row: MeasurementRow) -> bool:
    is_unread = row.source == ContextSource.DISTRIBUTION.value and row.num_tasks == 0
    return is_unread or row.id in candidates.find_waiting(session, [row])
