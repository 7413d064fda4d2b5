"""Experts: registered services, their versions, and the end of their open consultations when they leave."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.contracts.base import JsonObject, check_change
from services.contracts.consultations import ConsultationStatus
from services.contracts.experts import (
    EXPERT_CHANGES,
    ConformanceReport,
    Descriptor,
    Expert,
    ExpertCreate,
    ExpertStatus,
    OwnKind,
)
from services.contracts.persons import Right
from services.runtime.errors import Conflict, InvalidInput, NotFound
from services.store.core import audit
from services.store.corrections import ranking
from services.store.loop import consultations, quarantine, settling, trust
from services.store.loop.quarantine import Look
from services.store.tables.loop import ConsultationRow, ExpertRow, RolloutRow

UNSETTLED = (ConsultationStatus.PENDING.value, ConsultationStatus.ASKED.value, ConsultationStatus.WAITING.value)
READY: Final = "ready to be promoted"


class ExpertNotFound(NotFound):
    """No expert with this id."""


class NotAnExpert(InvalidInput):
    """The service at the endpoint does not describe itself as an expert of protocol 1; it was not registered."""

    hint = "The endpoint must answer GET /v1/expert with its descriptor as JSON, without redirects."


class NotConformant(Conflict):
    """The expert's last conformance report has failed checks, so its answers may not train."""

    hint = "Read its report, mend the service, and register its URL again."


class ExpertNameTaken(Conflict):
    """Another expert has this name: a service is known by its endpoint, not by the name it gives itself."""

    hint = (
        "Let it describe itself under a name of its own. If it is that expert at a new address, say so with "
        "`preceptor experts add URL --moved ID` (POST /v1/experts/{id}/move)."
    )


class EndpointTaken(Conflict):
    """Another expert is registered at this endpoint."""

    hint = "Retire that expert first, or register it again with POST /v1/experts."


class ExpertRetired(Conflict):
    """A retired expert does not come back."""

    hint = "Register its URL with POST /v1/experts: it gets a new id and starts on probation."


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


def settings_by_id(session: Session, lineage_id: UUID, names: Sequence[str]) -> dict[UUID, JsonObject]:
    """These settings of every expert of the lineage that is not retired."""
    rows = session.scalars(
        select(ExpertRow).where(ExpertRow.lineage_id == lineage_id, ExpertRow.status != ExpertStatus.RETIRED.value)
    )
    return {row.id: view(row).model_dump(mode="json", include=set(names)) for row in rows}


def view(row: ExpertRow, rights: frozenset[Right] = frozenset(Right)) -> Expert:
    """The contract of a row, as a person with these rights may see it; its signing secret stays in the store."""
    expert = Expert.model_validate(row)
    if expert.status is not ExpertStatus.QUARANTINED or trust.may_hear(rights, row):
        return expert
    return expert.model_copy(update={"reason": None})


def register(session: Session, lineage_id: UUID, wanted: ExpertCreate, report: ConformanceReport) -> Registration:
    """Register the result of a conformance run: on probation, or active when it is trusted and every check held.

    The expert at the same endpoint with the same descriptor is the same expert, with a new report and settings. Where
    the descriptor has changed it is a new row, and the old one retires.

    Errors: NotAnExpert (422); ExpertNameTaken, EndpointTaken (409).
    """
    _take_turn(session)
    row = _find_at(session, report.endpoint)
    return _register(session, lineage_id, row, wanted, report)


def move(
    session: Session, lineage_id: UUID, expert_id: UUID, wanted: ExpertCreate, report: ConformanceReport
) -> Registration:
    """Register this expert at another endpoint. It goes through probation there, unless it is trusted.

    Errors: ExpertNotFound (404); NotAnExpert (422); ExpertRetired, ExpertNameTaken, EndpointTaken (409).
    """
    _take_turn(session)
    row = get(session, expert_id)
    _refuse_retired(row)
    if row.endpoint != report.endpoint and row.status == ExpertStatus.ACTIVE.value and not wanted.trusted:
        row.status, row.reason = ExpertStatus.PROBATION.value, "it moved to another endpoint"
        session.flush()
    return _register(session, lineage_id, row, wanted, report)


