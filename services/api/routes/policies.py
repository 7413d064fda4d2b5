"""Policy versions: published weights, the gate they passed or failed, and which one serves."""

from typing import Annotated

from fastapi import Path

from services.api.auth import needs
from services.api.deps import PagingDep, SettingsDep, StoreDep
from services.api.routes.common import build_router, problems
from services.contracts.base import Page
from services.contracts.persons import Right
from services.contracts.policies import PolicyStatus, PolicyVersion
from services.runtime.errors import NotFound
from services.store.ledger import policies
from services.store.loop import lineages
from services.store.views import browse

router = build_router("policies")


class NothingServes(NotFound):
    """No version serves at the moment: the last one was withdrawn and no other took its place."""


@router.get("/policies", dependencies=[needs(Right.READ)], responses=problems(422))
def list_policies(
    store: StoreDep, settings: SettingsDep, paging: PagingDep, status: PolicyStatus | None = None
) -> Page[PolicyVersion]:
    """Policy versions with their gate reports, newest first. Errors: BadCursor (422)."""
    with store.reading() as session:
        lineage = lineages.get(session, settings.lineage)
        return browse.list_policies(session, lineage.id, status=status, cursor=paging.cursor, limit=paging.limit)


@router.get("/policies/serving", dependencies=[needs(Right.READ)], responses=problems(404))
def get_serving_policy(store: StoreDep, settings: SettingsDep) -> PolicyVersion:
    """The version that serves. Errors: NothingServes (404)."""
    with store.reading() as session:
        row = policies.serving(session, lineages.get(session, settings.lineage).id)
        if row is None:
            raise NothingServes("no policy version serves")
        return policies.view(row)


@router.get("/policies/{name}", dependencies=[needs(Right.READ)], responses=problems(404))
def get_policy(name: Annotated[str, Path(max_length=200)], store: StoreDep, settings: SettingsDep) -> PolicyVersion:
    """One version by its name. Errors: PolicyVersionNotFound (404)."""
    with store.reading() as session:
        return policies.view(policies.by_name(session, lineages.get(session, settings.lineage).id, name))
