"""Drafts: a person's unfinished corrections, kept on the server until they are submitted.

A draft outlives the lease: who lost an item keeps what they wrote. Two tabs never overwrite each other unseen: a save
names the version it was edited from, and one that is not the newest is refused.
"""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from services.contracts.answers import FeedbackSpan
from services.contracts.corrections import (
    MAX_SPANS,
    CorrectionStatus,
    CorrectionSubmit,
    Draft,
    DraftSave,
    DraftSaved,
)
from services.runtime.errors import Conflict, InvalidInput, NotFound
from services.store.tables.corrections import CorrectionRow, DraftRow
from services.store.tables.loop import RolloutRow

KEPT = timedelta(days=30)  # how long a draft outlives an item that another person decided
DECIDED = (CorrectionStatus.SUBMITTED.value, CorrectionStatus.WITHDRAWN.value)


class DraftNotFound(NotFound):
    """This person has no draft of this item."""


class DraftChanged(Conflict):
    """The draft was saved elsewhere since this one was loaded; it was not overwritten."""

    hint = "GET the draft, join the two, and save with its version."


class DraftNotTaken(Conflict):
    """The item was decided, or was never this person's, so it takes no draft."""

    hint = "Claim an item with POST /v1/corrections/claim; a draft is kept while a person works on it."


class TooManyRemarks(InvalidInput):
    """There are more remarks on parts of the answer than are kept."""

    hint = "Remove some, or put them in the comment on the whole answer."


def is_held_by(item: CorrectionRow, person_id: UUID) -> bool:
    """Whether this person has the item in front of them."""
    return item.status == CorrectionStatus.CLAIMED.value and item.person_id == person_id


def find(session: Session, correction_id: UUID, person_id: UUID) -> Draft | None:
    """This person's draft of the item, if they have one."""
    row = session.get(DraftRow, (correction_id, person_id), populate_existing=True)
    return None if row is None else Draft.model_validate(row)


def get(session: Session, correction_id: UUID, person_id: UUID) -> Draft:
    """This person's draft of the item. Errors: DraftNotFound (404)."""
    draft = find(session, correction_id, person_id)
    if draft is None:
        raise DraftNotFound(f"you have no draft of correction {correction_id}")
    return draft


def save(session: Session, item: CorrectionRow, person_id: UUID, draft: DraftSave) -> DraftSaved:
    """Save the draft as its next version. Saving the same words again has no effect, so a lost reply may be repeated.

    `item` is locked by the caller. Errors: DraftChanged (409), DraftNotTaken (409).
    """
    row = session.get(DraftRow, (item.id, person_id), with_for_update=True, populate_existing=True)
    held = is_held_by(item, person_id)
    if item.status in DECIDED or (row is None and not held):
        said = f"is {item.status}" if item.status in DECIDED else "is not yours"
        raise DraftNotTaken(f"correction {item.id} {said}, so this draft was not saved")
    spans = [span.model_dump(mode="json") for span in draft.spans]
    if row is None:
        if draft.version != 0:
            raise DraftChanged("the draft was thrown away since this one was loaded")
        row = DraftRow(correction_id=item.id, person_id=person_id, version=0)
        session.add(row)
    elif (row.text, row.comment, row.spans) == (draft.text, draft.comment, spans):
        return _tell(row, item, held)
    elif row.version != draft.version:
        raise DraftChanged(
            f"this draft was edited from version {draft.version}, but version {row.version} was saved since"
        )
    row.text, row.comment, row.spans = draft.text, draft.comment, spans
    row.version += 1
    row.saved_at = func.now()
    session.flush()
    session.refresh(row)
    return _tell(row, item, held)


def add_remark(session: Session, item: CorrectionRow, person_id: UUID, remark: FeedbackSpan) -> DraftSaved:
    """Add a remark to this person's draft; without one, a draft begins with the answer as it is.

    `item` is locked by the caller. Errors: TooManyRemarks (422), DraftNotTaken (409).
    """
    kept = find(session, item.id, person_id)
    spans = [remark] if kept is None else [*kept.spans, remark]
    check_number(spans)
    if kept is None:
        text = session.get_one(RolloutRow, item.rollout_id).text
        return save(session, item, person_id, DraftSave(version=0, text=text, spans=spans))
    return save(
        session,
        item,
        person_id,
        DraftSave(version=kept.version, text=kept.text, comment=kept.comment, spans=spans),
    )


def check_number(remarks: Sequence[FeedbackSpan]) -> None:
    """Pass as many remarks as are kept. Errors: TooManyRemarks (422)."""
    if len(remarks) > MAX_SPANS:
        raise TooManyRemarks(f"there are {len(remarks)} remarks on parts of the answer; {MAX_SPANS} are kept at most")


def check_seen(session: Session, item: CorrectionRow, person_id: UUID, decided: CorrectionSubmit) -> None:
    """Pass where the decision throws away no draft of its person that it was not edited from.

    `item` is locked by the caller; one that the person does not hold passes. Errors: DraftChanged (409).
    """
    kept = find(session, item.id, person_id) if is_held_by(item, person_id) else None
    if kept is None or decided.draft_version is None or kept.version == decided.draft_version:
        return
    if (kept.text, kept.comment, kept.spans) != (decided.text, decided.comment, decided.spans):
        raise DraftChanged(
            f"this was edited from version {decided.draft_version} of the draft, "
            f"but version {kept.version} was saved since"
        )


def put_back(session: Session, correction_id: UUID, person_id: UUID, draft: DraftSave) -> None:
    """Replace the draft with the words of a correction that was taken back."""
    row = session.get(DraftRow, (correction_id, person_id), with_for_update=True, populate_existing=True)
    if row is None:
        row = DraftRow(correction_id=correction_id, person_id=person_id, version=0)
        session.add(row)
    row.text, row.comment = draft.text, draft.comment
    row.spans = [span.model_dump(mode="json") for span in draft.spans]
    row.version += 1
    row.saved_at = func.now()
    session.flush()


def discard(session: Session, correction_id: UUID, person_id: UUID) -> None:
    """Throw the draft away, if there is one."""
    session.execute(delete(DraftRow).where(DraftRow.correction_id == correction_id, DraftRow.person_id == person_id))


def unfinished(session: Session, lineage_id: UUID, person_id: UUID, *, limit: int) -> Sequence[tuple[Draft, str]]:
    """This person's drafts, the latest first, each with the status of its item."""
    rows = session.execute(
        select(DraftRow, CorrectionRow.status)
        .join(CorrectionRow, CorrectionRow.id == DraftRow.correction_id)
        .where(DraftRow.person_id == person_id, CorrectionRow.lineage_id == lineage_id)
        .order_by(DraftRow.saved_at.desc())
        .limit(limit)
    )
    return [(Draft.model_validate(row), status) for row, status in rows]


def forget_old(session: Session) -> None:
    """Delete drafts of decided items that were not touched for `KEPT`."""
    decided = select(CorrectionRow.id).where(CorrectionRow.status.in_(DECIDED))
    session.execute(delete(DraftRow).where(DraftRow.saved_at < func.now() - KEPT, DraftRow.correction_id.in_(decided)))


def _tell(row: DraftRow, item: CorrectionRow, held: bool) -> DraftSaved:
    return DraftSaved(
        **Draft.model_validate(row).model_dump(), held=held, lease_until=item.lease_until if held else None
    )
