"""Whose words may train, who may read them, and who a rollout waits for."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerKind, Feedback
from services.contracts.experts import ConsultResult, Descriptor
from services.contracts.sources import ContextSource
from services.store.core.transaction import Store
from services.store.corrections import corrections, ranking
from services.store.ledger import lesson_facts
from services.store.ledger.lesson_facts import LessonFacts
from services.store.loop import consultations, experts, quarantine, rollouts, settling
from services.store.tables.corrections import CorrectionRow
from services.store.tables.ledger import LessonAnswerRow, LessonRow
from services.store.tables.loop import AnswerRow, ConsultationRow, ExpertRow, RolloutRow
from services.store.tables.people import AuditRow
from services.store.views import status
from tests.store.conftest import World

pytestmark = pytest.mark.integration

FEEDBACK = ContextSource.FEEDBACK
SOLVES = (AnswerKind.SOLUTION,)
WITHOUT_WEIGHT = ("probation", "paused", "retired", "quarantined", "weight 0")


def put_key(session: Session, world: World) -> None:
    """The expert `key`, which reads the task's answer and teaches by its solutions."""
    world.expert(
        session,
        "key",
        kinds=SOLVES,
        verifier=False,
        metadata_keys=("answer",),
        granted=("answer",),
        teaches=ContextSource.SOLUTION,
    )


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


def ask(store: Store) -> dict[str, consultations.ClaimedConsultation]:
    """Claim every pending question, by its expert's name."""
    with store.transaction() as session:
        ids = session.scalars(select(ConsultationRow.id)).all()
        return {each.expert_name: each for each in consultations.claim(session, ids, lease_seconds=60)}


def settle(store: Store, question: consultations.ClaimedConsultation, outcome: settling.Outcome) -> None:
    with store.transaction() as session:
        settling.settle(session, question, outcome)


def sweep(store: Store) -> None:
    with store.transaction() as session:
        settling.sweep(session, resend_seconds=30, limit=100)


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
        world.expert(session, "critic", kinds=(AnswerKind.FEEDBACK,), verifier=False, teaches=FEEDBACK)
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
        assert (found.status, found.reason) == ("set_aside", "no consulted expert is active")


def test_the_status_names_who_is_waited_for_and_not_the_trainer(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session, "judge")
        world.expert(session, "silent", status="probation")
        world.drawn(session, world.task(session), size=3)
        asked_at = datetime.now(UTC) - timedelta(minutes=2)
        session.execute(update(ConsultationRow).values(created_at=asked_at))
    with store.transaction() as session:
        told = status.status(session, world.lineage(session), max_backlog=3, max_groups_per_task=8, group_size=3)
    [one] = told.waited_for
    assert (one.expert, one.num_rollouts, one.since) == ("judge", 3, asked_at)
    assert one.until > datetime.now(UTC)
    words = "\n".join(told.waits_for)
    assert "3 rollouts wait for the expert judge, since" in words
    assert "experts have answered" in words
    assert "trainer" not in words


def test_a_second_expert_is_shown_what_counts_and_what_its_own_grants_cover(store: Store, world: World) -> None:
    with store.transaction() as session:
        put_key(session, world)
        world.expert(session, "critic", kinds=(AnswerKind.FEEDBACK,), verifier=False, teaches=FEEDBACK)
        world.expert(session, "newcomer", kinds=SOLVES, verifier=False, status="probation")
        world.expert(session, "stranger", kinds=SOLVES, verifier=False, needs_answers=True)
        world.expert(session, "insider", kinds=SOLVES, verifier=False, needs_answers=True, granted=("answer",))
        [rollout] = world.drawn(session, world.task(session), size=1)
    first = ask(store)
    settle(store, first["newcomer"], ConsultResult(solution="planted"))
    settle(store, first["key"], ConsultResult(solution="1"))
    settle(store, first["critic"], ConsultResult(feedback=Feedback(text="no")))
    second = ask(store)
    shown = {name: [said.expert for said in asked.request.ask.context] for name, asked in second.items()}
    assert shown == {"stranger": ["critic"], "insider": ["key", "critic"]}
    settle(store, second["insider"], ConsultResult(solution="1, as I was told"))
    with store.transaction() as session:
        of_whom = select(ExpertRow.name, AnswerRow.derived_from).join(AnswerRow, AnswerRow.expert_id == ExpertRow.id)
        derived = dict(session.execute(of_whom).all())
    assert derived == {"newcomer": [], "key": ["answer"], "critic": [], "insider": ["answer"]}, "at second hand, too"
    assert read(store, rollout).status == "open"


