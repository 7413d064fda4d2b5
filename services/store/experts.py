"""Experts: registered services, their versions, and what becomes of their open questions when they leave."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.contracts.base import check_change
from services.contracts.consultations import ConsultationStatus
from services.contracts.experts import EXPERT_CHANGES, ConformanceReport, Expert, ExpertCreate, ExpertStatus
from services.errors import Conflict, InvalidInput, NotFound
from services.store import consultations, quarantine
from services.store.models import ConsultationRow, ExpertRow, RolloutRow

UNSETTLED = (ConsultationStatus.PENDING.value, ConsultationStatus.ASKED.value, ConsultationStatus.WAITING.value)


class ExpertNotFound(NotFound):
    """No expert with this id."""


class NotAnExpert(InvalidInput):
    """What is behind the endpoint does not describe itself as an expert of protocol 1; nothing was registered."""

    hint = "The endpoint must answer GET /v1/expert with its descriptor as JSON, without redirects."


class NotConformant(Conflict):
    """The expert's last conformance report has failed checks, so its answers may not train."""

    hint = "Read its report, mend the service, and register its URL again."


class ExpertNameTaken(Conflict):
    """An expert of this name serves another lineage."""


@dataclass(frozen=True)
class Registration:
    """The registered expert, and the earlier version it took the place of."""

    expert: ExpertRow
    replaced: ExpertRow | None


def get(session: Session, expert_id: UUID) -> ExpertRow:
    """The expert. Errors: ExpertNotFound."""
    row = session.get(ExpertRow, expert_id)
    if row is None:
        raise ExpertNotFound(f"no expert {expert_id}")
    return row


def find_live(session: Session, name: str) -> ExpertRow | None:
    """The expert of this name that is not retired."""
    return session.scalar(
        select(ExpertRow).where(ExpertRow.name == name, ExpertRow.status != ExpertStatus.RETIRED.value)
    )


def view(row: ExpertRow) -> Expert:
    """The contract of a row; its signing secret stays in the store."""
    return Expert.model_validate(row)


def register(session: Session, lineage_id: UUID, wanted: ExpertCreate, report: ConformanceReport) -> Registration:
    """Register what a conformance run found: on probation, or active when it is trusted and every check held.

    The same name and descriptor again is the same expert with a new report and settings; a changed descriptor is a
    new row, and the old one retires. Errors: NotAnExpert (422), ExpertNameTaken (409).
    """
    descriptor = report.descriptor
    if descriptor is None:
        failed = next((f"{check.name}: {check.detail}" for check in report.checks if not check.passed), "no descriptor")
        raise NotAnExpert(f"{wanted.endpoint} is not an expert ({failed})")
    # Two registrations of one name at once take turns.
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"expert\n{descriptor.name}", 0))))
    described = descriptor.model_dump(mode="json")
    row = find_live(session, descriptor.name)
    if row is not None and row.lineage_id != lineage_id:
        raise ExpertNameTaken(f"the expert {descriptor.name!r} is registered for another lineage")
    replaced = None
    if row is not None and row.descriptor != described:
        retire(session, row.id, f"replaced by version {descriptor.version}")
        row, replaced = None, row
    if row is None:
        row = ExpertRow(lineage_id=lineage_id, name=descriptor.name, version=descriptor.version, descriptor=described)
        row.status = ExpertStatus.PROBATION.value
        session.add(row)
    row.endpoint = report.endpoint
    row.granted = [*wanted.granted]
    row.trusted = wanted.trusted
    row.weight = wanted.weight
    row.group_fraction = wanted.group_fraction
    row.rollouts_per_group = wanted.rollouts_per_group
    row.top_k = wanted.top_k
    row.temperature = wanted.temperature
    row.signing_secret = wanted.signing_secret
    row.report = report.model_dump(mode="json")
    if row.status != ExpertStatus.QUARANTINED.value:
        quarantine.end(row)
    if not report.passed:
        row.was_active = False  # however its quarantine ends, its answers may not train
    session.flush()
    if row.status == ExpertStatus.ACTIVE.value and not report.passed:
        row.status, row.reason = ExpertStatus.PROBATION.value, "its last conformance run failed"
    if row.status == ExpertStatus.QUARANTINED.value and report.passed:
        row.status, row.reason = ExpertStatus.PROBATION.value, None
        quarantine.end(row)
        session.flush()
    if row.status == ExpertStatus.PROBATION.value and wanted.trusted and report.passed:
        row.status, row.reason = ExpertStatus.ACTIVE.value, None
    session.flush()
    session.refresh(row)
    return Registration(expert=row, replaced=replaced)


