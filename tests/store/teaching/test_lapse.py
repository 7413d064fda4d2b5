"""When a verdict that a source teaches is too old to hold."""

import dataclasses

import pytest
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerKind
from services.contracts.base import JsonObject
from services.contracts.measurements import MeasurementStatus
from services.contracts.sources import ContextSource
from services.contracts.templates import Template
from services.store.core.transaction import Store
from services.store.ledger import policies
from services.store.loop import standing
from services.store.teaching import consequences, measurements
from services.store.teaching.candidates import Ages
from tests.store.conftest import World
from tests.store.teaching.test_mixing import RULES

FEEDBACK, REFERENCE = ContextSource.FEEDBACK, ContextSource.REFERENCE
TEACHES, DOES_NOT = MeasurementStatus.TEACHES, MeasurementStatus.DOES_NOT_TEACH
ABANDONED, LAPSED = MeasurementStatus.ABANDONED, MeasurementStatus.LAPSED


def serve(session: Session, world: World, num: int) -> None:
    """So many versions begin to serve, and a sweep measures; a source is due after two."""
    for number in range(1, num + 1):
        row = policies.add_candidate(session, world.lineage_id, artifact_sha256="d" * 64, update_number=number)
        policies.serve(session, row.id)
    rules = dataclasses.replace(RULES, ages=Ages(2, 1000))
    measurements.advance(session, world.lineage_id, rules, is_sampling=False, may_draw=False)


@pytest.mark.parametrize(("num_versions", "status"), [(7, TEACHES), (8, LAPSED)])
@pytest.mark.parametrize("since", [None, ABANDONED, MeasurementStatus.MEASURING])
def test_that_it_teaches_lapses_after_four_times_the_age_at_which_it_is_due_unless_it_was_decided_again(
    store: Store, world: World, num_versions: int, status: MeasurementStatus, since: MeasurementStatus | None
) -> None:
    with store.transaction() as session:
        world.task(session)
        judge = world.expert(session).id
        row = world.measured(session, judge, TEACHES)
        if since is not None:
            world.measured(session, judge, since)
        serve(session, world, num_versions)

        assert row.status == status
        said = "not decided again within 8 versions of the policy and 4,000 answers"
        assert row.reason == (said if status is LAPSED else None)
        assert standing.read(session, world.lineage_id).teaches(judge, FEEDBACK, "math") == (status is TEACHES)


def test_a_verdict_that_another_took_the_place_of_and_one_that_it_does_not_teach_do_not_lapse(
    store: Store, world: World
) -> None:
    with store.transaction() as session:
        world.task(session)
        judge = world.expert(session).id
        rows = [world.measured(session, judge, status, source=REFERENCE) for status in (TEACHES, DOES_NOT)]
        serve(session, world, 8)

        assert [row.status for row in rows] == ["teaches", "does_not_teach"]


@pytest.mark.parametrize("status", [TEACHES, DOES_NOT])
def test_what_was_presumed_to_teach_is_presumed_again_whatever_was_found_before(
    store: Store, world: World, status: MeasurementStatus
) -> None:
    turns = Template.TURNS
    with store.transaction() as session:
        world.task(session)
        judge = world.expert(session).id
        world.measured(session, judge, status, source=REFERENCE, template=turns)
        world.measured(session, judge, LAPSED, source=REFERENCE, template=turns)

        assert standing.read(session, world.lineage_id).template_for(judge, REFERENCE, "math", turns) is turns


def test_an_expert_on_probation_is_ready_to_be_promoted_only_until_that_lapses(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.task(session)
        world.expert(session)
        tutor = world.expert(session, "tutor", status="probation", kinds=(AnswerKind.FEEDBACK,), verifier=False)
        passed: JsonObject = {"name": "answers", "passed": True, "required": True, "detail": ""}
        tutor.report = {"endpoint": tutor.endpoint, "descriptor": tutor.descriptor, "checks": [passed]}
        world.measured(session, tutor.id, TEACHES)
        consequences.apply(session, [tutor.id], promote=False)
        assert (tutor.reason or "").startswith("ready to be promoted: feedback in math, teaches")

        serve(session, world, 8)

        assert (tutor.status, tutor.reason) == ("probation", "its measurements are too old: it is measured again")
