"""The audit trail, for operators and owners."""

from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated
from urllib.parse import urlencode
from uuid import UUID

from fastapi import Query
from starlette.responses import Response

from services.api.deps import StoreDep
from services.contracts.persons import Right
from services.store.core import audit
from services.store.people import persons
from services.web.forms import build_pages
from services.web.lists import RowsDep
from services.web.visitors import VisitorDep, needs, page

router = build_pages()

NOBODY = UUID(int=0)

Word = Annotated[str, Query(max_length=200)]


@router.get("/audit", dependencies=[needs(Right.OPERATE)])
def show_audit(
    visitor: VisitorDep,
    store: StoreDep,
    paging: RowsDep,
    person: Word = "",
    action: Word = "",
    noun_id: Word = "",
    until: Word = "",
) -> Response:
    """The entries, newest first; filtered by person, action, object and last day. Errors: BadCursor (422)."""
    before = _end_of(until)
    with store.reading() as session:
        row = persons.find(session, person) if person else None
        wanted = audit.Filter(
            person_id=row.id if row is not None else NOBODY if person else None,
            action=action or None,
            noun_id=noun_id or None,
            before=before,
        )
        found = audit.read(session, wanted, cursor=paging.cursor, limit=paging.limit)
        actions = audit.list_actions(session)
    given = {"person": person, "action": action, "noun_id": noun_id, "until": until if before else ""}
    query = urlencode({name: value for name, value in given.items() if value})
    return page(visitor, "audit.html", found=found, given=given, query=query, actions=actions)


def _end_of(day: str) -> datetime | None:
    """The end of a day as a date field sends it, in UTC; None for anything else."""
    try:
        return datetime.combine(date.fromisoformat(day) + timedelta(days=1), time(), UTC)
    except (ValueError, OverflowError):
        return None
