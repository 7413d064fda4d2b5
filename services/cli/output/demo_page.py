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
    corrected = [
        CorrectedAnswer(
            before=str(api.get_json(f"/v1/rollouts/{correction.rollout_id}")["text"]),
            after=correction.text or "",
            comment=correction.comment or "",
            update_number=trained.used_by.get(correction.id),
        )
        for correction in trained.corrections
    ]
    return render_report(
        Report(
            lineage=status.lineage,
            model=status.model.rpartition("/")[2],
            made_at=datetime.now(UTC),
            before=outcome.before,
            after=outcome.after,
            updates=tuple(outcome.updates),
            training_seconds=trained.training_seconds,
            worth=tuple(outcome.worth),
            corrected=tuple(corrected),
            notes=tuple(outcome.notes),
        )
    )
