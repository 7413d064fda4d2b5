"""The demo's closing report as a page: one file with everything in it, from the templates of the operator's pages."""

from datetime import UTC, datetime

from services.cli.client import ApiClient
from services.cli.output.outcome import DemoOutcome
from services.contracts.status import Status
from services.web.presenters.report import CorrectedAnswer, Report, render_report


def write(api: ApiClient, outcome: DemoOutcome) -> str:
    """The report's HTML. All data comes from the api, including the effect of the correction."""
    trained = outcome.trained
    status = api.get("/v1/status", Status)
    corrected = None
    if trained.correction is not None:
        rollout = api.get_json(f"/v1/rollouts/{trained.correction.rollout_id}")
        corrected = CorrectedAnswer(
            before=str(rollout["text"]),
            after=trained.correction.text or "",
            comment=trained.correction.comment or "",
            update_number=trained.correction_update,
        )
    return render_report(
        Report(
            lineage=status.lineage,
            model=status.model.rpartition("/")[2],
            made_at=datetime.now(UTC),
            before=outcome.before,
            after=outcome.after,
            measurements=tuple(outcome.measurements),
            updates=tuple(outcome.updates),
            training_seconds=trained.training_seconds,
            corrected=corrected,
            notes=tuple(outcome.notes),
        )
    )
