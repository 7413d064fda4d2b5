"""Who works on which item of the human queue: it is offered to one person at a time, under a lease.

A person holds one item at most. Locks are taken rollout first, then correction, as everywhere.
"""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Select, any_, func, literal, select, update
from sqlalchemy.orm import Session

from services.contracts.base import check_change
from services.contracts.consultations import SETTLED, ConsultationStatus
from services.contracts.corrections import CORRECTION_CHANGES, CorrectionStatus
from services.store.corrections import corrections
from services.store.corrections.corrections import NotYours
from services.store.loop import consultations, settling
from services.store.tables.corrections import CorrectionRow, DraftRow
from services.store.tables.loop import ConsultationRow

LEASE = timedelta(minutes=30)  # to read a rollout and write its correction without hurry
LEAVING = timedelta(minutes=2)  # a page that is loaded again, or come back to, is not left


def claim(session: Session, lineage_id: UUID, person_id: UUID) -> CorrectionRow | None:
    """The next item for this person, leased to them; None when there is none.

    An item they hold already comes first, then one they left a draft of, then the queue in its order (see
    `services.store.corrections.ranking`), then items that others skipped, never one they skipped themselves. Items with
    an expired lease count as open.
    """
    _take_turn(session, person_id)
    row = _next(session, _waiting(lineage_id).where(_is_held_by(person_id)))
    if row is None:
        _free_leases(session)
        waiting = _waiting(lineage_id).where(~was_skipped_by(person_id))
        row = (
            _next(session, waiting.where(_is_open(), _has_draft_of(person_id)))
            or _next(session, waiting.where(_is_open()))
            or _next(session, waiting.where(_was_skipped()))
        )
    return None if row is None else _lease_to(session, row, person_id)


def find_held(session: Session, lineage_id: UUID, person_id: UUID) -> CorrectionRow | None:
    """The item this person holds, if they hold one; takes none and waits for no lock."""
    return session.scalar(_waiting(lineage_id).where(_is_held_by(person_id)).limit(1))


def claim_one(session: Session, correction_id: UUID, person_id: UUID) -> CorrectionRow:
    """This very item, leased to this person; whatever else they hold goes back to the queue, drafts are kept.

    Errors: CorrectionNotFound (404), NotYours (409) while someone else holds it, NotWaiting (409) when its consultation
    ended, IllegalStatusChange (409) when it was decided.
    """
    _take_turn(session, person_id)
    row = corrections.lock(session, correction_id)
    if row.status == CorrectionStatus.CLAIMED.value and row.person_id != person_id:
        still = session.scalar(select(CorrectionRow.lease_until > func.now()).where(CorrectionRow.id == row.id))
        if still:
            raise NotYours(f"correction {correction_id} is held by someone else")
        corrections.give_back(session, row)
    if row.status != CorrectionStatus.CLAIMED.value:
        wanted = CorrectionStatus.OPEN if row.status == CorrectionStatus.SKIPPED.value else CorrectionStatus.CLAIMED
        check_change(CORRECTION_CHANGES, CorrectionStatus(row.status), wanted)
    consultation = consultations.get(session, row.consultation_id)
    if consultation.status != ConsultationStatus.WAITING.value:
        raise settling.NotWaiting(f"the consultation behind correction {correction_id} is {consultation.status}")
    hold_only(session, row, person_id)
    return _lease_to(session, row, person_id)


def hold_only(session: Session, row: CorrectionRow, person_id: UUID) -> None:
    """Put every other item this person holds back in the queue: people work on one at a time."""
    session.execute(
        update(CorrectionRow)
        .where(
            CorrectionRow.person_id == person_id,
            CorrectionRow.status == CorrectionStatus.CLAIMED.value,
            CorrectionRow.id != row.id,
            CorrectionRow.lineage_id == row.lineage_id,
        )
        .values(status=CorrectionStatus.OPEN.value, person_id=None, lease_until=None)
    )


def renew(session: Session, correction_id: UUID, person_id: UUID) -> CorrectionRow:
    """Hold the item for another `LEASE`. Errors: CorrectionNotFound (404), NotYours (409) when it is not theirs."""
    row = corrections.lock(session, correction_id)
    if row.status != CorrectionStatus.CLAIMED.value or row.person_id != person_id:
        raise NotYours(_say_who_has_it(row, person_id))
    row.lease_until = func.now() + LEASE
    session.flush()
    session.refresh(row)
    return row


def leave(session: Session, correction_id: UUID, person_id: UUID) -> None:
    """Let the lease end soon: its page was closed without a word written. A person who is back by then renews it."""
    session.execute(
        update(CorrectionRow)
        .where(
            CorrectionRow.id == correction_id,
            CorrectionRow.person_id == person_id,
            CorrectionRow.status == CorrectionStatus.CLAIMED.value,
            CorrectionRow.lease_until > func.now() + LEAVING,
            CorrectionRow.id.not_in(select(DraftRow.correction_id).where(DraftRow.person_id == person_id)),
        )
        .values(lease_until=func.now() + LEAVING)
    )