def install(
    session: Session, lineage_id: UUID, own: OwnKind, wanted: ExpertCreate, report: ConformanceReport
) -> Registration:
    """Register one of our own experts, wherever its process listens now; one that is there already keeps its weight.

    Errors: NotAnExpert (422); EndpointTaken (409).
    """
    _take_turn(session)
    live = ExpertRow.status != ExpertStatus.RETIRED.value
    row = session.scalar(select(ExpertRow).where(ExpertRow.own == own.value, live))
    row = row or _find_at(session, report.endpoint)
    if row is not None:
        if row.own == own.value:
            wanted = wanted.model_copy(update={"weight": row.weight})  # an operator may have set it
        row.own = own.value
    return _register(session, lineage_id, row, wanted, report, own)


def _take_turn(session: Session) -> None:
    """One registration at a time."""
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended("expert", 0))))


def _find_at(session: Session, endpoint: str) -> ExpertRow | None:
    live = ExpertRow.status != ExpertStatus.RETIRED.value
    return session.scalar(select(ExpertRow).where(ExpertRow.endpoint == endpoint, live))


def _register(
    session: Session,
    lineage_id: UUID,
    row: ExpertRow | None,
    wanted: ExpertCreate,
    report: ConformanceReport,
    own: OwnKind | None = None,
) -> Registration:
    """Write the findings into the expert's row, or into a new one where there is none or its descriptor changed."""
    descriptor = report.descriptor
    if descriptor is None:
        failed = next((f"{check.name}: {check.detail}" for check in report.checks if not check.passed), "no descriptor")
        raise NotAnExpert(f"{wanted.endpoint} is not an expert ({failed})")
    _check_free(session, lineage_id, row, descriptor.name, report.endpoint, own)
    described = descriptor.model_dump(mode="json")
    replaced = None
    if row is not None and row.descriptor != described:
        retire(session, row.id, f"replaced by version {descriptor.version}")
        own = own or (None if row.own is None else OwnKind(row.own))
        row, replaced = None, row
    if row is None:
        row = ExpertRow(lineage_id=lineage_id, name=descriptor.name, version=descriptor.version, descriptor=described)
        row.status = ExpertStatus.PROBATION.value
        row.own = None if own is None else own.value
        session.add(row)
    row.endpoint = report.endpoint
    row.granted = [*wanted.granted]
    row.trusted = wanted.trusted
    row.weight = wanted.weight
    row.group_fraction = wanted.group_fraction
    row.rollouts_per_group = wanted.rollouts_per_group
    row.top_k = wanted.top_k
    row.temperature = wanted.temperature
    row.num_places = wanted.num_places
    row.num_samples = wanted.num_samples
    row.signing_secret = wanted.signing_secret
    has_failed = replaced is None and row.report is not None and not ConformanceReport.model_validate(row.report).passed
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
    if row.status == ExpertStatus.PROBATION.value and has_failed and report.passed:
        row.reason = None
    if row.status == ExpertStatus.PROBATION.value and wanted.trusted and report.passed:
        row.status, row.reason = ExpertStatus.ACTIVE.value, None
    session.flush()
    ranking.rank_scored_by(session, row.id)
    session.refresh(row)
    return Registration(expert=row, replaced=replaced)


def _check_free(
    session: Session, lineage_id: UUID, row: ExpertRow | None, name: str, endpoint: str, own: OwnKind | None
) -> None:
    """Pass when no other live expert has the endpoint, or the name; our own may share their names with strangers."""
    others = select(ExpertRow).where(ExpertRow.status != ExpertStatus.RETIRED.value)
    if row is not None:
        if row.lineage_id != lineage_id:
            raise EndpointTaken(f"the expert {row.name!r} at {row.endpoint} is registered for another lineage")
        others = others.where(ExpertRow.id != row.id)
    if (there := session.scalar(others.where(ExpertRow.endpoint == endpoint).limit(1))) is not None:
        raise EndpointTaken(f"the expert {there.name!r} ({there.id}) is registered at {endpoint}")
    if own is not None or (row is not None and row.own is not None):
        return
    if (namesake := session.scalar(others.where(ExpertRow.name == name).limit(1))) is not None:
        raise ExpertNameTaken(f"the name {name!r} is that of the expert {namesake.id} at {namesake.endpoint}")


