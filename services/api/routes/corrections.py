"""Corrections: the human queue. Claim an item, keep a draft, submit the answer as it should have been, take it back,
see the update that used it and the change that it made."""

from typing import Annotated
from uuid import UUID

from fastapi import Query

from services.acts import corrections as acts
from services.api.auth import CallerDep, needs
from services.api.calls import CallDep, PlainCallDep
from services.api.deps import AppStateDep, PagingDep, SettingsDep, StoreDep
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
    QuotedRemark,
)
from services.contracts.persons import Right
from services.store.corrections import corrections, desk, drafts
from services.store.loop import lineages
from services.store.views import browse

router = build_router("corrections")


@router.post(
    "/corrections", status_code=201, dependencies=[needs(Right.CORRECT)], responses=problems(404, 409, 413, 415, 422)
)
def ask_for_correction(body: CorrectionCreate, call: CallDep) -> Correction:
    """Put a rollout of a train task at the front of the human queue.

    Asking twice returns the existing item; a repeated request gets it without a person's text.

    Errors: RolloutNotFound (404), NotCorrectable for a task that is not for training (422), NoHumanExpert (409).
    """
    return acts.ask(call, body.rollout_id)


@router.post("/corrections/claim", dependencies=[needs(Right.CORRECT)], responses=problems(404, 409))
def claim_correction(call: CallDep) -> CorrectionItem:
    """Lease the next item to this person for 30 minutes, with everything needed to correct it.

    The order: requested items, then by the experts' disagreement, by the policy's uncertainty, and newest first. Two
    people never hold the same item. The holder of an item gets it again; an expired lease frees it.

    Errors: NothingToCorrect (404).
    """
    return acts.claim_next(call)


@router.post(
    "/corrections/{correction_id}/claim",
    dependencies=[needs(Right.CORRECT)],
    responses=problems(404, 409, 422),
)
def claim_one_correction(correction_id: UUID, call: CallDep) -> CorrectionItem:
    """Lease this item; any other item of this person returns to the queue, with its draft kept.

    Errors: CorrectionNotFound (404), NotYours while someone else holds it, NotWaiting, IllegalStatusChange (409).
    """
    return acts.claim(call, correction_id)


@router.post(
    "/corrections/{correction_id}/renew",
    dependencies=[needs(Right.CORRECT)],
    responses=problems(404, 409, 422),
)
def renew_correction(correction_id: UUID, call: CallDep) -> Correction:
    """Hold a claimed item for another 30 minutes from now. Errors: CorrectionNotFound (404), NotYours (409)."""
    return acts.renew(call, correction_id)


@router.post(
    "/corrections/{correction_id}/leave",
    status_code=204,
    dependencies=[needs(Right.CORRECT)],
    responses=problems(404, 409, 422),
)
def leave_correction(correction_id: UUID, call: CallDep) -> None:
    """Stop looking at a claimed item: without a draft of it, its lease ends in two minutes. Renewing it within them
    keeps it; an item that this person does not hold stays as it is. Errors: CorrectionNotFound (404)."""
    acts.leave(call, correction_id)


@router.post(
    "/corrections/{correction_id}/release",
    dependencies=[needs(Right.CORRECT)],
    responses=problems(404, 409, 422),
)
def release_correction(correction_id: UUID, call: CallDep) -> Correction:
    """Give a claimed item back to the queue; a draft is kept. Errors: CorrectionNotFound (404), NotYours (409)."""
    return acts.release(call, correction_id)


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
def save_draft(correction_id: UUID, body: DraftSave, call: PlainCallDep) -> DraftSaved:
    """Save this person's draft of an item that they hold, or held when they began.

    `version` is that of the draft it was edited from, 0 for the first; saving the same text again changes nothing.

    Errors: CorrectionNotFound (404), DraftChanged when another version was saved since, DraftNotTaken (409).
    """
    return acts.save_draft(call, correction_id, body)


@router.delete(
    "/corrections/{correction_id}/draft",
    status_code=204,
    dependencies=[needs(Right.CORRECT)],
    responses=problems(404, 422),
)
def discard_draft(correction_id: UUID, call: PlainCallDep) -> None:
    """Throw this person's draft away, if there is one. Errors: CorrectionNotFound (404)."""
    acts.discard_draft(call, correction_id)


@router.post(
    "/corrections/{correction_id}/remarks",
    dependencies=[needs(Right.CORRECT)],
    responses=problems(404, 409, 413, 415, 422),
)
def add_remark(correction_id: UUID, body: QuotedRemark, call: CallDep, app_state: AppStateDep) -> DraftSaved:
    """Add a remark on a part of the answer to this person's draft, placed by the words that it quotes.

    The remark lies on whole tokens around the first occurrence of `quote`. Without a draft one begins, with the answer
    as it is.

    Errors: CorrectionNotFound (404), DraftNotTaken (409), QuoteNotFound, TooManyRemarks, TokensUnknown while the policy
    server cannot say where the answer's tokens are (422).
    """
    return acts.add_remark(call, app_state.policy, correction_id, body)


@router.post(
    "/corrections/{correction_id}/submit",
    dependencies=[needs(Right.CORRECT)],
    responses=problems(404, 409, 413, 415, 422),
)
def submit_correction(correction_id: UUID, body: CorrectionSubmit, call: CallDep) -> CorrectionOutcome:
    """Submit the answer as it should be (`corrected`, with the full text), or say that it is `fine`.

    The correction, the human expert's answer and the lesson it opens are stored together, and the draft goes. With
    `draft_version` a draft that was saved since is not thrown away. The trainer may have the lesson at once, or after
    `hold_seconds`.

    Errors: CorrectionNotFound (404), NotYours, NotWaiting, IllegalStatusChange, DraftChanged (409), NothingChanged
    (422).
    """
    return acts.submit(call, correction_id, body)


@router.post(
    "/corrections/{correction_id}/skip",
    dependencies=[needs(Right.CORRECT)],
    responses=problems(404, 409, 413, 415, 422),
)
def skip_correction(correction_id: UUID, body: CorrectionSkip, call: CallDep) -> CorrectionOutcome:
    """Leave a claimed item to someone else. Errors: CorrectionNotFound (404), NotYours, IllegalStatusChange (409)."""
    return acts.skip(call, correction_id, body)


@router.post(
    "/corrections/{correction_id}/undo",
    dependencies=[needs(Right.CORRECT)],
    responses=problems(404, 409, 422),
)
def undo_correction(correction_id: UUID, call: CallDep) -> CorrectionItem:
    """Undo this person's submission or skip: the item is theirs again, with their text as its draft.

    A submission can be undone for ten minutes and until a trainer has it; its answer and unused lesson are withdrawn.

    Errors: CorrectionNotFound (404), NotYours, TooLateToUndo naming the update that has it, NotWaiting (409).
    """
    return acts.take_back(call, correction_id)


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
    """One item, the updates that used it, and the effect of each. Errors: CorrectionNotFound (404)."""
    with store.reading() as session:
        return desk.outcome(session, corrections.get(session, correction_id))
