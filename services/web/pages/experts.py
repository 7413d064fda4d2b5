"""Experts: their figures, status and contribution to training."""

from typing import Annotated
from uuid import UUID

from pydantic import Field
from starlette.responses import Response

from services.acts import experts as acts
from services.acts import measurements as measuring
from services.api.deps import SettingsDep, StoreDep
from services.contracts.answers import AnswerKind
from services.contracts.base import Contract
from services.contracts.experts import EXPERT_CHANGES, MAX_REASON_CHARS, ExpertStatus, Why
from services.contracts.measurements import LOOKS, MeasurementCreate
from services.contracts.persons import Right
from services.store.loop import experts, lineages, opinions
from services.store.views import browse, measured
from services.store.views import experts as expert_figures
from services.store.views.experts import NEWEST_UPDATES
from services.web.forms import build_pages, form_of
from services.web.lists import Chosen, RowsDep, list_path
from services.web.visitors import CallDep, VisitorDep, go_to, needs, page

router = build_pages()


class WeightForm(Contract):
    """How much an expert's answers weigh in the loss."""

    weight: Annotated[float, Field(ge=0, le=100)]


@router.get("/experts", dependencies=[needs(Right.READ)])
def show_experts(
    visitor: VisitorDep,
    store: StoreDep,
    settings: SettingsDep,
    paging: RowsDep,
    status: Chosen[ExpertStatus] = None,
) -> Response:
    """Experts with their contributions, newest first. Errors: LineageNotFound (404), BadCursor (422)."""
    with store.reading() as session:
        lineage = lineages.get(session, settings.lineage)
        found = browse.list_experts(
            session, lineage.id, visitor.caller.rights, status=status, cursor=paging.cursor, limit=paging.limit
        )
        outcomes = expert_figures.outcomes(session, lineage.id)
        given = expert_figures.given(session, lineage.id)
        latency = {expert.id: expert_figures.latency(session, expert.id) for expert in found.items}
        newest = measured.newest(session, lineage.id, [expert.id for expert in found.items])
    return page(
        visitor,
        "experts/list.html",
        experts=found,
        outcomes=outcomes,
        given=given,
        latency=latency,
        measured=newest,
        num_updates=NEWEST_UPDATES,
        path=list_path("/experts", status=status),
        statuses=[*ExpertStatus],
        chosen=status,
    )


@router.get("/experts/{expert_id}", dependencies=[needs(Right.READ)])
def show_expert(expert_id: UUID, visitor: VisitorDep, store: StoreDep) -> Response:
    """One expert with its figures and its conformance report. Errors: ExpertNotFound (404)."""
    with store.reading() as session:
        row = experts.get(session, expert_id)
        figures = expert_figures.read(session, row)
        rights = visitor.caller.rights
        recent = browse.list_consultations(
            session, row.lineage_id, rights, rollout_id=None, expert_id=row.id, status=None, cursor=None, limit=12
        )
        expert = experts.view(row, rights)
        newest = measured.newest(session, row.lineage_id, [row.id]).get(row.id, [])
        calibrations = opinions.read_of(session, row)
    may_become = EXPERT_CHANGES.get(expert.status, frozenset())
    return page(
        visitor,
        "experts/one.html",
        expert=expert,
        figures=figures,
        calibrations=calibrations,
        only_scores=list(expert.descriptor.kinds) == [AnswerKind.SCORE],
        recent=recent.items,
        measured=newest,
        num_looks=LOOKS,
        may_become={status.value for status in may_become},
        num_updates=NEWEST_UPDATES,
        max_reason_chars=MAX_REASON_CHARS,
    )


@router.post("/experts/{expert_id}/activate", dependencies=[needs(Right.OPERATE)])
def activate_expert(expert_id: UUID, visitor: VisitorDep, call: CallDep) -> Response:
    """Use its answers for training. Errors: ExpertNotFound (404), NotConformant, IllegalStatusChange (409)."""
    acts.activate(call, expert_id)
    return go_to(visitor, f"/experts/{expert_id}", notice="The expert is active: its answers train the policy.")


@router.post("/experts/{expert_id}/pause", dependencies=[needs(Right.OPERATE)])
def pause_expert(expert_id: UUID, visitor: VisitorDep, call: CallDep, form: Annotated[Why, form_of(Why)]) -> Response:
    """Stop consulting it for a while. Errors: ExpertNotFound (404), IllegalStatusChange (409)."""
    acts.pause(call, expert_id, form.reason)
    return go_to(visitor, f"/experts/{expert_id}", notice="The expert is paused: it is not consulted.")


@router.post("/experts/{expert_id}/weight", dependencies=[needs(Right.OPERATE)])
def weigh_expert(
    expert_id: UUID, visitor: VisitorDep, call: CallDep, form: Annotated[WeightForm, form_of(WeightForm)]
) -> Response:
    """Set how much its answers weigh in the loss. Errors: ExpertNotFound (404), ExpertRetired (409)."""
    acts.weigh(call, expert_id, form.weight)
    return go_to(visitor, f"/experts/{expert_id}", notice=f"The expert's weight is {form.weight:g}.")


@router.post("/experts/{expert_id}/retire", dependencies=[needs(Right.OPERATE)])
def retire_expert(expert_id: UUID, visitor: VisitorDep, call: CallDep, form: Annotated[Why, form_of(Why)]) -> Response:
    """Retire it permanently. Errors: ExpertNotFound (404), IllegalStatusChange (409)."""
    acts.retire(call, expert_id, form.reason)
    return go_to(visitor, f"/experts/{expert_id}", notice="The expert is retired; its open consultations have ended.")


@router.post("/experts/{expert_id}/measure", dependencies=[needs(Right.OPERATE)])
def measure_expert(expert_id: UUID, visitor: VisitorDep, call: CallDep) -> Response:
    """Measure what it teaches now. Errors: ExpertNotFound (404), NothingToMeasure (422)."""
    asked = measuring.ask(call, MeasurementCreate(expert_id=expert_id))
    num = len(asked.measurements)
    said = "1 measurement is" if num == 1 else f"{num} measurements are"
    return go_to(visitor, f"/experts/{expert_id}", notice=f"{said} under way; this page shows how far they are.")


@router.post("/experts/{expert_id}/requeue", dependencies=[needs(Right.OPERATE)])
def requeue_expert(expert_id: UUID, visitor: VisitorDep, call: CallDep) -> Response:
    """Retry its dead consultations, and take it out of quarantine.

    Errors: ExpertNotFound (404), IllegalStatusChange (409) if it is retired.
    """
    _, num_asked = acts.requeue(call, expert_id)
    return go_to(visitor, f"/experts/{expert_id}", notice=f"{num_asked} dead consultations will be retried.")
