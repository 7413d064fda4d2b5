"""Asking for measurements, and reading what experts were measured to teach."""

from datetime import timedelta
from uuid import UUID

import pytest

from services.contracts.answers import AnswerKind
from services.contracts.ids import new_id
from services.contracts.measurements import Measurement, MeasurementsAsked, MeasurementStatus
from services.contracts.sources import ContextSource
from services.store.core.transaction import Store
from services.store.loop import standing
from services.store.tables.people import AuditRow
from tests.api.conftest import Api, items, made, refused
from tests.store.conftest import World

pytestmark = pytest.mark.integration


def ask(api: Api, expert_id: UUID, minutes: float = 60.0) -> list[Measurement]:
    """What is begun, or under way, when all that an expert gives is to be measured."""
    answer = made(api.post("/v1/measurements", {"expert_id": str(expert_id), "minutes": minutes}))
    return MeasurementsAsked.model_validate(answer).measurements


def minutes_asked(one: Measurement) -> float:
    """From its beginning until its draws no longer go first."""
    assert one.asked_until is not None
    return (one.asked_until - one.created_at) / timedelta(minutes=1)


def test_what_an_expert_gives_is_measured_when_it_is_asked_for(api: Api, store: Store, world: World) -> None:
    refused(api.post("/v1/measurements", {}), 422)
    api.task("t")
    refused(api.post("/v1/measurements", {}), 422)  # no verifier
    with store.transaction() as session:
        world.expert(session)
        kinds = (AnswerKind.SOLUTION, AnswerKind.FEEDBACK, AnswerKind.TOPK)
        tutor = world.expert(session, "tutor", kinds=kinds, verifier=False).id

    asked = ask(api, tutor)

    assert [(one.source.value, one.template.value, one.status.value) for one in asked] == [
        ("solution", "turns", "measuring"),
        ("feedback", "reprompt", "measuring"),
        ("distribution", "turns", "measuring"),
        ("solution", "reprompt", "measuring"),
    ]
    assert {minutes_asked(one) for one in asked} == {60.0}
    again = ask(api, tutor, minutes=0.5)
    assert [one.id for one in again] == [one.id for one in asked], "not twice"
    assert all(minutes_asked(one) < 30 for one in again)
    assert [one["id"] for one in items(api.get("/v1/measurements"))] == [str(one.id) for one in reversed(asked)]
    assert items(api.get("/v1/measurements", expert_id=str(new_id()))) == []
    assert items(api.get("/v1/measurements", status="teaches")) == []
    assert len(items(api.get("/v1/measurements", domain="math", expert_id=str(tutor)))) == 4
    refused(api.post("/v1/measurements", {"expert_id": str(new_id())}), 404)
    refused(api.post("/v1/measurements", {"source": "gossip"}), 422)
    with store.transaction() as session:
        entries = session.query(AuditRow).filter_by(action="measurements.add").all()
        assert {entry.noun_id for entry in entries} == {str(tutor)}


def test_an_expert_says_what_it_was_measured_to_teach(api: Api, store: Store, world: World) -> None:
    with store.transaction() as session:
        judge = world.expert(session)
        row = world.measured(session, judge.id, MeasurementStatus.DOES_NOT_TEACH)
        row.gap, row.gap_low, row.gap_high = -0.12, -0.18, -0.06
        world.measured(session, judge.id, MeasurementStatus.MEASURING, source=ContextSource.OWN_SUCCESS)

    said = [
        "feedback in math, measured, not taught: -0.12 ± 0.06",
        "own success (reprompt) in math, measuring: 0 of 8 tasks",
    ]
    assert items(api.get("/v1/experts"))[0]["measured"] == said
    found = made(api.get(f"/v1/experts/{judge.id}"))
    assert (found["measured"], found["share"]) == (said, 0.0)


def test_a_measurement_that_is_stopped_ends_without_a_verdict_and_leaves_the_earlier_one_standing(
    api: Api, store: Store, world: World
) -> None:
    api.task("t")
    with store.transaction() as session:
        world.expert(session)
        tutor = world.expert(session, "tutor", kinds=(AnswerKind.FEEDBACK,), verifier=False).id
        world.measured(session, tutor, MeasurementStatus.TEACHES)
    [begun] = ask(api, tutor)

    stopped = made(api.post(f"/v1/measurements/{begun.id}/stop"))

    assert (stopped["status"], stopped["reason"], stopped["decided_at"] is None) == (
        "abandoned",
        "stopped by hand",
        False,
    )
    refused(api.post(f"/v1/measurements/{begun.id}/stop"), 409)
    refused(api.post(f"/v1/measurements/{new_id()}/stop"), 404)
    with store.transaction() as session:
        assert standing.read(session, world.lineage_id).teaches(tutor, ContextSource.FEEDBACK, "math")
        entries = session.query(AuditRow).filter_by(action="measurements.stop").all()
        assert [entry.noun_id for entry in entries] == [str(begun.id)]
    [again] = ask(api, tutor)
    assert (again.id == begun.id, again.status) == (False, MeasurementStatus.MEASURING)
