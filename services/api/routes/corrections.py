"""Corrections: the human queue. Claim an item, keep a draft, submit what the answer should have
been, take it back, see the update that used it and what that changed."""

from typing import Annotated
from uuid import UUID

from fastapi import Query
from sqlalchemy.orm import Session

from services.acts.callers import Caller
from services.api.auth import CallerDep, needs
from services.api.deps import PagingDep, SettingsDep, StoreDep
from services.api.once import OnceDep
from services.api.routes.common import build_router, problems
from services.contracts.base import Page
from services.contracts.corrections import (
    Correction,
    CorrectionCreate,
    CorrectionItem,
    CorrectionOutcome,
    CorrectionSkip,
    CorrectionStatus,
    CorrectionSubmit,
    Draft,
    DraftSave,
    DraftSaved,
)
from services.contracts.persons import Right
from services.jobs import dispatch
from services.runtime.errors import NotFound
from services.store.corrections import corrections, desk, drafts, undo
from services.store.loop import consultations, lineages
from services.store.views import browse

router = build_router("corrections")


class NothingToCorrect(NotFound):
    """The queue holds no item for this person."""

    hint = "Come back later, or ask for one with POST /v1/corrections {rollout_id}."


@router.post(
    "/corrections", status_code=201, dependencies=[needs(Right.CORRECT)], responses=problems(404, 409, 413, 415, 422)
)
def ask_for_correction(body: CorrectionCreate, store: StoreDep, once: OnceDep) -> Correction:
    """Put a rollout of a train task in the human queue, ahead of the queue's own choice.

    Asking twice finds the item that is there; a repeated request gets it without what a person wrote.

    Errors: RolloutNotFound (404), NotCorrectable for a task that is not for training (422), NoHumanExpert (409).
    """
    with store.transaction() as session:
        asked = once(session, lambda: corrections.view(corrections.ask_for(session, body.rollout_id)), stored_as=_hide)
        opened = consultations.pending_of(session, [asked.rollout_id])
    dispatch.consultations(opened)
    return asked


def _hide(asked: Correction) -> Correction:
    """Without what somebody else wrote: it is kept in one place, from which it can be erased."""
    return asked.model_copy(update={"text": None, "comment": None, "skip_reason": None})


@router.post("/corrections/claim", dependencies=[needs(Right.CORRECT)], responses=problems(404, 409))
def claim_correction(caller: CallerDep, store: StoreDep, settings: SettingsDep, once: OnceDep) -> CorrectionItem:
    """Lease the next item to this person for 30 minutes, with everything needed to correct it.

    What was asked for comes first, then by how far experts disagree, then by how unsure the policy was, then the
    newest. Two people never hold the same item; who holds one gets it again; one whose lease ran out goes to the next.

    Errors: NothingToCorrect (404).
    """
    with store.transaction() as session:
        lineage = lineages.get(session, settings.lineage)
        return once(session, lambda: _claim(session, lineage.id, caller))


def _claim(session: Session, lineage_id: UUID, caller: Caller) -> CorrectionItem:
    row = corrections.claim(session, lineage_id, caller.id)
    if row is None:
        raise NothingToCorrect("there is nothing to correct at the moment")
    return desk.item(session, row, caller.id, caller.rights)


@router.post(
    "/corrections/{correction_id}/claim",
    dependencies=[needs(Right.CORRECT)],
    responses=problems(404, 409, 422),
)
def claim_one_correction(correction_id: UUID, caller: CallerDep, store: StoreDep, once: OnceDep) -> CorrectionItem:
    """Lease this very item; whatever else this person holds goes back to the queue, its draft is kept.

    Errors: CorrectionNotFound (404), NotYours while someone else holds it, NotWaiting, IllegalStatusChange (409).
    """
    with store.transaction() as session:
        return once(
            session,
            lambda: desk.item(
                session, corrections.claim_one(session, correction_id, caller.id), caller.id, caller.rights
            ),
        )


@router.post(
    "/corrections/{correction_id}/renew",
    dependencies=[needs(Right.CORRECT)],
    responses=problems(404, 409, 422),
)
def renew_correction(correction_id: UUID, caller: CallerDep, store: StoreDep, once: OnceDep) -> Correction:
    """Hold a claimed item for another 30 minutes from now. Errors: CorrectionNotFound (404), NotYours (409)."""
    with store.transaction() as session:
        return once(session, lambda: corrections.view(corrections.renew(session, correction_id, caller.id)))


@router.post(
    "/corrections/{correction_id}/release",
    dependencies=[needs(Right.CORRECT)],
    responses=problems(404, 409, 422),
)
def release_correction(correction_id: UUID, caller: CallerDep, store: StoreDep, once: OnceDep) -> Correction:
    """Give a claimed item back to the queue; a draft is kept. Errors: CorrectionNotFound (404), NotYours (409)."""
    with store.transaction() as session:
        return once(session, lambda: corrections.view(corrections.release(session, correction_id, caller.id)))


@router.get("/corrections/{correction_id}/draft", dependencies=[needs(Right.CORRECT)], responses=problems(404, 422))
def get_draft(correction_id: UUID, caller: CallerDep, store: StoreDep) -> Draft:
    """This person's draft of the item. Errors: CorrectionNotFound, DraftNotFound (404)."""
    with store.reading() as session:
        return drafts.get(session, corrections.get(session, correction_id).id, caller.id)


