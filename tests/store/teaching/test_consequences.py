"""What follows for an expert from measurements written by hand."""

import pytest
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerKind
from services.contracts.base import Json, JsonObject
from services.contracts.experts import ConformanceCheck, ConformanceReport, Descriptor, ExpertCreate
from services.contracts.measurements import MeasurementStatus
from services.contracts.sources import ContextSource
from services.contracts.templates import Template
from services.store.core.transaction import Store
from services.store.loop import experts
from services.store.tables.loop import ExpertRow
from services.store.teaching import candidates, consequences
from tests.store.conftest import World

FEEDBACK, SOLUTION, OWN_SUCCESS = ContextSource.FEEDBACK, ContextSource.SOLUTION, ContextSource.OWN_SUCCESS
TURNS, REPROMPT = Template.TURNS, Template.REPROMPT
DOES_NOT = MeasurementStatus.DOES_NOT_TEACH
FAILED = "its last conformance run failed"


def tutor_of_two_domains(session: Session, world: World) -> ExpertRow:
    """An expert that gives feedback, in two domains with train tasks that a verifier judges."""
    world.expert(session)
    world.task(session)
    world.task(session, "other", domain="code")
    return world.expert(session, "tutor", kinds=(AnswerKind.FEEDBACK,), verifier=False)


def test_an_expert_stays_until_each_of_its_templates_was_measured(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session)
        world.task(session)
        tutor = world.expert(session, "tutor", kinds=(AnswerKind.FEEDBACK, AnswerKind.SOLUTION), verifier=False)
        found = []
        for source, template in ((FEEDBACK, REPROMPT), (SOLUTION, TURNS), (SOLUTION, REPROMPT)):
            world.measured(session, tutor.id, DOES_NOT, source=source, template=template)
            consequences.apply(session, [tutor.id], promote=False)
            found.append(tutor.status)

    assert found == ["active", "active", "probation"]


def test_an_expert_stays_until_it_was_measured_in_every_domain_and_nothing_is_under_way(
    store: Store, world: World
) -> None:
    with store.transaction() as session:
        tutor = tutor_of_two_domains(session, world)
        found = []
        for domain, status in (
            ("math", DOES_NOT),
            ("code", MeasurementStatus.ABANDONED),
            ("code", MeasurementStatus.MEASURING),
        ):
            begun = world.measured(session, tutor.id, status, domain=domain)
            consequences.apply(session, [tutor.id], promote=False)
            found.append(tutor.status)
        session.delete(begun)
        world.measured(session, tutor.id, DOES_NOT, domain="code")
        consequences.apply(session, [tutor.id], promote=False)
        found.append(tutor.status)

    assert found == ["active", "active", "active", "probation"]


@pytest.mark.parametrize(
    ("source", "num_tasks", "reason", "status"),
    [
        (ContextSource.DISTRIBUTION, 0, None, "probation"),
        (ContextSource.DISTRIBUTION, 8, None, "active"),
        (SOLUTION, 0, "none of 8 tasks had anything to show (solution)", "probation"),
        (SOLUTION, 0, None, "active"),
    ],
)
def test_what_may_never_end_is_not_waited_for(
    store: Store, world: World, source: ContextSource, num_tasks: int, reason: str | None, status: str
) -> None:
    kinds = (AnswerKind.FEEDBACK, AnswerKind.TOPK if source is ContextSource.DISTRIBUTION else AnswerKind.SOLUTION)
    with store.transaction() as session:
        world.expert(session)
        world.task(session)
        tutor = world.expert(session, "tutor", kinds=kinds, verifier=False)
        world.measured(session, tutor.id, DOES_NOT)
        for key in candidates.find_keys(session, candidates.find_experts(session, world.lineage_id), "math"):
            if (key.expert_id, key.source) == (tutor.id, source):
                measuring = MeasurementStatus.MEASURING
                row = world.measured(session, tutor.id, measuring, source=source, template=key.template)
                row.num_tasks, row.reason = num_tasks, reason
        session.flush()
        consequences.apply(session, [tutor.id], promote=False)

    assert tutor.status == status


