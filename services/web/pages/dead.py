"""Dead letters: consultations and draws without attempts left, and buttons to retry them."""

from typing import Annotated
from uuid import UUID

from fastapi import Query
from starlette.responses import Response

from services.acts import consultations, draws
from services.api.deps import SettingsDep, StoreDep
from services.contracts.consultations import ConsultationStatus, Requeued
from services.contracts.persons import Right
from services.contracts.rollouts import GroupStatus
from services.store.loop import lineages
from services.store.views import browse, under_way
from services.web.forms import build_pages
from services.web.lists import RowsDep
from services.web.visitors import CallDep, VisitorDep, go_to, needs, page

router = build_pages()


@router.get("/dead", dependencies=[needs(Right.READ)])
def show_dead(
    visitor: VisitorDep,
    store: StoreDep,
    settings: SettingsDep,
    paging: RowsDep,
    older_draws: Annotated[str | None, Query(alias="draws", max_length=64)] = None,
) -> Response:
    """Dead consultations from `cursor` on and dead draws from `draws` on, newest first. Errors: BadCursor (422)."""
    with store.reading() as session:
        lineage = lineages.get(session, settings.lineage)
        asked = browse.list_consultations(
            session,
            lineage.id,
            visitor.caller.rights,
            rollout_id=None,
            expert_id=None,
            status=ConsultationStatus.DEAD,
            cursor=paging.cursor,
            limit=paging.limit,
        )
        drawn = browse.list_draws(session, lineage.id, status=GroupStatus.DEAD, cursor=older_draws, limit=paging.limit)
        queues = under_way.queues(session, lineage.id)
    return page(visitor, "dead/list.html", consultations=asked, draws=drawn, queues=queues)


@router.post("/dead/consultations/{consultation_id}/requeue", dependencies=[needs(Right.OPERATE)])
def requeue_consultation(consultation_id: UUID, visitor: VisitorDep, call: CallDep) -> Response:
    """Retry a dead consultation. Errors: ConsultationNotFound (404), IllegalStatusChange (409)."""
    consultations.requeue(call, consultation_id)
    return go_to(visitor, "/dead", notice="The consultation will be retried.")


@router.post("/dead/consultations/requeue", dependencies=[needs(Right.OPERATE)])
def requeue_consultations(visitor: VisitorDep, call: CallDep) -> Response:
    """Retry all dead consultations, oldest first."""
    return go_to(visitor, "/dead", notice=_tell("consultation", consultations.requeue_all(call)))


@router.post("/dead/draws/{draw_id}/requeue", dependencies=[needs(Right.OPERATE)])
def requeue_draw(draw_id: UUID, visitor: VisitorDep, call: CallDep) -> Response:
    """Retry a dead draw. Errors: DrawNotFound (404), IllegalStatusChange (409)."""
    draws.requeue(call, draw_id)
    return go_to(visitor, "/dead", notice="The prompt will be retried.")


@router.post("/dead/draws/requeue", dependencies=[needs(Right.OPERATE)])
def requeue_draws(visitor: VisitorDep, call: CallDep) -> Response:
    """Retry all dead draws, oldest first."""
    return go_to(visitor, "/dead", notice=_tell("prompt", draws.requeue_all(call)))


def _tell(noun: str, requeued: Requeued) -> str:
    num = requeued.num_requeued
    more = "; press again for the rest" if requeued.has_more else ""
    return f"{num} {noun}{'' if num == 1 else 's'} will be retried{more}."