def release(session: Session, correction_id: UUID, person_id: UUID) -> CorrectionRow:
    """Give the item back to the queue; a draft is kept. Errors: CorrectionNotFound (404), NotYours (409)."""
    row = corrections.lock(session, correction_id)
    if row.status != CorrectionStatus.CLAIMED.value or row.person_id != person_id:
        raise NotYours(_say_who_has_it(row, person_id))
    corrections.give_back(session, row)
    return row


def _say_who_has_it(row: CorrectionRow, person_id: UUID) -> str:
    if row.status == CorrectionStatus.CLAIMED.value:
        return f"the lease on correction {row.id} ran out and someone else has it now"
    if row.status == CorrectionStatus.OPEN.value:
        return f"the lease on correction {row.id} ran out and it is in the queue again"
    by = "you" if row.person_id == person_id else "someone else"
    return (
        f"correction {row.id} was {row.status} by {by}"
        if row.verdict or row.skip_kind
        else (f"correction {row.id} is {row.status}")
    )


def _take_turn(session: Session, person_id: UUID) -> None:
    """One claim of a person at a time, so that two tabs are given the same item."""
    turn = func.hashtextextended(f"correction\n{person_id}", 0)
    session.execute(select(func.pg_advisory_xact_lock(turn)))


def _waiting(lineage_id: UUID) -> Select[CorrectionRow]:
    """Items whose consultation still waits, in the queue's order."""
    return (
        select(CorrectionRow)
        .join(ConsultationRow, ConsultationRow.id == CorrectionRow.consultation_id)
        .where(CorrectionRow.lineage_id == lineage_id, ConsultationRow.status == ConsultationStatus.WAITING.value)
        .order_by(
            CorrectionRow.priority.desc(),
            CorrectionRow.disagreement.desc(),
            CorrectionRow.uncertainty.desc(),
            CorrectionRow.id.desc(),
        )
    )


def _is_open() -> ColumnElement[bool]:
    return CorrectionRow.status == CorrectionStatus.OPEN.value


def _was_skipped() -> ColumnElement[bool]:
    return CorrectionRow.status == CorrectionStatus.SKIPPED.value


def was_skipped_by(person_id: UUID) -> ColumnElement[bool]:
    """A condition on items: this person is one of those who skipped it."""
    return literal(person_id) == any_(CorrectionRow.skipped_by)


def _has_draft_of(person_id: UUID) -> ColumnElement[bool]:
    mine = select(DraftRow.correction_id).where(DraftRow.person_id == person_id)
    return CorrectionRow.id.in_(mine)


def _next(session: Session, query: Select[CorrectionRow]) -> CorrectionRow | None:
    """The first row that no other person is taking at this moment."""
    return session.scalar(query.limit(1).with_for_update(skip_locked=True, of=CorrectionRow))


def _is_held_by(person_id: UUID) -> ColumnElement[bool]:
    return (CorrectionRow.status == CorrectionStatus.CLAIMED.value) & (CorrectionRow.person_id == person_id)


def _lease_to(session: Session, row: CorrectionRow, person_id: UUID) -> CorrectionRow:
    if row.status == CorrectionStatus.SKIPPED.value:
        row.status = CorrectionStatus.OPEN.value
        session.flush()
    row.status = CorrectionStatus.CLAIMED.value
    row.person_id = person_id
    row.lease_until = func.now() + LEASE
    row.skip_kind = row.skip_reason = row.decided_at = None
    row.skipped_by = [other for other in row.skipped_by if other != person_id]
    session.flush()
    session.refresh(row)
    return row


def free_expired(session: Session) -> None:
    """Put items whose lease ran out back in the queue, and take out those whose consultation ended without a person."""
    _free_leases(session)
    # An item can be opened in the moment its consultation ends: the human expert is asked over HTTP.
    ended = (
        select(CorrectionRow.consultation_id)
        .join(ConsultationRow, ConsultationRow.id == CorrectionRow.consultation_id)
        .where(
            CorrectionRow.status == CorrectionStatus.OPEN.value,
            ConsultationRow.status.in_([status.value for status in SETTLED]),
        )
    )
    settling.withdraw_items(session, session.scalars(ended).all())


def _free_leases(session: Session) -> None:
    session.execute(
        update(CorrectionRow)
        .where(
            CorrectionRow.id.in_(
                select(CorrectionRow.id)
                .where(CorrectionRow.status == CorrectionStatus.CLAIMED.value, CorrectionRow.lease_until < func.now())
                .with_for_update(skip_locked=True)
            )
        )
        .values(status=CorrectionStatus.OPEN.value, person_id=None, lease_until=None)
    )