def test_an_expert_that_teaches_in_one_of_its_domains_stays(store: Store, world: World) -> None:
    with store.transaction() as session:
        tutor = tutor_of_two_domains(session, world)
        world.measured(session, tutor.id, MeasurementStatus.TEACHES, domain="code")
        world.measured(session, tutor.id, DOES_NOT)
        consequences.apply(session, [tutor.id], promote=False)
        assert (tutor.status, tutor.reason) == ("active", None)


@pytest.mark.parametrize("passed", [True, False])
def test_an_expert_whose_conformance_run_failed_keeps_that_as_its_reason(
    store: Store, world: World, passed: bool
) -> None:
    with store.transaction() as session:
        world.expert(session)
        world.task(session)
        tutor = world.expert(session, "tutor", status="probation", kinds=(AnswerKind.FEEDBACK,), verifier=False)
        check: JsonObject = {"name": "answers", "passed": passed, "required": True, "detail": ""}
        tutor.report = {"endpoint": tutor.endpoint, "descriptor": tutor.descriptor, "checks": [check]}
        tutor.reason = FAILED
        world.measured(session, tutor.id, DOES_NOT)
        consequences.apply(session, [tutor.id], promote=False)
        assert tutor.reason == ("feedback in math, measured, not taught: " if passed else FAILED)


@pytest.mark.parametrize("promote", [True, False])
def test_an_expert_that_teaches_but_failed_its_conformance_run_is_told_what_is_missing(
    store: Store, world: World, promote: bool
) -> None:
    checks: list[Json] = [
        {"name": name, "passed": passed, "required": required, "detail": ""}
        for name, passed, required in (("answers", False, True), ("fast", False, False), ("descriptor", True, True))
    ]
    with store.transaction() as session:
        tutor = world.expert(session, "tutor", status="probation", kinds=(AnswerKind.FEEDBACK,), verifier=False)
        tutor.report = {"endpoint": tutor.endpoint, "descriptor": tutor.descriptor, "checks": checks}
        world.measured(session, tutor.id, MeasurementStatus.TEACHES)
        consequences.apply(session, [tutor.id], promote=promote)
        assert tutor.status == "probation"
        assert tutor.reason == (
            "not ready to be promoted: its last conformance run failed (answers). Mend it and register its URL again. "
            "It was measured: feedback in math, teaches: "
        )


def test_once_its_conformance_run_passes_an_expert_no_longer_says_that_it_failed(store: Store, world: World) -> None:
    with store.transaction() as session:
        tutor = world.expert(session, "tutor", status="probation")
        described = Descriptor.model_validate(tutor.descriptor)
        tutor.reason = FAILED
        found = []
        for passed in (False, True):
            check = ConformanceCheck(name="answers", passed=passed, detail="")
            report = ConformanceReport(endpoint=tutor.endpoint, descriptor=described, checks=[check])
            wanted = ExpertCreate.model_validate({"endpoint": tutor.endpoint})
            experts.register(session, world.lineage_id, wanted, report)
            found.append((tutor.status, tutor.reason))

    assert found == [("probation", FAILED), ("probation", None)]


@pytest.mark.parametrize(
    ("status", "weight", "sources"),
    [
        ("active", 1.0, ["own_success", "precedents", "own_success"]),
        ("probation", 1.0, ["own_success", "own_success"]),
        ("probation", 0.0, []),
        ("paused", 1.0, []),
    ],
)
def test_a_verifier_on_probation_is_measured_by_what_it_certifies_and_has_no_precedents_yet(
    store: Store, world: World, status: str, weight: float, sources: list[str]
) -> None:
    with store.transaction() as session:
        judge = world.expert(session, status=status)
        judge.weight = weight
        session.flush()
        assert Descriptor.model_validate(judge.descriptor).verifier
        keys = candidates.find_keys(session, candidates.find_experts(session, world.lineage_id), "math")
    assert [key.source.value for key in keys] == sources


def test_a_domain_is_measured_while_a_verifier_that_counts_judges_it(store: Store, world: World) -> None:
    with store.transaction() as session:
        judge = world.expert(session)
        world.task(session)
        world.task(session, "other", domain="code")
        assert sorted(candidates.find_domains(session, world.lineage_id)) == ["code", "math"]
        judge.status = "probation"
        session.flush()
        assert candidates.find_domains(session, world.lineage_id) == []