def activate(session: Session, expert_id: UUID) -> ExpertRow:
    """Let its answers train. Errors: ExpertNotFound, NotConformant, IllegalStatusChange."""
    row = _change(session, expert_id, ExpertStatus.ACTIVE)
    if not ConformanceReport.model_validate(row.report).passed:
        raise NotConformant(f"the expert {row.name!r} failed its conformance run")
    return row


def pause(session: Session, expert_id: UUID, reason: str) -> ExpertRow:
    """Ask it nothing new; its pending questions wait for it. Errors: ExpertNotFound, IllegalStatusChange."""
    row = _change(session, expert_id, ExpertStatus.PAUSED)
    row.reason = reason
    session.flush()
    return row


def retire(session: Session, expert_id: UUID, reason: str) -> ExpertRow:
    """Let it go for good: its open questions end with the reason, and their rollouts move on without it.

    Errors: ExpertNotFound, IllegalStatusChange.
    """
    check_change(EXPERT_CHANGES, ExpertStatus(get(session, expert_id).status), ExpertStatus.RETIRED)
    # Rollouts are locked before the expert, as whoever settles a question does it; moving a rollout on may open a
    # second-stage question to this very expert, so look again until there is none.
    while open_questions := _find_open_questions(session, expert_id):
        for consultation_id, rollout_id in open_questions:
            _end_question(session, consultation_id, rollout_id, f"the expert retired: {reason}")
    row = _change(session, expert_id, ExpertStatus.RETIRED)
    row.reason = reason
    session.flush()
    return row


def _find_open_questions(session: Session, expert_id: UUID) -> list[tuple[UUID, UUID]]:
    rows = session.execute(
        select(ConsultationRow.id, ConsultationRow.rollout_id)
        .where(ConsultationRow.expert_id == expert_id, ConsultationRow.status.in_(UNSETTLED))
        .order_by(ConsultationRow.rollout_id)
    )
    return [(consultation_id, rollout_id) for consultation_id, rollout_id in rows]


def _end_question(session: Session, consultation_id: UUID, rollout_id: UUID, reason: str) -> None:
    session.execute(select(RolloutRow.id).where(RolloutRow.id == rollout_id).with_for_update())
    row = session.scalars(select(ConsultationRow).where(ConsultationRow.id == consultation_id).with_for_update()).one()
    if row.status in UNSETTLED:
        consultations.kill(session, row, reason)


def requeue(session: Session, expert_id: UUID) -> tuple[ExpertRow, list[UUID]]:
    """Ask its dead questions again, and take it out of quarantine; returns the ids to send after the commit.

    Errors: ExpertNotFound, IllegalStatusChange when it retired.
    """
    row = session.scalar(select(ExpertRow).where(ExpertRow.id == expert_id).with_for_update()) or get(
        session, expert_id
    )
    if row.status in (ExpertStatus.QUARANTINED.value, ExpertStatus.RETIRED.value):
        row = _change(session, expert_id, ExpertStatus.PROBATION)
    dead = session.scalars(
        select(ConsultationRow.id).where(
            ConsultationRow.expert_id == row.id, ConsultationRow.status == ConsultationStatus.DEAD.value
        )
    ).all()
    consultations.requeue_all(session, dead)
    return row, list(dead)


def _change(session: Session, expert_id: UUID, new: ExpertStatus) -> ExpertRow:
    row = session.scalar(select(ExpertRow).where(ExpertRow.id == expert_id).with_for_update()) or get(
        session, expert_id
    )
    check_change(EXPERT_CHANGES, ExpertStatus(row.status), new)
    if row.status == ExpertStatus.QUARANTINED.value:
        quarantine.end(row)
    row.status = new.value
    if new in (ExpertStatus.ACTIVE, ExpertStatus.PROBATION):
        row.reason = None
    session.flush()
    return row


def _lock(session: Session, expert_id: UUID) -> ExpertRow:
    row = get(session, expert_id)
    session.refresh(row, with_for_update=True)
    return row
