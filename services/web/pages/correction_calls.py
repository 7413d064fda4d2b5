"""Requests of the correction page's own script: JSON in and out, refusals as problem documents."""

from uuid import UUID

from fastapi import APIRouter, Depends

from services.acts import corrections as acts
from services.api.deps import StoreDep
from services.api.limits import StrictRoute
from services.contracts.corrections import Correction, Draft, DraftSave, DraftSaved
from services.contracts.persons import Right
from services.store.corrections import corrections, drafts
from services.web.visitors import CallDep, VisitorDep, check_form, needs

router = APIRouter(include_in_schema=False, route_class=StrictRoute, dependencies=[Depends(check_form)])


@router.get("/correct/{correction_id}/draft", dependencies=[needs(Right.CORRECT)])
def get_item_draft(correction_id: UUID, visitor: VisitorDep, store: StoreDep) -> Draft:
    """The saved draft. Errors: CorrectionNotFound, DraftNotFound (404)."""
    with store.reading() as session:
        return drafts.get(session, corrections.get(session, correction_id).id, visitor.id)


@router.post("/correct/{correction_id}/draft", dependencies=[needs(Right.CORRECT)])
def save_item_draft(correction_id: UUID, body: DraftSave, call: CallDep) -> DraftSaved:
    """Save the draft. Errors: CorrectionNotFound (404), DraftChanged, DraftNotTaken (409)."""
    return acts.save_draft(call, correction_id, body)


@router.post("/correct/{correction_id}/renew", dependencies=[needs(Right.CORRECT)])
def renew_item(correction_id: UUID, call: CallDep) -> Correction:
    """Renew the lease: the page is still open. Errors: CorrectionNotFound (404), NotYours (409)."""
    return acts.renew(call, correction_id)


@router.post("/correct/{correction_id}/leave", status_code=204, dependencies=[needs(Right.CORRECT)])
def leave_item(correction_id: UUID, call: CallDep) -> None:
    """The page was closed; without a draft the item soon returns to the queue. Errors: CorrectionNotFound (404)."""
    acts.leave(call, correction_id)
