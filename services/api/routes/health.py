"""Whether this process can do its work."""

from fastapi import APIRouter

from services.api.deps import HouseDep
from services.api.routes.common import problems
from services.contracts.base import Contract
from services.errors import ServiceUnavailable
from services.store import migrate

router = APIRouter(tags=["health"], responses=problems(503))


class Healthy(Contract):
    """The database answers and is at the schema this code expects."""

    status: str = "ok"
    schema_revision: str


class NotMigrated(ServiceUnavailable):
    """The database is at another schema than this code expects."""

    title = "The database is not migrated"
    hint = "Run `make migrate`; `preceptor up` does it by itself."


@router.get("/healthz")
def get_health(house: HouseDep) -> Healthy:
    """Whether the database answers and is migrated; needs no key. Errors: StoreUnavailable, NotMigrated (503)."""
    with house.store.transaction() as session:
        found = migrate.find_revision(session)
    if found != house.schema:
        raise NotMigrated(f"the database is at {found or 'no schema'}, this api needs {house.schema}")
    return Healthy(schema_revision=found)
