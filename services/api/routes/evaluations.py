"""Evaluations: a policy version measured on a split."""

from uuid import UUID

from services.acts import evaluations as acts
from services.api.auth import needs
from services.api.calls import CallDep
from services.api.deps import PagingDep, SettingsDep, StoreDep
from services.api.routes.common import build_router, problems
from services.contracts.base import Page
from services.contracts.evaluations import Evaluation, EvaluationCreate, EvaluationDetail
from services.contracts.persons import Right
from services.store.loop import evaluations, lineages
from services.store.views import browse, versions

router = build_router("evaluations")


@router.post(
    "/evaluations", status_code=201, dependencies=[needs(Right.OPERATE)], responses=problems(404, 409, 413, 415, 422)
)
def add_evaluation(body: EvaluationCreate, call: CallDep) -> Evaluation:
    """Measure a policy version (the serving one by default) on validation or held-out tasks, at several temperatures.

    The answers are drawn and judged in the background; `GET /v1/evaluations/{id}` shows how far it is.

    Errors: PolicyVersionNotFound (404), NothingToEvaluate (422).
    """
    return acts.start(call, body)


@router.get("/evaluations", dependencies=[needs(Right.READ)], responses=problems(422))
def list_evaluations(store: StoreDep, settings: SettingsDep, paging: PagingDep) -> Page[Evaluation]:
    """Evaluations and how far they are, newest first. Errors: BadCursor (422)."""
    with store.reading() as session:
        lineage = lineages.get(session, settings.lineage)
        return browse.list_evaluations(session, lineage.id, cursor=paging.cursor, limit=paging.limit)


@router.get("/evaluations/{evaluation_id}", dependencies=[needs(Right.READ)], responses=problems(404))
def get_evaluation(evaluation_id: UUID, store: StoreDep) -> EvaluationDetail:
    """One evaluation with its results by task and temperature. Errors: EvaluationNotFound (404)."""
    with store.reading() as session:
        return versions.detail(session, evaluations.get(session, evaluation_id))
