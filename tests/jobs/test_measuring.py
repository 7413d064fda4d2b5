"""What teaches, measured from outside (`measuring`): the arms of a measurement, its tokens, and what it needs."""

import re

import pytest
from sqlalchemy import func, select, update

from services.contracts.base import JsonObject
from services.contracts.measurements import MeasurementCreate, MeasurementStatus
from services.contracts.sources import Arm, ContextSource, ShownContext
from services.contracts.templates import Template
from services.jobs.maintain import maintain, measuring_rules
from services.jobs.runtime import runtime
from services.store.core.transaction import Store
from services.store.loop import answers, switches
from services.store.tables.loop import AnswerRow, ExpertRow, GroupRow, RolloutRow
from services.store.tables.people import AuditRow
from services.store.tables.teaching import MeasuredTaskRow, MeasurementRow
from services.store.teaching import measurements
from tests.jobs.measuring import (
    FEEDBACK,
    Says,
    Tutor,
    confuse,
    echo,
    expert,
    is_shown,
    measure,
    read,
    turn,
    tutor,
    worker,
)
from tests.store.conftest import World

__all__ = ["tutor", "worker"]

pytestmark = pytest.mark.integration


@pytest.mark.usefixtures("worker")
def test_an_expert_that_says_what_is_right_gets_in(store: Store, world: World) -> None:
    assert not is_shown(store, world, "tutor")

    [found] = measure(store, world)

    assert found.status == "teaches"
    assert 16 <= found.num_tasks < 16 + 8  # 8 gaps of 1/2 do not decide; a task without a failure shows nothing
    assert found.temperature == 0.5
    # alone 3 of 8, shown the answer 7 of 8, shown another's answer 0
    assert found.gap == pytest.approx(0.5, abs=0.2)
    assert found.net == pytest.approx(7 / 8, abs=0.15)
    assert is_shown(store, world, "tutor")
    assert expert(store, "tutor").status == "active"


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("says", [confuse, echo])
def test_an_expert_that_returns_other_tasks_feedback_or_the_failed_attempt_is_out(
    store: Store, world: World, tutor: Tutor, says: Says
) -> None:
    tutor.says = says

    [found] = measure(store, world)

    assert found.status == "does_not_teach"
    assert not is_shown(store, world, "tutor")
    row = expert(store, "tutor")
    assert row.status == "probation"
    assert re.fullmatch(r"feedback in math, measured, not taught: -0\.\d\d ± 0\.\d\d", row.reason or "")
    with store.transaction() as session:
        [rollout, *_] = session.scalars(select(RolloutRow).join(AnswerRow, AnswerRow.expert_id == row.id))
        assert row.id not in {answer.expert_id for answer in answers.counting(session, rollout.id)}
        [entry] = session.scalars(select(AuditRow).where(AuditRow.action == "experts.demoted"))
    assert (entry.person_id, entry.noun_id, entry.detail) == (None, str(row.id), {"measured": row.reason})


@pytest.mark.usefixtures("worker")
def test_own_successes_are_measured_by_both_templates_and_the_student_by_the_other_half(
    store: Store, world: World
) -> None:
    found = measure(store, world, ContextSource.OWN_SUCCESS)

    assert [(one.template, one.status) for one in found] == [
        (Template.TURNS, "teaches"),
        (Template.REPROMPT, "teaches"),
    ]
    with store.transaction() as session:
        place = session.scalars(select(MeasuredTaskRow).where(MeasuredTaskRow.measurement_id == found[0].id)).first()
        assert place is not None
        context, control = (
            ShownContext.model_validate(session.get_one(GroupRow, group_id).context)
            for group_id in (place.teacher_group_id, place.control_group_id)
        )
        [said] = session.scalars(select(AnswerRow).where(AnswerRow.id.in_(context.answers)))
        shown = session.get_one(RolloutRow, said.rollout_id)
        student = session.scalars(select(RolloutRow).where(RolloutRow.group_id == place.student_group_id)).all()
    assert (shown.group_id, shown.score, shown.index_in_group % 2) == (place.student_group_id, 1.0, 0)
    assert len(student) == 8
    assert (context.arm, control.arm) == (Arm.TEACHER, Arm.CONTROL)
    assert context.messages != control.messages
    assert context.messages[-1] == control.messages[-1]


