"""The verdict on a rollout: whose score it is, when it came, and what it changes."""

from uuid import UUID

import pytest
from sqlalchemy import select

from services.contracts.answers import AnswerKind, Feedback
from services.contracts.corrections import CorrectionSubmit
from services.contracts.experts import ConsultLater, ConsultResult
from services.contracts.ids import new_id
from services.contracts.persons import Role
from services.store.core.transaction import Store
from services.store.corrections import claims, corrections, undo
from services.store.ledger import lesson_facts, lessons, updates
from services.store.ledger.lesson_facts import LessonFacts
from services.store.loop import consultations, experts, rollouts, settling
from services.store.loop.consultations import ClaimedConsultation
from services.store.people import persons
from services.store.tables.corrections import CorrectionRow
from services.store.tables.ledger import LessonAnswerRow, LessonRow
from services.store.tables.loop import AnswerRow, ConsultationRow, RolloutRow
from tests.rows import start_update
from tests.store.conftest import World

pytestmark = pytest.mark.integration

OWNER = UUID(int=9)


def ask(store: Store) -> dict[str, ClaimedConsultation]:
    """Claim every pending question, by its expert's name."""
    with store.transaction() as session:
        ids = session.scalars(select(ConsultationRow.id)).all()
        return {each.expert_name: each for each in consultations.claim(session, ids, lease_seconds=60)}


def settle(store: Store, question: ClaimedConsultation, outcome: settling.Outcome) -> None:
    with store.transaction() as session:
        settling.settle(session, question, outcome)


def settle_late(store: Store, question: ClaimedConsultation, outcome: ConsultResult) -> None:
    with store.transaction() as session:
        settling.settle_late(session, question.consultation_id, outcome)


def score_of(store: Store, rollout: RolloutRow) -> float | None:
    with store.transaction() as session:
        return rollouts.get(session, rollout.id).score


def decide(store: Store, rollout: RolloutRow, said: CorrectionSubmit) -> tuple[UUID, UUID]:
    """The item that a person was asked for and decided, and the person."""
    with store.transaction() as session:
        person, _ = persons.create(session, f"ann {new_id()}", Role.ANNOTATOR)
        item = corrections.ask_for(session, rollout.id).id
        claims.claim_one(session, item, person.id)
        corrections.submit(session, item, person.id, said)
        return item, person.id


def load(store: Store) -> LessonFacts:
    """The lesson that is not late, as a trainer reads it."""
    with store.transaction() as session:
        [one] = lesson_facts.load(session, session.scalars(select(LessonRow).where(~LessonRow.late)).all())
        return one


def judged_by(facts: LessonFacts) -> list[str]:
    return [answer.expert for answer in facts.judges]


def put_rollout(store: Store, world: World, *names: str) -> RolloutRow:
    """A rollout that verifiers of these names and people are asked about."""
    with store.transaction() as session:
        for name in names:
            world.expert(session, name)
        world.expert(session, "human", kinds=(AnswerKind.SOLUTION, AnswerKind.SCORE), verifier=False).group_fraction = 0
        [rollout] = world.drawn(session, world.task(session), size=1)
    return rollout


FINE = CorrectionSubmit(verdict="fine")
WRONG = CorrectionSubmit(verdict="corrected", text="better")


def test_a_verdict_that_comes_late_counts_and_the_queue_follows_it(store: Store, world: World) -> None:
    rollout = put_rollout(store, world, "judge", "slow")
    with store.transaction() as session:
        corrections.ask_for(session, rollout.id)
    asked = ask(store)
    settle(store, asked["slow"], ConsultLater())
    settle(store, asked["judge"], ConsultResult(score=1.0))
    assert score_of(store, rollout) == 1.0
    settle_late(store, asked["slow"], ConsultResult(score=0.25))
    assert score_of(store, rollout) == 0.25
    with store.transaction() as session:
        assert session.scalars(select(CorrectionRow.disagreement)).one() == 0.75
    assert (load(store).score, judged_by(load(store))) == (0.25, ["judge", "slow"])


def test_the_only_verdict_may_come_late(store: Store, world: World) -> None:
    rollout = put_rollout(store, world, "slow")
    asked = ask(store)
    settle(store, asked["slow"], ConsultLater())
    assert score_of(store, rollout) is None
    settle_late(store, asked["slow"], ConsultResult(score=1.0))
    assert score_of(store, rollout) == 1.0


