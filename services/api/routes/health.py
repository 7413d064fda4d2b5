"""Whether this process can do its work."""

from typing import Final

import anyio
from fastapi import APIRouter

from services.api.deps import AppState, AppStateDep
from services.api.routes.common import problems
from services.contracts.base import Contract
from services.runtime.errors import ServiceUnavailable
from services.store.core import migrate
from services.store.core.transaction import StoreUnavailable

SECONDS: Final = 3.0
"""The longest a health check may take: callers wait five seconds."""

router = APIRouter(tags=["health"], responses=problems(500, 503))


class Healthy(Contract):
    """The database answers and is at the schema this code expects."""

    status: str = "ok"
    schema_revision: str


class NotMigrated(ServiceUnavailable):
    """The database is at another schema than this code expects."""

    title = "The database is not migrated"
    hint = "Run `make migrate`; `preceptor up` does it by itself."


@router.get("/healthz")
async def get_health(app_state: AppStateDep) -> Healthy:
    """Whether the database answers and is migrated; needs no key. It answers within seconds in any case.

    Errors: StoreUnavailable, NotMigrated (503).
    """
    try:
        with anyio.fail_after(SECONDS):  # in threads of its own: other requests may hold all the others
            found = await anyio.to_thread.run_sync(
                _find_revision, app_state, abandon_on_cancel=True, limiter=app_state.health_threads
            )
    except TimeoutError:
        raise StoreUnavailable(f"the database has not answered within {SECONDS:g} s") from None
    if found != app_state.schema:
        raise NotMigrated(f"the database is at {found or 'no schema'}, this api needs {app_state.schema}")
    return Healthy(schema_revision=found)


def _find_revision(app_state: AppState) -> str | None:
    with app_state.store.reading() as session:
        return migrate.find_revision(session)
