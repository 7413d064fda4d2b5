"""Updates: the ledger of optimizer steps, each with everything it used."""

from typing import Annotated

from fastapi import Path

from services.api.auth import needs
from services.api.deps import PagingDep, SettingsDep, StoreDep
from services.api.routes.common import build_router, problems
from services.contracts.base import Page
from services.contracts.persons import Right
from services.contracts.updates import Update, UpdateDetail, UpdateStatus
from services.store.ledger import updates
from services.store.loop import lineages
from services.store.views import browse

router = build_router("updates")

Number = Annotated[int, Path(ge=1, lt=2**31, description="The update's number in its lineage.")]


@router.get("/updates", dependencies=[needs(Right.READ)], responses=problems(422))
def list_updates(
    store: StoreDep, settings: SettingsDep, paging: PagingDep, status: UpdateStatus | None = None
) -> Page[Update]:
    """Updates with their metrics, newest first. Errors: BadCursor (422)."""
    with store.reading() as session:
        lineage = lineages.get(session, settings.lineage)
        return browse.list_updates(session, lineage.id, status=status, cursor=paging.cursor, limit=paging.limit)


@router.get("/updates/{number}", dependencies=[needs(Right.READ)], responses=problems(404, 422))
def get_update(number: Number, store: StoreDep, settings: SettingsDep) -> UpdateDetail:
    """One update: every lesson it used, and each term with its answers, weight, share and context's hash.

    Errors: UpdateNotFound (404).
    """
    with store.reading() as session:
        lineage = lineages.get(session, settings.lineage)
        return updates.detail(session, updates.get(session, lineage.id, number))


router.add_api_route(
    "/updates/{number}/explain",
    get_update,
    methods=["GET"],
    dependencies=[needs(Right.READ)],
    responses=problems(404, 422),
    name="explain_update",
    summary="Explain Update",
)