@router.put(
    "/corrections/{correction_id}/draft",
    dependencies=[needs(Right.CORRECT)],
    responses=problems(404, 409, 413, 415, 422),
)
def save_draft(correction_id: UUID, body: DraftSave, caller: CallerDep, store: StoreDep) -> DraftSaved:
    """Keep this person's unfinished work on an item that they hold, or held when they began it.

    `version` is that of the draft it was edited from, 0 for the first; the same words again change nothing.

    Errors: CorrectionNotFound (404), DraftChanged when another version was saved since, DraftNotTaken (409).
    """
    with store.transaction() as session:
        return drafts.save(session, corrections.lock(session, correction_id), caller.id, body)


@router.delete(
    "/corrections/{correction_id}/draft",
    status_code=204,
    dependencies=[needs(Right.CORRECT)],
    responses=problems(404, 422),
)
def discard_draft(correction_id: UUID, caller: CallerDep, store: StoreDep) -> None:
    """Throw this person's draft away, if there is one. Errors: CorrectionNotFound (404)."""
    with store.transaction() as session:
        drafts.discard(session, corrections.get(session, correction_id).id, caller.id)


@router.post(
    "/corrections/{correction_id}/submit",
    dependencies=[needs(Right.CORRECT)],
    responses=problems(404, 409, 413, 415, 422),
)
def submit_correction(
    correction_id: UUID, body: CorrectionSubmit, caller: CallerDep, store: StoreDep, once: OnceDep
) -> CorrectionOutcome:
    """Submit the answer as it should be (`corrected`, with the full text), or say that it is `fine`.

    The correction, the human expert's answer and the lesson it opens are stored together, and the draft goes. The
    trainer may have the lesson at once, or after `hold_seconds`.

    Errors: CorrectionNotFound (404), NotYours, NotWaiting, IllegalStatusChange (409), NothingChanged (422).
    """
    with store.transaction() as session:
        done = once(session, lambda: _submit(session, correction_id, caller.id, body))
        opened = consultations.pending_of(session, [done.rollout_id])
    dispatch.consultations(opened)
    dispatch.lessons()
    return done


def _submit(session: Session, correction_id: UUID, person_id: UUID, body: CorrectionSubmit) -> CorrectionOutcome:
    return desk.outcome(session, corrections.submit(session, correction_id, person_id, body))


@router.post(
    "/corrections/{correction_id}/skip",
    dependencies=[needs(Right.CORRECT)],
    responses=problems(404, 409, 413, 415, 422),
)
def skip_correction(
    correction_id: UUID, body: CorrectionSkip, caller: CallerDep, store: StoreDep, once: OnceDep
) -> CorrectionOutcome:
    """Leave a claimed item to someone else. Errors: CorrectionNotFound (404), NotYours, IllegalStatusChange (409)."""
    with store.transaction() as session:
        return once(session, lambda: _skip(session, correction_id, caller.id, body))


def _skip(session: Session, correction_id: UUID, person_id: UUID, why: CorrectionSkip) -> CorrectionOutcome:
    return desk.outcome(session, corrections.skip(session, correction_id, person_id, why))


@router.post(
    "/corrections/{correction_id}/undo",
    dependencies=[needs(Right.CORRECT)],
    responses=problems(404, 409, 422),
)
def undo_correction(correction_id: UUID, caller: CallerDep, store: StoreDep, once: OnceDep) -> CorrectionItem:
    """Take back what this person submitted or skipped: the item is theirs again, with what they wrote as its draft.

    A submitted one for ten minutes, and until a trainer has it: its answer and unused lesson are withdrawn.

    Errors: CorrectionNotFound (404), NotYours, TooLateToUndo naming the update that has it, NotWaiting (409).
    """
    with store.transaction() as session:
        return once(
            session,
            lambda: desk.item(session, undo.take_back(session, correction_id, caller.id), caller.id, caller.rights),
        )


@router.get("/corrections", dependencies=[needs(Right.READ)], responses=problems(422))
def list_corrections(
    caller: CallerDep,
    store: StoreDep,
    settings: SettingsDep,
    paging: PagingDep,
    status: CorrectionStatus | None = None,
    mine: Annotated[bool, Query(description="Only the items this person claimed or decided.")] = False,
) -> Page[Correction]:
    """Items of the human queue, newest first. Errors: BadCursor (422)."""
    with store.reading() as session:
        lineage = lineages.get(session, settings.lineage)
        return browse.list_corrections(
            session,
            lineage.id,
            person_id=caller.id if mine else None,
            status=status,
            cursor=paging.cursor,
            limit=paging.limit,
        )


@router.get("/corrections/{correction_id}", dependencies=[needs(Right.READ)], responses=problems(404))
def get_correction(correction_id: UUID, store: StoreDep) -> CorrectionOutcome:
    """One item, the numbers of the updates that used it and what each changed. Errors: CorrectionNotFound (404)."""
    with store.reading() as session:
        return desk.outcome(session, corrections.get(session, correction_id))