@pytest.mark.usefixtures("worker")
def test_all_three_arms_of_a_task_are_drawn_at_the_teachers_temperature_by_one_version_and_train_nothing(
    store: Store, world: World
) -> None:
    [found] = measure(store, world)

    with store.transaction() as session:
        rows = session.scalars(select(GroupRow)).all()
        assert {row.purpose for row in rows} == {"probe"}
        assert {row.sampling["temperature"] for row in rows} == {0.5}
        assert {row.policy_version for row in rows} == {"base"}
        drawn = session.scalar(select(func.sum(func.cardinality(RolloutRow.token_ids))))
    assert sum(row.num_shown > 0 for row in rows) == 2 * found.num_tasks
    assert found.num_tokens == drawn


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("before", [None, "teaches"])
def test_a_measurement_that_its_tokens_end_undecided_changes_nothing(
    store: Store, world: World, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    monkeypatch.setenv("PRECEPTOR_MEASURING_TOKENS", "1")
    runtime.cache_clear()
    if before is not None:
        with store.transaction() as session:
            world.measured(session, expert(store, "tutor").id, MeasurementStatus(before))

    found = measure(store, world)[-1]

    # 8 gaps of 1/2 do not decide: their capital is 8, and it takes 10
    assert (found.status, found.reason) == (
        "abandoned",
        f"{found.num_tasks} tasks do not decide, and there are no more tokens",
    )
    assert found.num_tasks <= 8
    assert (found.gap_low or 0) <= 0 < (found.gap_high or 0)
    assert is_shown(store, world, "tutor") == (before == "teaches")
    assert expert(store, "tutor").status == "active"


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("described", "num_sharing"), [({"kinds": ["precedents"]}, 1), ({"kinds": ["precedents", "feedback"]}, 2)]
)
def test_tokens_without_anything_to_show_count_and_each_measurement_pays_its_part_of_what_it_shares(
    store: Store, world: World, described: JsonObject, num_sharing: int
) -> None:
    """The tutor gives no precedents: there is nothing to show after the student's answers to 8 tasks."""
    with store.transaction() as session:
        row = session.scalars(select(ExpertRow).where(ExpertRow.name == "tutor")).one()
        row.descriptor = row.descriptor | described
        rules = measuring_rules(runtime().settings)
        measurements.ask(session, world.lineage_id, rules, MeasurementCreate(expert_id=row.id))
    for _ in range(6):
        turn(store)
        [found] = [one for one in read(store) if one.source is ContextSource.PRECEDENTS]
        if found.reason is not None:
            break

    with store.transaction() as session:
        num_tokens = func.sum(func.cardinality(RolloutRow.token_ids))
        student = select(num_tokens).join(GroupRow, GroupRow.id == RolloutRow.group_id).where(GroupRow.num_shown == 0)
        drawn = session.scalars(student.group_by(GroupRow.id)).all()
    assert len(drawn) == 8
    assert (found.num_tasks, found.num_tokens) == (0, sum(one // num_sharing for one in drawn))


@pytest.mark.usefixtures("worker")
def test_without_being_asked_the_loop_measures_within_its_share_of_the_draws(
    store: Store, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRECEPTOR_MEASURING_SHARE", "0.2")
    runtime.cache_clear()
    with store.transaction() as session:
        switches.switch(session, world.lineage_id, sampling=True)
    for _ in range(6):
        turn(store)

    with store.transaction() as session:
        drawn = dict(session.execute(select(GroupRow.purpose, func.count()).group_by(GroupRow.purpose)).all())
    assert drawn == {"train": 6, "probe": 8 + 2 * 2 * 8}  # a round that has begun is finished, and no other begins


@pytest.mark.usefixtures("worker")
def test_a_source_without_anything_to_show_waits_and_says_so(store: Store, world: World) -> None:
    with store.transaction() as session:
        rules = measuring_rules(runtime().settings)
        wanted = MeasurementCreate(source=ContextSource.PRECEDENTS)
        measurements.ask(session, world.lineage_id, rules, wanted)
    for _ in range(6):
        turn(store)

    [found] = read(store)
    assert (found.status, found.reason) == ("measuring", "none of 8 tasks had anything to show (precedents)")
    with store.transaction() as session:
        assert session.scalars(select(MeasuredTaskRow)).all() == []
        assert session.scalar(select(func.count()).select_from(GroupRow)) == 8


@pytest.mark.usefixtures("worker")
def test_tasks_that_lack_what_the_expert_needs_are_not_drawn_for_it(store: Store, world: World) -> None:
    with store.transaction() as session:
        tutor = session.scalars(select(ExpertRow).where(ExpertRow.name == "tutor")).one()
        tutor.descriptor = tutor.descriptor | {"metadata_keys": ["notes"]}
        tutor.granted = ["notes"]
        rules = measuring_rules(runtime().settings)
        measurements.ask(session, world.lineage_id, rules, MeasurementCreate(source=FEEDBACK))
    turn(store)

    [found] = read(store)
    assert (found.status, found.reason) == ("measuring", "only 0 of the 8 tasks it needs have something to show")
    with store.transaction() as session:
        assert session.scalars(select(GroupRow)).all() == []


@pytest.mark.usefixtures("worker")
def test_once_its_time_is_over_what_a_person_asked_for_waits_for_the_loop(store: Store, world: World) -> None:
    """The loop is paused: nothing is drawn after the time that was asked for, and again within a new one."""

    def ask_and_sweep(*, is_over: bool) -> int | None:
        with store.transaction() as session:
            rules = measuring_rules(runtime().settings)
            measurements.ask(session, world.lineage_id, rules, MeasurementCreate(source=FEEDBACK))
            if is_over:
                session.execute(update(MeasurementRow).values(asked_until=func.now()))
        maintain()
        with store.transaction() as session:
            return session.scalar(select(func.count()).select_from(GroupRow))

    assert ask_and_sweep(is_over=True) == 0
    assert ask_and_sweep(is_over=False) == 8
