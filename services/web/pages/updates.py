"""Updates: the ledger of optimizer steps, each with its lessons and terms."""

from starlette.responses import Response

from services.api.deps import SettingsDep, StoreDep
from services.api.routes.updates import Number
from services.contracts.persons import Right
from services.contracts.updates import UpdateStatus
from services.store.ledger import updates
from services.store.loop import lineages
from services.store.views import browse
from services.web.forms import build_pages
from services.web.lists import Chosen, RowsDep, list_path
from services.web.presenters.ledger import weigh_sources
from services.web.visitors import VisitorDep, needs, page

router = build_pages()


@router.get("/updates", dependencies=[needs(Right.READ)])
def show_updates(
    visitor: VisitorDep,
    store: StoreDep,
    settings: SettingsDep,
    paging: RowsDep,
    status: Chosen[UpdateStatus] = None,
) -> Response:
    """Updates, newest first. Errors: LineageNotFound (404), BadCursor (422)."""
    with store.reading() as session:
        lineage = lineages.get(session, settings.lineage)
        found = browse.list_updates(session, lineage.id, status=status, cursor=paging.cursor, limit=paging.limit)
    return page(
        visitor,
        "updates/list.html",
        updates=found,
        path=list_path("/updates", status=status),
        statuses=[*UpdateStatus],
        chosen=status,
    )


@router.get("/updates/{number}", dependencies=[needs(Right.READ)])
def show_update(number: Number, visitor: VisitorDep, store: StoreDep, settings: SettingsDep) -> Response:
    """One update: its measures, its lessons, and the contribution of each term. Errors: UpdateNotFound (404)."""
    with store.reading() as session:
        lineage = lineages.get(session, settings.lineage)
        update = updates.detail(session, updates.get(session, lineage.id, number))
        last = updates.last_number(session, lineage.id)
    return page(visitor, "updates/one.html", update=update, last=last, sources=weigh_sources(update.lessons))
