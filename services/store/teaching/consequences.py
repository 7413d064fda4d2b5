"""What follows from a measurement for its expert: ready to be promoted, promoted, or sent back to probation."""

from collections.abc import Collection
from uuid import UUID

from sqlalchemy.orm import Session

from services.contracts.experts import ExpertStatus
from services.contracts.measurements import Measurement, MeasurementStatus, say_about
from services.store.loop import experts
from services.store.loop.newest_measurements import IS_DECIDED, IS_UNDER_WAY, select_newest
from services.store.tables.loop import ExpertRow
from services.store.tables.teaching import MeasurementRow
from services.store.teaching import candidates
from services.store.teaching.candidates import Key


def apply(session: Session, expert_ids: Collection[UUID], *, promote: bool) -> None:
    """Draw the consequences of these experts' newest measurements.

    One on probation that teaches in some domain is ready to be promoted; with `promote` it is, if its conformance run
    passed. An active one that is no verifier and not our own goes back to probation once everything of it that could be
    measured was, in every domain and by every template, and none of it teaches.
    """
    for expert_id in sorted(expert_ids):
        expert = session.get_one(ExpertRow, expert_id)
        decided = session.scalars(select_newest(MeasurementRow.expert_id == expert_id, IS_DECIDED)).all()
        newest = [Measurement.model_validate(row) for row in decided]
        teaching = [one for one in newest if one.status is MeasurementStatus.TEACHES]
        if expert.status == ExpertStatus.PROBATION.value and teaching:
            experts.note_teaches(session, expert_id, "; ".join(map(say_about, teaching)), promote=promote)
        elif newest and not teaching and _is_all_known(session, expert, decided):
            experts.note_does_not_teach(session, expert_id, "; ".join(map(say_about, newest)))


def _is_all_known(session: Session, expert: ExpertRow, decided: Collection[MeasurementRow]) -> bool:
    """Whether nothing of the expert is under way or was never decided."""
    under_way = session.scalars(select_newest(MeasurementRow.expert_id == expert.id, IS_UNDER_WAY)).all()
    known = {(row.domain, candidates.key_of(row)) for row in decided}
    return not under_way and _find_measurable(session, expert) <= known


def _find_measurable(session: Session, expert: ExpertRow) -> set[tuple[str, Key]]:
    """By domain, everything of the expert that could be measured."""
    own = [one for one in candidates.find_experts(session, expert.lineage_id) if one.expert.id == expert.id]
    return {
        (domain, key)
        for domain in candidates.find_domains(session, expert.lineage_id)
        for key in candidates.find_keys(session, own, domain)
    }
