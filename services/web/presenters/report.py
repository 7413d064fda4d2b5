"""A run's report as one self-contained file: before and after, what teaches, curves, updates, corrections.

It is built from contracts alone, so any api can be its source.
"""

from dataclasses import dataclass
from datetime import datetime

from markupsafe import Markup

from services.contracts.evaluations import EvaluationDetail
from services.contracts.updates import UpdateDetail
from services.store.stats import estimates
from services.store.views import curves
from services.web.assets import assets
from services.web.presenters import charts
from services.web.presenters.ledger import weigh_sources
from services.web.presenters.worth import ExpertWorth
from services.web.rendering import render

STYLES = ("app.css", "pages.css")


@dataclass(frozen=True)
class CorrectedAnswer:
    """A corrected answer, and the update that used it; None before one did."""

    before: str
    after: str
    comment: str
    update_number: int | None


@dataclass(frozen=True)
class Report:
    """The contents of the report."""

    lineage: str
    model: str
    made_at: datetime
    before: EvaluationDetail
    after: EvaluationDetail
    updates: tuple[UpdateDetail, ...]
    training_seconds: float
    worth: tuple[ExpertWorth, ...]
    corrected: tuple[CorrectedAnswer, ...]
    notes: tuple[str, ...]


def render_report(report: Report) -> str:
    """The report as HTML, its styles and drawings within."""
    measured = [(one.number, one.applied_at or one.started_at, one.metrics) for one in report.updates]
    return render(
        "report.html",
        report=report,
        headline=estimates.headline(report.before, report.after),
        changes=estimates.by_temperature(report.before.results, report.after.results),
        charts=charts.draw(curves.collect(measured)),
        sources={one.number: weigh_sources(one.lessons) for one in report.updates},
        styles=_inline_styles(),
    )


def _inline_styles() -> Markup:
    """Our style sheets as one element: the report is a file without a server."""
    css = "\n".join(assets()[name].content.decode() for name in STYLES)
    return Markup(f"<style>{css}</style>")  # noqa: S704 -- our own files
