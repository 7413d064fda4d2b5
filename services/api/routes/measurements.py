"""Measurements: whether what experts say teaches the policy, and by how much."""

from uuid import UUID

from services.acts import measurements as acts
from services.api.auth import needs
from services.api.calls import CallDep
from services.api.deps import PagingDep, SettingsDep, StoreDep
from services.api.routes.common import build_router, problems
from services.contracts.base import Page
from services.contracts.measurements import Measurement, MeasurementCreate, MeasurementsAsked, MeasurementStatus
from services.contracts.persons import Right
from services.store.loop import lineages
from services.store.views import browse

router = build_router("measurements")


@router.post(
    "/measurements", status_code=201, dependencies=[needs(Right.OPERATE)], responses=problems(404, 409, 413, 415, 422)
)
def add_measurements(body: MeasurementCreate, call: CallDep) -> MeasurementsAsked:
    """Measure what teaches now: train tasks answered by the policy alone, by the policy shown the source, and by the
    policy shown the same thing from another task, all at one temperature.

    Errors: ExpertNotFound (404), NothingToMeasure (422).
    """
    return acts.ask(call, body)


@router.get("/measurements", dependencies=[needs(Right.READ)], responses=problems(422))
def list_measurements(
    store: StoreDep,
    settings: SettingsDep,
    paging: PagingDep,
    expert_id: UUID | None = None,
    domain: str | None = None,
    status: MeasurementStatus | None = None,
) -> Page[Measurement]:
    """Measurements and how far they are, newest first. Errors: BadCursor (422)."""
    with store.reading() as session:
        lineage = lineages.get(session, settings.lineage)
        return browse.list_measurements(
            session,
            lineage.id,
            expert_id=expert_id,
            domain=domain,
            status=status,
            cursor=paging.cursor,
            limit=paging.limit,
        )


@router.post("/measurements/{measurement_id}/stop", dependencies=[needs(Right.OPERATE)], responses=problems(404, 409))
def stop_measurement(measurement_id: UUID, call: CallDep) -> Measurement:
    """End a measurement without a verdict: what was decided before holds, and the loop begins it again once it is due.

    Errors: MeasurementNotFound (404), IllegalStatusChange (409) when it has ended.
    """
    return acts.stop(call, measurement_id)
