"""Policy versions and evaluations: published versions, their gates, and comparisons."""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import BeforeValidator, Field
from starlette.responses import Response

from services.acts import evaluations as acts
from services.api.deps import SettingsDep, StoreDep
from services.contracts.base import Contract
from services.contracts.evaluations import NUM_VALIDATION_TASKS, TEMPERATURES, Domains, EvaluationCreate
from services.contracts.persons import Right
from services.contracts.policies import PolicyStatus
from services.contracts.rollouts import Purpose
from services.contracts.tasks import Split
from services.runtime.errors import InvalidInput
from services.store.ledger import policies
from services.store.loop import evaluations, lineages, tasks
from services.store.stats import estimates
from services.store.tables.ledger import PolicyVersionRow
from services.store.views import browse, versions
from services.web.forms import as_list, build_pages, form_of
from services.web.lists import Chosen, RowsDep, list_path
from services.web.presenters import evaluated
from services.web.visitors import CallDep, VisitorDep, go_to, needs, page

NUM_VERSIONS = 50  # to compare with, the newest

router = build_pages()


class EvaluationForm(Contract):
    """What to measure; no version: the serving one, no domains: all, no number of tasks: all of the split.

    temperatures: numbers with commas between them.
    """

    split: Literal[Split.VALIDATION, Split.HELDOUT]
    policy_version: str | None = None
    domains: Annotated[Domains, BeforeValidator(as_list)] | None = None
    num_tasks: Annotated[int, Field(ge=1)] | None = None
    num_samples: Annotated[int, Field(ge=1, le=256)]
    temperatures: Annotated[str, Field(pattern=r"^[0-9., ]{1,200}$")] = ",".join(map(str, TEMPERATURES))
    num_validation_tasks: Annotated[int, Field(ge=0, le=10_000)] = NUM_VALIDATION_TASKS
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    def read(self) -> EvaluationCreate:
        """The request. Errors: BadTemperatures (422)."""
        try:
            numbers = [float(part) for part in self.temperatures.split(",")]
            return EvaluationCreate.model_validate(self.model_dump() | {"temperatures": numbers})
        except ValueError as error:
            raise BadTemperatures(f"{self.temperatures!r} are not different temperatures from 0 to 10") from error


class BadTemperatures(InvalidInput):
    """The form's temperatures cannot be read."""

    hint = "Write up to 8 different numbers from 0 to 10 with commas between them, such as 0, 0.5, 1."


@router.get("/policies", dependencies=[needs(Right.READ)])
def show_policies(
    visitor: VisitorDep,
    store: StoreDep,
    settings: SettingsDep,
    paging: RowsDep,
    status: Chosen[PolicyStatus] = None,
) -> Response:
    """Policy versions, newest first. Errors: LineageNotFound (404), BadCursor (422)."""
    with store.reading() as session:
        lineage = lineages.get(session, settings.lineage)
        found = browse.list_policies(session, lineage.id, status=status, cursor=paging.cursor, limit=paging.limit)
        practice = versions.practice(session, lineage.id, {version.name for version in found.items})
    return page(
        visitor,
        "policies/list.html",
        versions=found,
        practice=practice,
        path=list_path("/policies", status=status),
        statuses=[*PolicyStatus],
        chosen=status,
    )


@router.get("/policies/{name}", dependencies=[needs(Right.READ)])
def show_policy(
    name: str, visitor: VisitorDep, store: StoreDep, settings: SettingsDep, compare: Chosen[str] = None
) -> Response:
    """One version: compared with an earlier or a chosen one, its gate, its updates.

    Errors: PolicyVersionNotFound (404).
    """
    with store.reading() as session:
        lineage = lineages.get(session, settings.lineage)
        row = policies.by_name(session, lineage.id, name)
        parent = None if row.parent_id is None else session.get_one(PolicyVersionRow, row.parent_id).name
        practice = versions.practice(session, lineage.id, {row.name}).get(row.name)
        comparisons = versions.compare(session, row, compare)
        own = versions.evaluations_of(session, lineage.id, row.name)
        views = [evaluations.view(session, one) for one in own]
        made_by = versions.updates_of(session, row)
        version = policies.view(row)
        newest = policies.newest(session, lineage.id, before=None, limit=NUM_VERSIONS)
    return page(
        visitor,
        "policies/one.html",
        version=version,
        parent=parent,
        practice=practice,
        comparisons=comparisons,
        evaluations=views,
        updates=made_by,
        max_updates=versions.MAX_UPDATES,
        compared_with=compare,
        others=[other.name for other in newest if other.name != name],
    )


@router.get("/evaluations", dependencies=[needs(Right.READ)])
def show_evaluations(visitor: VisitorDep, store: StoreDep, settings: SettingsDep, paging: RowsDep) -> Response:
    """Evaluations, newest first. Errors: LineageNotFound (404), BadCursor (422)."""
    with store.reading() as session:
        lineage = lineages.get(session, settings.lineage)
        found = browse.list_evaluations(session, lineage.id, cursor=paging.cursor, limit=paging.limit)
        newest = policies.newest(session, lineage.id, before=None, limit=NUM_VERSIONS)
        domains = tasks.find_domains(session, lineage.id, [Split.HELDOUT, Split.VALIDATION])
    return page(
        visitor,
        "evaluations/list.html",
        evaluations=found,
        versions=[version.name for version in newest],
        domains=domains,
        temperatures=", ".join(f"{one:g}" for one in TEMPERATURES),
        num_validation_tasks=NUM_VALIDATION_TASKS,
    )


@router.post("/evaluations", dependencies=[needs(Right.OPERATE)])
def start_evaluation(
    visitor: VisitorDep, call: CallDep, form: Annotated[EvaluationForm, form_of(EvaluationForm)]
) -> Response:
    """Start an evaluation and show its page.

    Errors: PolicyVersionNotFound (404), WeightsDeleted (409), BadTemperatures, NothingToEvaluate (422).
    """
    started = acts.start(call, form.read())
    return go_to(visitor, f"/evaluations/{started.id}", notice="The evaluation has started.")


@router.get("/evaluations/{evaluation_id}", dependencies=[needs(Right.READ)])
def show_evaluation(evaluation_id: UUID, visitor: VisitorDep, store: StoreDep) -> Response:
    """One evaluation by temperature and task, beside the base's. Errors: EvaluationNotFound (404)."""
    with store.reading() as session:
        row = evaluations.get(session, evaluation_id)
        found = versions.detail(session, row)
        base = versions.find_base_of(session, row)
        comparison = None if base is None else versions.compare_two(session, base, row)
    return page(
        visitor,
        "evaluations/one.html",
        evaluation=found,
        comparison=comparison,
        temperatures=estimates.temperatures(found.results),
        rows=evaluated.by_domain(found, found.results),
        validation_temperatures=estimates.temperatures(found.validation_results),
        validation_rows=evaluated.by_domain(found, found.validation_results),
        tasks=evaluated.by_task(found.results),
        purpose=Purpose.EVALUATION.value,
    )