def test_a_second_expert_that_may_see_nothing_is_not_asked(store: Store, world: World) -> None:
    with store.transaction() as session:
        put_key(session, world)
        world.expert(session, "stranger", kinds=SOLVES, verifier=False, needs_answers=True)
        [rollout] = world.drawn(session, world.task(session), size=1)
    settle(store, ask(store)["key"], ConsultResult(solution="1"))
    assert ask(store) == {}
    assert read(store, rollout).status == "ready"


def test_what_ceased_to_count_or_to_be_granted_is_left_out_of_questions_that_were_not_sent_yet(
    store: Store, world: World
) -> None:
    with store.transaction() as session:
        put_key(session, world)
        world.expert(session, "critic", kinds=(AnswerKind.FEEDBACK,), verifier=False, teaches=FEEDBACK)
        world.expert(session, "other", kinds=(AnswerKind.FEEDBACK,), verifier=False, teaches=FEEDBACK)
        world.expert(session, "second", kinds=SOLVES, verifier=False, needs_answers=True, granted=("answer",))
        world.drawn(session, world.task(session), size=1)
    first = ask(store)
    settle(store, first["key"], ConsultResult(solution="1"))
    settle(store, first["critic"], ConsultResult(feedback=Feedback(text="no")))
    settle(store, first["other"], ConsultResult(feedback=Feedback(text="yes")))
    demote(store, "other", "retired")
    with store.transaction() as session:
        session.execute(update(ExpertRow).where(ExpertRow.name == "second").values(granted=[]))
    second = ask(store)["second"]
    assert [said.expert for said in second.request.ask.context] == ["critic"]
    settle(store, second, ConsultResult(solution="2"))
    said = {answer.expert: answer for answer in facts(store).answers}
    assert ([one.expert for one in said["second"].speakers], said["second"].weight) == (["second", "critic"], 1)


@pytest.mark.parametrize("how", ["probation", "paused", "retired", "weight 0"])
def test_a_verdict_that_stands_on_words_that_no_longer_count_is_none(store: Store, world: World, how: str) -> None:
    with store.transaction() as session:
        world.expert(session, "critic", kinds=(AnswerKind.FEEDBACK,), verifier=False, teaches=FEEDBACK)
        world.expert(session, "judge", needs_answers=True)
        drawn = world.drawn(session, world.task(session), size=2)
    first = []
    with store.transaction() as session:
        first += consultations.claim(session, session.scalars(select(ConsultationRow.id)).all(), lease_seconds=60)
    for question in first:
        settle(store, question, ConsultResult(feedback=Feedback(text="no")))
    with store.transaction() as session:
        one, other = consultations.claim(session, session.scalars(select(ConsultationRow.id)).all(), lease_seconds=60)
    settle(store, one, ConsultResult(score=1.0))
    demote(store, "critic", how)
    settle(store, other, ConsultResult(score=1.0))
    assert [read(store, row).score for row in drawn if row.id == other.rollout_id] == [None]
    with store.transaction() as session:
        loaded = lesson_facts.load(session, session.scalars(select(LessonRow)).all())
    assert {lesson.rollout_id: lesson.score for lesson in loaded} == {one.rollout_id: None}


def facts(store: Store) -> LessonFacts:
    """The one lesson there is, as a trainer reads it."""
    with store.transaction() as session:
        [one] = lesson_facts.load(session, session.scalars(select(LessonRow)).all())
        return one


def test_everybody_whose_words_a_second_expert_was_shown_is_named_with_its_registration(
    store: Store, world: World
) -> None:
    with store.transaction() as session:
        critic = world.expert(session, "critic", kinds=(AnswerKind.FEEDBACK,), verifier=False, teaches=FEEDBACK)
        teacher = world.expert(session, "teacher", kinds=SOLVES, verifier=False, needs_answers=True)
        world.drawn(session, world.task(session), size=1)
    settle(store, ask(store)["critic"], ConsultResult(feedback=Feedback(text="no")))
    settle(store, ask(store)["teacher"], ConsultResult(solution="yes"))
    said = {answer.expert: answer for answer in facts(store).answers}["teacher"]
    assert [(one.expert_id, one.expert_version, one.shown_to) for one in said.speakers] == [
        (teacher.id, "1", None),
        (critic.id, "1", said.id),
    ]
    assert said.weight == 1
    demote(store, "critic", "retired")
    weights = {answer.expert: answer.weight for answer in facts(store).answers}
    assert weights == {"critic": 0, "teacher": 0}, "what stands on words that no longer count does not count"


