"""Acts on measurements: asking for what teaches to be measured now, and stopping one."""

from uuid import UUID

from services.acts.call import Call
from services.contracts.measurements import Measurement, MeasurementCreate, MeasurementsAsked
from services.jobs.maintain import measuring_rules
from services.store.loop import experts
from services.store.teaching import measurements


def ask(call: Call, wanted: MeasurementCreate) -> MeasurementsAsked:
    """Measure these sources now; the draws come in the background, also while the loop is paused.

    Errors: ExpertNotFound (404), NothingToMeasure (422).
    """
    with call.begin() as act:
        if wanted.expert_id is not None:
            experts.get(act.session, wanted.expert_id)
        rows = measurements.ask(act.session, act.lineage.id, measuring_rules(call.settings), wanted)
        for row in rows:
            act.session.refresh(row)
        asked = act.keep(MeasurementsAsked(measurements=[measurements.view(row) for row in rows]))
        act.record("measurements.add", "expert", wanted.expert_id, wanted.model_dump(mode="json", exclude_none=True))
    return asked


def stop(call: Call, measurement_id: UUID) -> Measurement:
    """End a measurement without a verdict. Errors: MeasurementNotFound (404), IllegalStatusChange (409)."""
    with call.begin() as act:
        stopped = act.keep(measurements.view(measurements.stop(act.session, measurement_id)))
        act.record("measurements.stop", "measurement", measurement_id)
    return stopped