LOOK_EVERY: Final = timedelta(minutes=1)
"""How often an expert in use is checked: is it still the service that was registered?"""


def take_unseen(session: Session, limit: int) -> list[Look]:
    """Experts in use that were not checked for a while; no other worker gets them until the next time."""
    asked = (ExpertStatus.ACTIVE.value, ExpertStatus.PROBATION.value)
    is_due = ExpertRow.looked_at.is_(None) | (ExpertRow.looked_at <= func.now() - LOOK_EVERY)
    rows = session.scalars(
        select(ExpertRow)
        .where(ExpertRow.status.in_(asked), is_due)
        .order_by(ExpertRow.looked_at.nulls_first())
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    looks = [quarantine.look_at(row) for row in rows]
    for row in rows:
        row.looked_at = func.now()
    return looks


def note_changed(session: Session, expert_id: UUID, found: Descriptor | str) -> bool:
    """Send an expert whose descriptor has changed back to probation, and record it.

    found: its descriptor, or why the service there is no expert. False where it is what it was, or is not active
    any more.
    """
    row = _lock(session, expert_id)
    if row.status != ExpertStatus.ACTIVE.value:
        return False
    if isinstance(found, str):
        row.reason = f"the service there no longer describes itself as an expert ({found[:1500]}): register it again"
    elif row.descriptor != found.model_dump(mode="json"):
        row.reason = (
            f"it describes itself as {found.name} {found.version} now, otherwise than it was registered: "
            "register it again"
        )
    else:
        return False
    row.status = ExpertStatus.PROBATION.value
    session.flush()
    ranking.rank_scored_by(session, row.id)
    audit.record(session, audit.SYSTEM, "experts.changed", "expert", row.id, {"registered": row.version})
    return True


def note_teaches(session: Session, expert_id: UUID, measured: str, *, promote: bool) -> None:
    """Say of an expert on probation that it was measured to teach, and what it takes to let its answers train; with
    `promote` they do at once, if its conformance run passed, and that is recorded."""
    row = _lock(session, expert_id)
    if row.status != ExpertStatus.PROBATION.value:
        return
    report = ConformanceReport.model_validate(row.report)
    if not report.passed or not promote:
        row.reason = _say_what_is_missing(row, report, measured)
        session.flush()
        return
    row.status, row.reason, row.looked_at = ExpertStatus.ACTIVE.value, None, None
    session.flush()
    ranking.rank_scored_by(session, row.id)
    audit.record(session, audit.SYSTEM, "experts.promoted", "expert", row.id, {"measured": measured})


def _say_what_is_missing(row: ExpertRow, report: ConformanceReport, measured: str) -> str:
    if report.passed:
        return f"{READY}: {measured}. Confirm with `preceptor experts activate {str(row.id)[-8:]}`"
    failed = ", ".join(check.name for check in report.checks if check.required and not check.passed)
    return (
        f"not ready to be promoted: its last conformance run failed ({failed or 'no descriptor'}). Mend it and "
        f"register its URL again. It was measured: {measured}"
    )


def note_lapsed(session: Session, expert_id: UUID) -> None:
    """Say of an expert on probation that was ready to be promoted that it is so no longer: nothing says now that it
    teaches."""
    row = _lock(session, expert_id)
    if row.status == ExpertStatus.PROBATION.value and (row.reason or "").startswith(READY):
        row.reason = "its measurements are too old: it is measured again"
        session.flush()


def note_does_not_teach(session: Session, expert_id: UUID, measured: str) -> None:
    """Send an active expert of others that is no verifier back to probation, because no source of it teaches; recorded.
    One on probation gets the reason, unless its last conformance run failed: that is what keeps it there."""
    row = _lock(session, expert_id)
    if row.own is not None or Descriptor.model_validate(row.descriptor).verifier:
        return
    if row.status not in (ExpertStatus.ACTIVE.value, ExpertStatus.PROBATION.value):
        return
    is_active = row.status == ExpertStatus.ACTIVE.value
    if not is_active and not ConformanceReport.model_validate(row.report).passed:
        return
    if is_active:
        row.status = ExpertStatus.PROBATION.value
        audit.record(session, audit.SYSTEM, "experts.demoted", "expert", row.id, {"measured": measured})
    row.reason = measured
    session.flush()
    ranking.rank_scored_by(session, row.id)


def activate(session: Session, expert_id: UUID) -> ExpertRow:
    """Let its answers train. Errors: ExpertNotFound, NotConformant, IllegalStatusChange."""
    row = _change(session, expert_id, ExpertStatus.ACTIVE)
    if not ConformanceReport.model_validate(row.report).passed:
        raise NotConformant(f"the expert {row.name!r} failed its conformance run")
    row.looked_at = None  # it may have become another meanwhile
    return row


def pause(session: Session, expert_id: UUID, reason: str) -> ExpertRow:
    """Open no new consultations with it; pending ones wait. Errors: ExpertNotFound, IllegalStatusChange."""
    row = _change(session, expert_id, ExpertStatus.PAUSED)
    row.reason = reason
    session.flush()
    return row


def require_not_retired(session: Session, expert_id: UUID) -> None:
    """Pass while the expert may still be consulted some day. Errors: ExpertNotFound, ExpertRetired."""
    _refuse_retired(get(session, expert_id))


def _refuse_retired(row: ExpertRow) -> None:
    if row.status == ExpertStatus.RETIRED.value:
        raise ExpertRetired(f"the expert {row.name!r} retired: {row.reason}")


def weigh(session: Session, expert_id: UUID, weight: float) -> ExpertRow:
    """Set how much its answers weigh in the loss. Errors: ExpertNotFound, ExpertRetired."""
    row = _lock(session, expert_id)
    _refuse_retired(row)
    row.weight = weight
    session.flush()
    ranking.rank_scored_by(session, row.id)
    return row


def retire(session: Session, expert_id: UUID, reason: str) -> ExpertRow:
    """Retire it for good: its open consultations end with the reason, and their rollouts move on without it.

    Errors: ExpertNotFound, IllegalStatusChange.
    """
    check_change(EXPERT_CHANGES, ExpertStatus(get(session, expert_id).status), ExpertStatus.RETIRED)
    # Rollouts are locked before the expert, as whoever settles a consultation does it; moving a rollout on may open a
    # second-stage consultation to this very expert, so look again until there is none.
    while still_open := _find_open(session, expert_id):
        for consultation_id, rollout_id in still_open:
            _end_consultation(session, consultation_id, rollout_id, f"the expert retired: {reason}")
    row = _change(session, expert_id, ExpertStatus.RETIRED)
    row.reason = reason
    session.flush()
    return row


def _find_open(session: Session, expert_id: UUID) -> list[tuple[UUID, UUID]]:
    rows = session.execute(
        select(ConsultationRow.id, ConsultationRow.rollout_id)
        .where(ConsultationRow.expert_id == expert_id, ConsultationRow.status.in_(UNSETTLED))
        .order_by(ConsultationRow.rollout_id)
    )
    return [(consultation_id, rollout_id) for consultation_id, rollout_id in rows]


def _end_consultation(session: Session, consultation_id: UUID, rollout_id: UUID, reason: str) -> None:
    session.execute(select(RolloutRow.id).where(RolloutRow.id == rollout_id).with_for_update())
    row = session.scalars(select(ConsultationRow).where(ConsultationRow.id == consultation_id).with_for_update()).one()
    if row.status in UNSETTLED:
        settling.kill(session, row, reason)


def requeue(session: Session, expert_id: UUID) -> tuple[ExpertRow, list[UUID]]:
    """Ask its dead consultations again, and take it out of quarantine; returns the ids to send after the commit.

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
    ranking.rank_scored_by(session, row.id)
    return row


def _lock(session: Session, expert_id: UUID) -> ExpertRow:
    row = get(session, expert_id)
    session.refresh(row, with_for_update=True)
    return row
