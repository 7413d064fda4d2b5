"""Dead letters: what failed as often as it may, and buttons to try again."""

from typing import Annotated
from uuid import UUID

from fastapi import Query
from starlette.responses import Response

from services.api.deps import SettingsDep, StoreDep
from services.contracts.persons import Right
from services.jobs import dispatch
from services.store.core import audit
from services.store.loop import consultations, dead_letters, lineages
from services.store.loop.dead_letters import MAX_AT_ONCE
from services.store.views import under_way
from services.web.forms import build_pages
from services.web.lists import RowsDep
from services.web.visitors import VisitorDep, go_to, needs, page

router = build_pages()


@router.get("/dead", dependencies=[needs(Right.READ)])
def show_dead(
    visitor: VisitorDep,
    store: StoreDep,
    settings: SettingsDep,
    paging: RowsDep,
    draws: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """Dead questions from `cursor` on and dead draws from `draws` on, newest first. Errors: BadCursor (422)."""
    with store.reading() as session:
        lineage = lineages.get(session, settings.lineage)
        questions = dead_letters.list_consultations(
            session, lineage.id, visitor.caller.rights, cursor=paging.cursor, limit=paging.limit
        )
        found = dead_letters.list_draws(session, lineage.id, cursor=draws, limit=paging.limit)
        queues = under_way.queues(session, lineage.id)
    return page(visitor, "dead/list.html", questions=questions, draws=found, queues=queues)


@router.post("/dead/questions/{consultation_id}/requeue", dependencies=[needs(Right.OPERATE)])
def requeue_question(consultation_id: UUID, visitor: VisitorDep, store: StoreDep) -> Response:
    """Ask a dead question once more. Errors: ConsultationNotFound (404), IllegalStatusChange (409)."""
    with store.transaction() as session:
        consultations.requeue(session, consultation_id)
        audit.record(session, visitor.actor, "consultations.requeue", "consultation", consultation_id)
    dispatch.consultations([consultation_id])
    return go_to(visitor, "/dead", notice="The consultation will be retried.")


@router.post("/dead/questions/requeue", dependencies=[needs(Right.OPERATE)])
def requeue_questions(visitor: VisitorDep, store: StoreDep, settings: SettingsDep) -> Response:
    """Ask every dead question once more, the oldest first."""
    with store.transaction() as session:
        lineage = lineages.get(session, settings.lineage)
        asked = dead_letters.requeue_consultations(session, lineage.id)
        audit.record(
            session, visitor.actor, "consultations.requeue_all", "lineage", lineage.id, {"questions": len(asked)}
        )
    dispatch.consultations(asked)
    return go_to(visitor, "/dead", notice=_tell("consultation", len(asked)))


@router.post("/dead/draws/{draw_id}/requeue", dependencies=[needs(Right.OPERATE)])
def requeue_draw(draw_id: UUID, visitor: VisitorDep, store: StoreDep) -> Response:
    """Try a dead draw once more. Errors: DrawNotFound (404), IllegalStatusChange (409)."""
    with store.transaction() as session:
        dead_letters.requeue_draw(session, draw_id)
        audit.record(session, visitor.actor, "draws.requeue", "rollout_group", draw_id)
    return go_to(visitor, "/dead", notice="The prompt will be retried.")


@router.post("/dead/draws/requeue", dependencies=[needs(Right.OPERATE)])
def requeue_draws(visitor: VisitorDep, store: StoreDep, settings: SettingsDep) -> Response:
    """Try every dead draw once more, the oldest first."""
    with store.transaction() as session:
        lineage = lineages.get(session, settings.lineage)
        num = dead_letters.requeue_draws(session, lineage.id)
        audit.record(session, visitor.actor, "draws.requeue_all", "lineage", lineage.id, {"draws": num})
    return go_to(visitor, "/dead", notice=_tell("prompt", num))


def _tell(noun: str, num: int) -> str:
    more = "; press again for the rest" if num == MAX_AT_ONCE else ""
    return f"{num} {noun}{'' if num == 1 else 's'} will be retried{more}."
