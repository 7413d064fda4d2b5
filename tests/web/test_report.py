"""The report of a run: one file, from the templates of the pages, with everything in it."""

import re
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from services.store.core.transaction import Store
from services.store.ledger import updates
from services.store.tables.ledger import UpdateRow
from services.store.tables.loop import EvaluationRow
from services.store.views import versions
from services.web.presenters.report import CorrectedAnswer, Report, render_report
from services.web.presenters.worth import ExpertWorth, Taught
from tests.web.fill import fill

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def report(fresh_database: Callable[[], str]) -> Report:
    """What a demo of five updates leaves."""
    store = Store(fresh_database())
    fill(store, num_updates=5)
    with store.transaction() as session:
        measured = [versions.detail(session, row) for row in session.query(EvaluationRow).order_by(EvaluationRow.id)]
        made = tuple(updates.detail(session, row) for row in session.query(UpdateRow).order_by(UpdateRow.number))
    store.close()
    before, *_, after = measured
    taught = Taught("code/python", "own success", 0.625, 7)
    worth = (
        ExpertWorth("execution", 0.5, (taught,), ("own success (turns) in code/python, teaches: +0.21 ± 0.19",)),
        ExpertWorth("human", 0.0, (), ()),
    )
    corrected = CorrectedAnswer("<b>pass</b>", "return 4", "It returned nothing.", 3)
    return Report("main", "tiny", datetime.now(UTC), before, after, made, 600.0, worth, (corrected,), ("Time was up.",))


def test_it_needs_no_other_file(report: Report) -> None:
    page = render_report(report)
    assert not re.findall(r'(?:src|href)="(?!#)', page)
    assert "<style>" in page
    assert "@import" not in page
    assert "url(" not in page


def test_it_tells_before_and_after_curves_updates_and_the_correction(report: Report) -> None:
    page = render_report(report)
    for told in (
        "Before and after",
        "paired by family",
        "What each expert taught",
        "code/python by own success: ",
        "teaches: +0.21 ± 0.19",
        "Update 3 trained on it",
        "Time was up.",
    ):
        assert told in page, told
    assert page.count("<polyline") >= 6
    assert page.count('data-label="Shaped by"') == 5


def test_what_people_wrote_is_escaped(report: Report) -> None:
    page = render_report(report)
    assert "&lt;b&gt;pass&lt;/b&gt;" in page
    assert "<b>pass" not in page


def test_a_run_without_updates_or_correction_has_a_report_too(report: Report) -> None:
    short = Report("main", "tiny", report.made_at, report.before, report.before, (), 0.0, (), (), ())
    page = render_report(short)
    assert "Time ran out before the first update." in page
    assert "Corrections</h2>" not in page
