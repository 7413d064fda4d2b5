"""Login sessions: the browsers a person is logged in from, and ending them."""

from uuid import UUID

from services.acts import grants
from services.acts import sessions as acts
from services.api.auth import CallerDep
from services.api.calls import CallDep
from services.api.deps import PagingDep, StoreDep
from services.api.routes.common import build_router, problems
from services.contracts.base import Page
from services.contracts.persons import LoginSession, SessionsEnded
from services.store.people import logins, persons

router = build_router("sessions")


@router.get("/sessions", responses=problems(404, 422))
def list_sessions(
    caller: CallerDep, store: StoreDep, paging: PagingDep, person_id: UUID | None = None
) -> Page[LoginSession]:
    """Your own live login sessions, or for an owner those of another person; newest first.

    Errors: NotAllowed (403), PersonNotFound (404), BadCursor (422).
    """
    whose = person_id or caller.id
    grants.check_person(caller, whose)
    with store.reading() as session:
        persons.get(session, whose)
        return logins.list_live(session, whose, cursor=paging.cursor, limit=paging.limit)


@router.post("/sessions/{session_id}/end", responses=problems(404, 409))
def end_session(session_id: UUID, call: CallDep) -> SessionsEnded:
    """End one of your own login sessions. The key must carry all rights of its person's role.

    Errors: NotAllowed (403), SessionNotFound (404).
    """
    return acts.end(call, session_id)
