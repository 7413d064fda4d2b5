"""Draws: prompts that the policy is to answer, and trying dead ones again."""

from uuid import UUID

from services.acts import draws as acts
from services.api.auth import needs
from services.api.calls import CallDep
from services.api.deps import PagingDep, SettingsDep, StoreDep
from services.api.routes.common import build_router, problems
from services.contracts.base import Page
from services.contracts.consultations import Requeued
from services.contracts.draws import Draw
from services.contracts.persons import Right
from services.contracts.rollouts import GroupStatus
from services.store.loop import lineages
from services.store.views import browse

router = build_router("draws")


@router.get("/draws", dependencies=[needs(Right.READ)], responses=problems(422))
def list_draws(
    store: StoreDep, settings: SettingsDep, paging: PagingDep, status: GroupStatus | None = None
) -> Page[Draw]:
    """Draws, newest first: one prompt to be answered `size` times. Errors: BadCursor (422)."""
    with store.reading() as session:
        lineage = lineages.get(session, settings.lineage)
        return browse.list_draws(session, lineage.id, status=status, cursor=paging.cursor, limit=paging.limit)


@router.post("/draws/requeue", dependencies=[needs(Right.OPERATE)], responses=problems(409))
def requeue_draws(call: CallDep) -> Requeued:
    """Try dead draws again, the oldest first, up to 1,000 at once; `has_more` says that there may be others."""
    return acts.requeue_all(call)


@router.post("/draws/{draw_id}/requeue", dependencies=[needs(Right.OPERATE)], responses=problems(404, 409))
def requeue_draw(draw_id: UUID, call: CallDep) -> Draw:
    """Try a dead draw again. Errors: DrawNotFound (404), IllegalStatusChange (409)."""
    return acts.requeue(call, draw_id)
