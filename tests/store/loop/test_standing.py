"""What may be shown, by measurements written by hand."""

import pickle
from dataclasses import replace

import pytest

from services.contracts.answers import AnswerContent, AnswerKind
from services.contracts.ids import new_id
from services.contracts.measurements import MeasurementStatus
from services.contracts.sources import ContextSource
from services.contracts.templates import Template
from services.store.core.transaction import Store
from services.store.loop import standing
from tests.store.conftest import World
from tests.store.teaching.test_material import Desk

TURNS, REPROMPT = Template.TURNS, Template.REPROMPT
FEEDBACK, REFERENCE = ContextSource.FEEDBACK, ContextSource.REFERENCE


def test_before_any_measurement_own_successes_corrections_precedents_and_references_are_shown() -> None:
    nothing, expert = standing.Standing(), new_id()

    shown = {source for source in ContextSource if nothing.template_for(expert, source, "math", TURNS)}

    assert {source.value for source in shown} == {"own_success", "correction", "precedents", "reference"}


def test_feedback_is_shown_from_the_measurement_on_that_it_teaches_and_only_where_it_was_measured(
    store: Store, world: World
) -> None:
    with store.transaction() as session:
        judge = world.expert(session).id
        assert standing.read(session, world.lineage_id).template_for(judge, FEEDBACK, "math", TURNS) is None

        world.measured(session, judge, MeasurementStatus.TEACHES)

        found = standing.read(session, world.lineage_id)
        assert found.template_for(judge, FEEDBACK, "math", TURNS) is REPROMPT
        assert found.template_for(judge, FEEDBACK, "code", TURNS) is None
        assert found.template_for(new_id(), FEEDBACK, "math", TURNS) is None


def test_the_old_verdict_holds_until_a_new_measurement_decides(store: Store, world: World) -> None:
    with store.transaction() as session:
        judge = world.expert(session).id
        world.measured(session, judge, MeasurementStatus.TEACHES)
        world.measured(session, judge, MeasurementStatus.ABANDONED)
        world.measured(session, judge, MeasurementStatus.MEASURING)
        assert standing.read(session, world.lineage_id).teaches(judge, FEEDBACK, "math")

    with store.transaction() as session:
        world.measured(session, judge, MeasurementStatus.DOES_NOT_TEACH, low=-0.2)
        assert not standing.read(session, world.lineage_id).teaches(judge, FEEDBACK, "math")


def test_of_two_templates_that_teach_the_one_with_the_higher_lower_bound_is_shown(store: Store, world: World) -> None:
    with store.transaction() as session:
        judge = world.expert(session).id
        world.measured(session, judge, MeasurementStatus.TEACHES, source=REFERENCE, template=TURNS, low=0.05)
        world.measured(session, judge, MeasurementStatus.TEACHES, source=REFERENCE, template=REPROMPT, low=0.2)

        found = standing.read(session, world.lineage_id)

    assert found.template_for(judge, REFERENCE, "math", TURNS) is REPROMPT


def test_a_presumed_source_measured_not_to_teach_is_shown_by_the_unmeasured_template_alone(
    store: Store, world: World
) -> None:
    with store.transaction() as session:
        judge = world.expert(session).id
        world.measured(session, judge, MeasurementStatus.DOES_NOT_TEACH, source=REFERENCE, template=TURNS, low=-0.3)
        found = standing.read(session, world.lineage_id)

    assert found.template_for(judge, REFERENCE, "math", TURNS) is None
    assert found.template_for(judge, REFERENCE, "math", REPROMPT) is REPROMPT


def test_only_precedents_that_the_task_carries_are_shown_before_they_are_measured(store: Store, world: World) -> None:
    with store.transaction() as session:
        kinds = (AnswerKind.PRECEDENTS,)
        keys = ("precedents",)
        judge = world.expert(session).id
        own = world.expert(session, "own", kinds=kinds, verifier=False, metadata_keys=keys, granted=keys).id
        stranger = world.expert(session, "stranger", kinds=kinds, verifier=False).id
        refused = world.expert(session, "refused", kinds=kinds, verifier=False, metadata_keys=keys).id
        people = world.expert(session, "human", kinds=kinds, verifier=False).id

        found = standing.read(session, world.lineage_id)

    shown = [found.teaches(i, ContextSource.PRECEDENTS, "math") for i in (judge, own, people, stranger, refused)]
    assert shown == [False, True, False, False, False]


def test_right_answers_to_other_tasks_are_the_last_resort_where_the_policy_hardly_ever_passes() -> None:
    judge, stranger = new_id(), new_id()
    found = standing.Standing(choosers=frozenset({stranger}), poolers=frozenset({judge}), unsolved=frozenset({"math"}))
    kind = ContextSource.PRECEDENTS

    assert [found.teaches(judge, kind, domain) for domain in ("math", "code")] == [True, False]
    assert not found.teaches(stranger, kind, "math")
    assert found.is_last_resort(judge, kind, "math")
    assert not found.is_last_resort(judge, ContextSource.OWN_SUCCESS, "math")

    measured = replace(found, verdicts={(judge, kind, "math"): {TURNS: standing.Verdict(teaches=True, gap_low=0.1)}})
    assert not measured.is_last_resort(judge, kind, "math")
    refused = replace(found, verdicts={(judge, kind, "math"): {TURNS: standing.Verdict(teaches=False, gap_low=-0.1)}})
    assert not refused.teaches(judge, kind, "math")


@pytest.mark.integration
def test_a_domain_is_unsolved_once_one_in_twenty_of_sixteen_verdicts_and_more_at_most_is_a_pass(
    store: Store, world: World
) -> None:
    with store.transaction() as session:
        desk = Desk(session, world)
        judge = desk.expert("judge")
        for domain, num_judged, num_passed in (("few", 15, 0), ("none", 16, 0), ("one", 20, 1), ("two", 20, 2)):
            for place, rollout in enumerate(desk.drawn(desk.task(domain, domain=domain), num_judged)):
                desk.said(rollout, judge, AnswerContent(score=float(place < num_passed)))
        assert standing.read(session, world.lineage_id).unsolved == {"none", "one"}


def test_a_standing_can_be_sent_to_another_process(store: Store, world: World) -> None:
    with store.transaction() as session:
        judge = world.expert(session).id
        world.measured(session, judge, MeasurementStatus.TEACHES)
        found = standing.read(session, world.lineage_id)

    assert pickle.loads(pickle.dumps(found)) == found  # noqa: S301 -- our own bytes
