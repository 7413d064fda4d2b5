"""The audit trail: person, action, object, time and address."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import Query
from pydantic import AwareDatetime, BeforeValidator

from services.api.auth import needs
from services.api.deps import PagingDep, StoreDep
from services.api.routes.common import build_router, problems
from services.contracts.audit import AuditEntry
from services.contracts.base import Page
from services.contracts.persons import Right
from services.store.core import audit

router = build_router("audit")

Word = Annotated[str | None, Query(max_length=100)]


def _refuse_number(value: object) -> object:
    if isinstance(value, str) and value and ":" not in value:
        raise ValueError("give date and time in RFC 3339 format with a time zone")
    return value


Moment = Annotated[
    AwareDatetime | None, BeforeValidator(_refuse_number), Query(description="Only entries before this time.")
]


@router.get("/audit", dependencies=[needs(Right.OPERATE)], responses=problems(422))
def list_audit(
    store: StoreDep,
    paging: PagingDep,
    person_id: UUID | None = None,
    action: Word = None,
    noun_id: Word = None,
    before: Moment = None,
) -> Page[AuditEntry]:
    """Everything that changed state, newest first: by whom, with which action (`experts.pause`), to which noun.

    Errors: BadCursor (422).
    """
    moment: datetime | None = before
    wanted = audit.Filter(person_id=person_id, action=action, noun_id=noun_id, before=moment)
    with store.reading() as session:
        return audit.read(session, wanted, cursor=paging.cursor, limit=paging.limit)