@pytest.mark.parametrize("how", ["paused", "retired", "weight 0"])
def test_a_verdict_that_no_longer_counts_trains_nothing(store: Store, world: World, how: str) -> None:
    with store.transaction() as session:
        world.expert(session, "judge")
        world.expert(session, "critic", kinds=(AnswerKind.FEEDBACK,), verifier=False, teaches=FEEDBACK)
        world.drawn(session, world.task(session), size=1)
    asked = ask(store)
    settle(store, asked["judge"], ConsultResult(score=1.0))
    settle(store, asked["critic"], ConsultResult(feedback=Feedback(text="no")))
    assert facts(store).score == 1.0
    demote(store, "judge", how)
    assert facts(store).score is None
    if how == "paused":
        with store.transaction() as session:
            session.execute(update(ExpertRow).where(ExpertRow.name == "judge").values(status="active"))
        assert facts(store).score == 1.0, "it counts again with its expert"


@pytest.mark.parametrize("how", WITHOUT_WEIGHT)
def test_the_human_queue_is_not_ordered_by_scores_without_weight(store: Store, world: World, how: str) -> None:
    with store.transaction() as session:
        world.expert(session, "first")
        world.expert(session, "second")
        world.expert(session, "newcomer", status="probation")
        [rollout] = world.drawn(session, world.task(session), size=1)
    asked = ask(store)
    settle(store, asked["first"], ConsultResult(score=0.25))
    settle(store, asked["newcomer"], ConsultResult(score=1.0))
    demote(store, "newcomer", how)
    settle(store, asked["second"], ConsultResult(score=0.5))
    with store.transaction() as session:
        assert session.scalar(select(ranking.read_disagreement(rollout.id))) == 0.25
        assert {o.expert for o in ranking.read_opinions(session, rollout.id) if o.counted} == {"first", "second"}


@pytest.mark.parametrize("how", ["paused", "retired"])
def test_items_are_ranked_again_when_an_expert_that_scored_them_loses_its_weight(
    store: Store, world: World, how: str
) -> None:
    with store.transaction() as session:
        world.expert(session, "first")
        world.expert(session, "second")
        world.expert(session, "human", kinds=SOLVES, verifier=False).group_fraction = 0
        [rollout] = world.drawn(session, world.task(session), size=1)
        corrections.ask_for(session, rollout.id)
    asked = ask(store)
    settle(store, asked["first"], ConsultResult(score=0.25))
    settle(store, asked["second"], ConsultResult(score=1.0))

    def disagreement() -> float:
        with store.transaction() as session:
            return session.scalars(select(CorrectionRow.disagreement)).one()

    assert disagreement() == 0.75
    demote(store, "second", how)
    assert disagreement() == 0


def test_an_expert_of_the_name_human_is_not_people(store: Store, world: World) -> None:
    with store.transaction() as session:
        row = world.expert(session, "human")
        row.own = None
        [rollout] = world.drawn(session, world.task(session), size=1)
        with pytest.raises(corrections.NoHumanExpert):
            corrections.ask_for(session, rollout.id)
    settle(store, ask(store)["human"], ConsultResult(score=0.5))
    with store.transaction() as session:
        assert [said.expert for said in ranking.read_opinions(session, rollout.id)] == ["human"]


def test_an_expert_that_has_become_another_goes_back_to_probation_and_the_trail_says_so(
    store: Store, world: World
) -> None:
    with store.transaction() as session:
        judge = world.expert(session, "judge")
        described = Descriptor.model_validate(judge.descriptor)
    with store.transaction() as session:
        [look] = experts.take_unseen(session, 8)
        assert (look.expert_id, look.descriptor) == (judge.id, described)
        assert experts.take_unseen(session, 8) == []
        assert not experts.note_changed(session, judge.id, described)
        assert experts.note_changed(session, judge.id, described.model_copy(update={"domains": ["code/*"]}))
    with store.transaction() as session:
        row = experts.get(session, judge.id)
        assert (row.status, "register it again" in (row.reason or "")) == ("probation", True)
        assert session.scalars(select(AuditRow.action)).all() == ["experts.changed"]
        row.report = {"endpoint": "", "descriptor": row.descriptor, "checks": []}
        experts.activate(session, judge.id)
    with store.transaction() as session:
        [look] = experts.take_unseen(session, 8)
        assert look.expert_id == judge.id, "it is looked at again as soon as it is active"
