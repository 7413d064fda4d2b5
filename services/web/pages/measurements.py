"""Measurements: every source that was measured, by expert and domain, and a button to stop one."""

from uuid import UUID

from starlette.responses import Response

from services.acts import measurements as acts
from services.api.deps import SettingsDep, StoreDep
from services.contracts.measurements import LOOKS, MeasurementStatus
from services.contracts.persons import Right
from services.store.loop import lineages
from services.store.views import browse
from services.web.forms import build_pages
from services.web.lists import Chosen, RowsDep, list_path
from services.web.visitors import CallDep, VisitorDep, go_to, needs, page

router = build_pages()


@router.get("/measurements", dependencies=[needs(Right.READ)])
def show_measurements(
    visitor: VisitorDep,
    store: StoreDep,
    settings: SettingsDep,
    paging: RowsDep,
    status: Chosen[MeasurementStatus] = None,
    expert_id: Chosen[UUID] = None,
) -> Response:
    """Measurements, newest first. Errors: LineageNotFound (404), BadCursor (422)."""
    with store.reading() as session:
        lineage = lineages.get(session, settings.lineage)
        found = browse.list_measurements(
            session,
            lineage.id,
            expert_id=expert_id,
            domain=None,
            status=status,
            cursor=paging.cursor,
            limit=paging.limit,
        )
        names = browse.name_experts(session, {one.expert_id for one in found.items})
    return page(
        visitor,
        "measurements/list.html",
        measurements=found,
        names=names,
        num_looks=LOOKS,
        path=list_path("/measurements", status=status, expert_id=expert_id),
        statuses=[*MeasurementStatus],
        chosen=status,
        expert_id=expert_id,
    )


@router.post("/measurements/{measurement_id}/stop", dependencies=[needs(Right.OPERATE)])
def stop_measurement(measurement_id: UUID, visitor: VisitorDep, call: CallDep) -> Response:
    """End a measurement without a verdict. Errors: MeasurementNotFound (404), IllegalStatusChange (409)."""
    acts.stop(call, measurement_id)
    return go_to(visitor, "/measurements", notice="The measurement is stopped; what was decided before holds.")
