"""Corrections: the human queue. Claim an item, submit what the answer should have been, see the update that used it."""

from typing import Annotated
from uuid import UUID

from fastapi import Query
from sqlalchemy.orm import Session

from services.api.auth import CallerDep, Right, needs
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
)
from services.errors import NotFound
from services.jobs import dispatch
from services.store import browse, consultations, corrections, lineages

router = build_router("corrections")


class NothingToCorrect(NotFound):
    """The queue holds no item for this person."""

    hint = "Come back later, or ask for one with POST /v1/corrections {rollout_id}."


@router.post(
    "/corrections", status_code=201, dependencies=[needs(Right.CORRECT)], responses=problems(404, 409, 413, 415, 422)
)
def ask_for_correction(body: CorrectionCreate, store: StoreDep, once: OnceDep) -> Correction:
    """Put a rollout of a train task in the human queue, ahead of the queue's own choice.

    Asking twice finds the item that is there.

    Errors: RolloutNotFound (404), NotCorrectable for a task that is not for training (422), NoHumanExpert (409).
    """
    with store.transaction() as session:
        asked = once(session, lambda: corrections.view(corrections.ask_for(session, body.rollout_id)))
        opened = consultations.pending_of(session, [asked.rollout_id])
    dispatch.consultations(opened)
    return asked


@router.post("/corrections/claim", dependencies=[needs(Right.CORRECT)], responses=problems(404, 409))
def claim_correction(caller: CallerDep, store: StoreDep, settings: SettingsDep, once: OnceDep) -> CorrectionItem:
    """Lease the next item to this person for 30 minutes, with the prompt and the rollout's text.

    Two people never hold the same item; who holds one gets it again; an item whose lease ran out goes to the next.

    Errors: NothingToCorrect (404).
    """
    with store.transaction() as session:
        lineage = lineages.get(session, settings.lineage)
        return once(session, lambda: _claim(session, lineage.id, caller.id))


def _claim(session: Session, lineage_id: UUID, person_id: UUID) -> CorrectionItem:
    row = corrections.claim(session, lineage_id, person_id)
    if row is None:
        raise NothingToCorrect("there is nothing to correct at the moment")
    return corrections.item(session, row)


@router.post(
    "/corrections/{correction_id}/submit",
    dependencies=[needs(Right.CORRECT)],
    responses=problems(404, 409, 413, 415, 422),
)
def submit_correction(
    correction_id: UUID, body: CorrectionSubmit, caller: CallerDep, store: StoreDep, once: OnceDep
) -> CorrectionOutcome:
    """Submit the answer as it should be (`corrected`, with the full text), or say that it is `fine`.

    The correction, the human expert's answer and the lesson it opens are stored together.

    Errors: CorrectionNotFound (404), NotYours, NotWaiting, IllegalStatusChange (409).
    """
    with store.transaction() as session:
        done = once(session, lambda: _submit(session, correction_id, caller.id, body))
        opened = consultations.pending_of(session, [done.rollout_id])
    dispatch.consultations(opened)
    dispatch.lessons()
    return done


def _submit(session: Session, correction_id: UUID, person_id: UUID, body: CorrectionSubmit) -> CorrectionOutcome:
    return corrections.outcome(session, corrections.submit(session, correction_id, person_id, body))


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
        return once(session, lambda: _skip(session, correction_id, caller.id, body.reason))


def _skip(session: Session, correction_id: UUID, person_id: UUID, reason: str) -> CorrectionOutcome:
    return corrections.outcome(session, corrections.skip(session, correction_id, person_id, reason))


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
    with store.transaction() as session:
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
    """One item, with the numbers of the updates that used it. Errors: CorrectionNotFound (404)."""
    with store.transaction() as session:
        return corrections.outcome(session, corrections.get(session, correction_id))
