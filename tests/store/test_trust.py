"""Whose words may train, who may read them, and who a rollout waits for."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select, update

from services.contracts.answers import AnswerKind, Feedback
from services.contracts.experts import ConsultResult
from services.store import consultations, experts, quarantine, rollouts, stats
from services.store.models import AnswerRow, ConsultationRow, ExpertRow, LessonAnswerRow, LessonRow, RolloutRow
from services.store.store import Store
from tests.store.conftest import World

pytestmark = pytest.mark.integration

WITHOUT_WEIGHT = ("probation", "paused", "retired", "quarantined", "weight 0")


def demote(store: Store, name: str, how: str) -> None:
    """Take the expert's weight away in one of the ways there are."""
    with store.transaction() as session:
        row = session.scalars(select(ExpertRow).where(ExpertRow.name == name)).one()
        if how == "weight 0":
            row.weight = 0.0
        elif how == "paused":
            experts.pause(session, row.id, "by hand")
        elif how == "retired":
            experts.retire(session, row.id, "by hand")
        elif how == "quarantined":
            quarantine.note_failure(session, row.id, "down", 1)
        elif row.status != how:
            row.status = how


def ask(store: Store) -> dict[str, consultations.Question]:
    """Claim every pending question, by its expert's name."""
    with store.transaction() as session:
        ids = session.scalars(select(ConsultationRow.id)).all()
        return {each.expert_name: each for each in consultations.claim(session, ids, lease_seconds=60)}


def settle(store: Store, question: consultations.Question, outcome: consultations.Outcome) -> None:
    with store.transaction() as session:
        consultations.settle(session, question, outcome)


def sweep(store: Store) -> None:
    with store.transaction() as session:
        consultations.sweep(session, resend_seconds=30, limit=100)


def read(store: Store, rollout: RolloutRow) -> RolloutRow:
    with store.transaction() as session:
        return rollouts.get(session, rollout.id)


def taught_by(store: Store) -> list[str]:
    """The experts whose answers lessons may use."""
    with store.transaction() as session:
        names = (
            select(ExpertRow.name)
            .join(AnswerRow, AnswerRow.expert_id == ExpertRow.id)
            .join(LessonAnswerRow, LessonAnswerRow.answer_id == AnswerRow.id)
        )
        return sorted(session.scalars(names))


@pytest.mark.parametrize("how", ["probation", "weight 0"])
def test_a_rollout_does_not_wait_for_an_expert_without_weight(store: Store, world: World, how: str) -> None:
    with store.transaction() as session:
        world.expert(session, "judge")
        world.expert(session, "slow")
    demote(store, "slow", how)
    with store.transaction() as session:
        [rollout] = world.drawn(session, world.task(session), size=1)
    asked = ask(store)
    settle(store, asked["judge"], ConsultResult(score=1.0))
    assert read(store, rollout).status == "ready"
    settle(store, asked["slow"], ConsultResult(score=0.0, feedback=Feedback(text="late")))
    assert (read(store, rollout).score, taught_by(store)) == (1.0, ["judge"])
    with store.transaction() as session:
        assert session.scalar(select(func.count()).select_from(AnswerRow)) == 2, "it is kept"
        assert session.scalar(select(func.count()).select_from(LessonRow)) == 1


@pytest.mark.parametrize("how", WITHOUT_WEIGHT[:3] + WITHOUT_WEIGHT[4:])
def test_the_sweep_moves_on_rollouts_that_waited_for_an_expert_that_lost_its_weight(
    store: Store, world: World, how: str
) -> None:
    with store.transaction() as session:
        world.expert(session, "judge")
        world.expert(session, "slow")
        [rollout] = world.drawn(session, world.task(session), size=1)
    settle(store, ask(store)["judge"], ConsultResult(score=1.0))
    assert read(store, rollout).status == "open"
    demote(store, "slow", how)
    sweep(store)
    assert (read(store, rollout).status, read(store, rollout).score) == ("ready", 1.0)