@pytest.mark.parametrize(("verifier", "said", "score"), [(1.0, WRONG, 0.0), (0.0, FINE, 1.0), (1.0, FINE, 1.0)])
def test_where_a_verifier_and_a_person_disagree_the_person_has_the_last_word(
    store: Store, world: World, verifier: float, said: CorrectionSubmit, score: float
) -> None:
    rollout = put_rollout(store, world, "judge")
    settle(store, ask(store)["judge"], ConsultResult(score=verifier))
    decide(store, rollout, said)
    assert score_of(store, rollout) == score
    assert (load(store).score, judged_by(load(store))) == (score, ["human"])


def test_a_person_who_decides_before_the_verifiers_has_the_last_word_too(store: Store, world: World) -> None:
    rollout = put_rollout(store, world, "judge")
    asked = ask(store)
    decide(store, rollout, WRONG)
    settle(store, asked["judge"], ConsultResult(score=1.0))
    assert score_of(store, rollout) == 0.0


def test_a_decision_that_is_taken_back_leaves_the_verifiers_verdict(store: Store, world: World) -> None:
    rollout = put_rollout(store, world, "judge")
    settle(store, ask(store)["judge"], ConsultResult(score=1.0))
    item, person = decide(store, rollout, WRONG)
    assert score_of(store, rollout) == 0.0
    with store.transaction() as session:
        undo.take_back(session, item, person)
    assert score_of(store, rollout) == 1.0
    assert (load(store).score, judged_by(load(store))) == (1.0, ["judge"])


def test_a_persons_word_stops_counting_with_the_expert_behind_the_queue(store: Store, world: World) -> None:
    rollout = put_rollout(store, world, "judge")
    settle(store, ask(store)["judge"], ConsultResult(score=1.0))
    decide(store, rollout, WRONG)
    with store.transaction() as session:
        human = session.scalars(select(AnswerRow.expert_id).where(AnswerRow.score == 0)).one()
        experts.pause(session, human, "by hand")
    assert (load(store).score, judged_by(load(store))) == (1.0, ["judge"])


def test_a_score_of_an_expert_that_is_no_verifier_is_no_verdict(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session, "judge")
        world.expert(session, "critic", verifier=False)
        [rollout] = world.drawn(session, world.task(session), size=1)
    asked = ask(store)
    settle(store, asked["critic"], ConsultLater())
    settle(store, asked["judge"], ConsultResult(score=1.0))
    settle_late(store, asked["critic"], ConsultResult(score=0.0))
    assert score_of(store, rollout) == 1.0
    assert judged_by(load(store)) == ["judge"]


def test_a_late_score_never_changes_the_answers_that_a_claimed_lesson_is_made_of(store: Store, world: World) -> None:
    put_rollout(store, world, "judge", "slow")
    asked = ask(store)
    settle(store, asked["slow"], ConsultLater())
    settle(store, asked["judge"], ConsultResult(score=1.0, feedback=Feedback(text="right")))
    with store.transaction() as session:
        rows = lessons.claim(session, world.lineage_id, OWNER, num_rollouts=8, max_late=8, lease_seconds=60)
        claimed = lesson_facts.load(session, rows)
        begun = start_update(session, world.lineage_id, OWNER, [row.id for row in rows]).id
    settle_late(store, asked["slow"], ConsultResult(score=0.0, feedback=Feedback(text="wrong")))
    assert [(one.score, [said.expert for said in one.answers]) for one in claimed] == [(1.0, ["judge"])]
    with store.transaction() as session:
        found = session.execute(
            select(LessonRow.late, LessonRow.status, AnswerRow.score)
            .join(LessonAnswerRow, LessonAnswerRow.lesson_id == LessonRow.id)
            .join(AnswerRow, AnswerRow.id == LessonAnswerRow.answer_id)
            .order_by(LessonRow.late)
        ).all()
        assert [tuple(row) for row in found] == [(False, "claimed", 1.0), (True, "ready", 0.0)]
        updates.abandon(session, begun, "the trainer stopped")
    again = load(store)
    assert [said.expert for said in again.answers] == ["judge"], "the same answers, claimed anew"
    assert (again.score, judged_by(again)) == (0.0, ["judge", "slow"]), "under the verdict as it is now"
