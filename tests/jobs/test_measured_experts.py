"""Experts that get in, or are out, by what they are measured to teach (`measuring`)."""

import re

import pytest
from sqlalchemy import select, update

from services.contracts.base import JsonObject
from services.contracts.experts import ConsultRequest, ConsultResult
from services.contracts.measurements import MeasurementCreate
from services.contracts.sources import ContextSource
from services.contracts.templates import Template
from services.experts.protocol.app import create_expert_app
from services.jobs.maintain import measuring_rules
from services.jobs.runtime import runtime
from services.store.core.transaction import Store
from services.store.loop import switches
from services.store.tables.loop import ExpertRow
from services.store.tables.people import AuditRow
from services.store.teaching import measurements
from tests.jobs.measuring import MOST_TURNS, Judge, Tutor, confuse, expert, is_shown, measure, turn, tutor, worker
from tests.serving import serve
from tests.store.conftest import World

__all__ = ["tutor", "worker"]

pytestmark = pytest.mark.integration


@pytest.mark.usefixtures("worker")
def test_a_right_expert_that_turns_bad_is_out_within_a_set_number_of_answers(
    store: Store, world: World, tutor: Tutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRECEPTOR_MAX_BACKLOG_LESSONS", "80")  # nothing is trained here
    runtime.cache_clear()
    measure(store, world)
    assert is_shown(store, world, "tutor")
    tutor.says, asked_before = confuse, tutor.num_asked
    with store.transaction() as session:
        switches.switch(session, world.lineage_id, sampling=True)

    for _ in range(MOST_TURNS):
        turn(store)
        if not is_shown(store, world, "tutor"):
            break

    assert not is_shown(store, world, "tutor")
    # due after 20 answers, and no longer held after four times as many; the sweep that finds that draws 8 tasks to be
    # measured, with 4 answers to each
    assert tutor.num_asked - asked_before <= 4 * 20 + 8 * 4

    asked_before = tutor.num_asked
    with store.transaction() as session:
        switches.switch(session, world.lineage_id, sampling=False)
        wanted = MeasurementCreate(expert_id=expert(store, "tutor").id)
        measurements.ask(session, world.lineage_id, measuring_rules(runtime().settings), wanted)
    for _ in range(MOST_TURNS):
        turn(store)
        if expert(store, "tutor").status == "probation":
            break
    assert expert(store, "tutor").status == "probation"
    assert not is_shown(store, world, "tutor")
    # a gap of -3/8 is decided by the third look, at 32 tasks, with 4 answers to each
    assert tutor.num_asked - asked_before <= 32 * 4


def passed(row: ExpertRow) -> JsonObject:
    """The report of a conformance run that passed."""
    check: JsonObject = {"name": "descriptor", "passed": True, "required": True, "detail": ""}
    return {"endpoint": row.endpoint, "descriptor": row.descriptor, "checks": [check]}


@pytest.mark.usefixtures("worker")
def test_an_expert_on_probation_that_teaches_is_ready_to_be_promoted(store: Store, world: World) -> None:
    with store.transaction() as session:
        row = session.scalars(select(ExpertRow).where(ExpertRow.name == "tutor")).one()
        row.status, row.report = "probation", passed(row)

    measure(store, world)

    row = expert(store, "tutor")
    assert row.status == "probation"
    said = r"ready to be promoted: feedback in math, teaches: \+0\.\d\d ± 0\.\d\d\. "
    assert re.fullmatch(said + f"Confirm with `preceptor experts activate {str(row.id)[-8:]}`", row.reason or "")


class Contrary(Judge):
    """A verifier that calls wrong answers right, and right ones wrong."""

    def consult(self, request: ConsultRequest) -> ConsultResult:
        return ConsultResult(score=float(request.rollout.text != request.task.metadata["answer"]))


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(("verifier", "status"), [(Judge, "teaches"), (Contrary, "does_not_teach")])
def test_a_verifier_on_probation_is_ready_to_be_promoted_once_what_it_certifies_teaches(
    store: Store, world: World, verifier: type[Judge], status: str
) -> None:
    with serve(create_expert_app(verifier())) as url:
        with store.transaction() as session:
            row = world.expert(session, "newcomer", status="probation", metadata_keys=("answer",), granted=("answer",))
            row.endpoint, row.report, newcomer_id = url, passed(row), row.id
            session.execute(update(ExpertRow).where(ExpertRow.name == "tutor").values(status="paused"))

        found = measure(store, world, ContextSource.OWN_SUCCESS, newcomer_id)

    assert [(one.template, one.status) for one in found] == [(Template.TURNS, status), (Template.REPROMPT, status)]
    row = expert(store, "newcomer")
    assert row.status == "probation"
    ready = (
        r"ready to be promoted: own success \(reprompt\) in math, teaches: \+0\.\d\d ± 0\.\d\d; own success \(turns.*"
    )
    assert bool(re.match(ready, row.reason or "")) == (status == "teaches")


@pytest.mark.usefixtures("worker")
def test_with_the_setting_an_expert_that_teaches_is_promoted_by_itself(
    store: Store, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRECEPTOR_PROMOTE_MEASURED", "true")
    runtime.cache_clear()
    with store.transaction() as session:
        row = session.scalars(select(ExpertRow).where(ExpertRow.name == "tutor")).one()
        row.status, row.report = "probation", passed(row)

    measure(store, world)

    assert (expert(store, "tutor").status, expert(store, "tutor").reason) == ("active", None)
    with store.transaction() as session:
        assert session.scalar(select(AuditRow.noun_id).where(AuditRow.action == "experts.promoted")) == str(row.id)
