"""Evaluations: a policy version measured on a split, and the student-teacher gap on train tasks."""

from uuid import UUID

from sqlalchemy.orm import Session

from services.api.auth import needs
from services.api.deps import PagingDep, SettingsDep, StoreDep
from services.api.once import OnceDep
from services.api.routes.common import build_router, problems
from services.contracts.base import Page
from services.contracts.evaluations import Evaluation, EvaluationCreate, EvaluationDetail, GapProbeCreate
from services.contracts.persons import Right
from services.jobs.maintain import train_sampling
from services.runtime.settings import Settings
from services.store.loop import evaluations, lineages
from services.store.views import browse

router = build_router("evaluations")


@router.post(
    "/evaluations", status_code=201, dependencies=[needs(Right.OPERATE)], responses=problems(404, 409, 413, 415, 422)
)
def add_evaluation(body: EvaluationCreate, store: StoreDep, settings: SettingsDep, once: OnceDep) -> Evaluation:
    """Measure a policy version (the serving one by default) on validation or held-out tasks.

    The answers are drawn and judged in the background; `GET /v1/evaluations/{id}` shows how far it is.

    Errors: PolicyVersionNotFound (404), NothingToEvaluate (422).
    """
    with store.transaction() as session:
        return once(session, lambda: _plan_evaluation(session, settings, body))


@router.post(
    "/gap-probes", status_code=201, dependencies=[needs(Right.OPERATE)], responses=problems(409, 413, 415, 422)
)
def add_gap_probe(body: GapProbeCreate, store: StoreDep, settings: SettingsDep, once: OnceDep) -> Evaluation:
    """Measure the student-teacher gap: train tasks answered plainly, and again with their reference shown first.

    The result is an evaluation whose `teacher_results` are those of the second half.

    Errors: NothingToEvaluate (422).
    """
    with store.transaction() as session:
        return once(session, lambda: _plan_gap_probe(session, settings, body))


def _plan_evaluation(session: Session, settings: Settings, body: EvaluationCreate) -> Evaluation:
    lineage = lineages.get(session, settings.lineage)
    row, _ = evaluations.create(session, lineage.id, body, train_sampling(settings))
    return evaluations.view(session, row)


def _plan_gap_probe(session: Session, settings: Settings, body: GapProbeCreate) -> Evaluation:
    lineage = lineages.get(session, settings.lineage)
    row, _ = evaluations.create_gap_probe(
        session,
        lineage.id,
        num_tasks=body.num_tasks,
        num_samples=body.num_samples,
        seed=body.seed,
        sampling=train_sampling(settings),
    )
    return evaluations.view(session, row)


@router.get("/evaluations", dependencies=[needs(Right.READ)], responses=problems(422))
def list_evaluations(store: StoreDep, settings: SettingsDep, paging: PagingDep) -> Page[Evaluation]:
    """Evaluations and how far they are, newest first. Errors: BadCursor (422)."""
    with store.reading() as session:
        lineage = lineages.get(session, settings.lineage)
        return browse.list_evaluations(session, lineage.id, cursor=paging.cursor, limit=paging.limit)


@router.get("/evaluations/{evaluation_id}", dependencies=[needs(Right.READ)], responses=problems(404))
def get_evaluation(evaluation_id: UUID, store: StoreDep) -> EvaluationDetail:
    """One evaluation with its results by task. Errors: EvaluationNotFound (404)."""
    with store.reading() as session:
        row = evaluations.get(session, evaluation_id)
        return EvaluationDetail(
            **evaluations.view(session, row).model_dump(),
            results=evaluations.results(session, row.id),
            teacher_results=evaluations.results(session, row.id, solution_shown=True),
        )