def test_the_second_stage_begins_when_the_experts_that_may_train_have_answered(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session, "critic", kinds=(AnswerKind.FEEDBACK,), verifier=False)
        world.expert(session, "newcomer", kinds=(AnswerKind.SOLUTION,), verifier=False, status="probation")
        world.expert(session, "teacher", kinds=(AnswerKind.SCORE,), verifier=False, needs_answers=True)
        world.expert(
            session, "trial", kinds=(AnswerKind.SCORE,), verifier=False, needs_answers=True, status="probation"
        )
        [rollout] = world.drawn(session, world.task(session), size=1)
    first = ask(store)
    settle(store, first["critic"], ConsultResult(feedback=Feedback(text="no")))
    second = ask(store)
    assert sorted(second) == ["teacher", "trial"]
    settle(store, second["teacher"], ConsultResult(score=0.5))
    assert read(store, rollout).status == "ready"


def test_an_outage_of_an_active_expert_costs_none_of_its_answers(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session, "judge")
        world.expert(session, "critic")
        [rollout] = world.drawn(session, world.task(session), size=1)
    asked = ask(store)
    settle(store, asked["judge"], ConsultResult(score=1.0))
    demote(store, "judge", "quarantined")
    sweep(store)
    settle(store, asked["critic"], ConsultResult(score=1.0))
    assert (read(store, rollout).score, taught_by(store)) == (1.0, ["critic", "judge"])


@pytest.mark.parametrize("later", ["paused", "retired", "quarantined", "active"])
def test_what_was_said_on_probation_never_counts(store: Store, world: World, later: str) -> None:
    with store.transaction() as session:
        world.expert(session, "slow")
        world.expert(session, "newcomer", status="probation")
        drawn = world.drawn(session, world.task(session), size=1)
    asked = ask(store)
    settle(store, asked["newcomer"], ConsultResult(score=1.0, feedback=Feedback(text="good")))
    demote(store, "newcomer", later)
    settle(store, asked["slow"], ConsultResult(score=0.0))
    assert (read(store, drawn[0]).score, taught_by(store)) == (0.0, ["slow"])


@pytest.mark.parametrize("later", ["paused", "retired", "probation"])
def test_what_was_said_before_an_expert_lost_its_weight_is_no_verdict_any_more(
    store: Store, world: World, later: str
) -> None:
    with store.transaction() as session:
        world.expert(session, "judge")
        world.expert(session, "slow")
        [rollout] = world.drawn(session, world.task(session), size=1)
    asked = ask(store)
    settle(store, asked["judge"], ConsultResult(score=0.0))
    demote(store, "judge", later)
    settle(store, asked["slow"], ConsultResult(score=1.0))
    assert (read(store, rollout).score, taught_by(store)) == (1.0, ["slow"])


def test_a_rollout_that_only_experts_without_weight_are_asked_about_is_set_aside_with_the_reason(
    store: Store, world: World
) -> None:
    with store.transaction() as session:
        world.expert(session, "newcomer", status="probation")
        drawn = world.drawn(session, world.task(session), size=1)
        arrived = world.external(session, world.task(session))
    sweep(store)
    for row in (*drawn, arrived):
        found = read(store, row)
        assert (found.status, found.reason) == ("set_aside", "none of the experts asked may train")


def test_the_status_names_who_is_waited_for_and_not_the_trainer(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session, "judge")
        world.expert(session, "silent", status="probation")
        world.drawn(session, world.task(session), size=3)
        asked_at = datetime.now(UTC) - timedelta(minutes=2)
        session.execute(update(ConsultationRow).values(created_at=asked_at))
    with store.transaction() as session:
        told = stats.status(session, world.lineage(session), max_backlog=3, max_groups_per_task=8, group_size=3)
    [one] = told.waited_for
    assert (one.expert, one.num_rollouts, one.since) == ("judge", 3, asked_at)
    assert one.until > datetime.now(UTC)
    words = "\n".join(told.waits_for)
    assert "3 rollouts wait for the expert judge, since" in words
    assert "experts have answered" in words
    assert "trainer" not in words
