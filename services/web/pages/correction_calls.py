"""What the correction page's own script sends: JSON in and out, refusals as problem documents.

Drafts, renewals and leaving are not deeds and leave no trace in the audit trail; every decision does.
"""

from uuid import UUID

from fastapi import APIRouter, Depends

from services.api.deps import StoreDep
from services.api.limits import StrictRoute
from services.contracts.corrections import Correction, Draft, DraftSave, DraftSaved
from services.contracts.persons import Right
from services.store.corrections import corrections, drafts
from services.web.visitors import VisitorDep, check_form, needs

router = APIRouter(include_in_schema=False, route_class=StrictRoute, dependencies=[Depends(check_form)])


@router.get("/correct/{correction_id}/draft", dependencies=[needs(Right.CORRECT)])
def get_item_draft(correction_id: UUID, visitor: VisitorDep, store: StoreDep) -> Draft:
    """The draft as it is kept. Errors: CorrectionNotFound, DraftNotFound (404)."""
    with store.reading() as session:
        return drafts.get(session, corrections.get(session, correction_id).id, visitor.id)


@router.post("/correct/{correction_id}/draft", dependencies=[needs(Right.CORRECT)])
def save_item_draft(correction_id: UUID, body: DraftSave, visitor: VisitorDep, store: StoreDep) -> DraftSaved:
    """Keep the draft. Errors: CorrectionNotFound (404), DraftChanged, DraftNotTaken (409)."""
    with store.transaction() as session:
        return drafts.save(session, corrections.lock(session, correction_id), visitor.id, body)


@router.post("/correct/{correction_id}/renew", dependencies=[needs(Right.CORRECT)])
def renew_item(correction_id: UUID, visitor: VisitorDep, store: StoreDep) -> Correction:
    """The page is still open. Errors: CorrectionNotFound (404), NotYours (409)."""
    with store.transaction() as session:
        return corrections.view(corrections.renew(session, correction_id, visitor.id))


@router.post("/correct/{correction_id}/leave", status_code=204, dependencies=[needs(Right.CORRECT)])
def leave_item(correction_id: UUID, visitor: VisitorDep, store: StoreDep) -> None:
    """The page was closed; with nothing written the item is soon for others."""
    with store.transaction() as session:
        corrections.leave(session, correction_id, visitor.id)
