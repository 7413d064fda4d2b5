"""Scores of experts that are no verifiers: how well they tell right from wrong, and what they may do then."""

from datetime import timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerContent, AnswerKind, Feedback
from services.contracts.calibrations import Calibration
from services.contracts.ids import new_id
from services.store.core.transaction import Store
from services.store.ledger import lesson_facts
from services.store.ledger.lesson_facts import LessonFacts
from services.store.loop import opinions, rollouts
from services.store.tables.ledger import LessonRow
from services.store.tables.loop import ExpertRow, RolloutRow
from tests.rows import say
from tests.store.conftest import World

pytestmark = pytest.mark.integration

PROSE = "prose"
READS = (AnswerKind.SCORE, AnswerKind.FEEDBACK)


def expert(
    session: Session, world: World, name: str, kinds: tuple[AnswerKind, ...] = READS, *, verifier: bool = False
) -> ExpertRow:
    """An expert that is asked only by hand."""
    row = world.expert(session, name, kinds=kinds, verifier=verifier)
    row.group_fraction = 0
    row.own = name if name in ("human", "self-evaluation") else None
    return row


def put_seen(
    store: Store, world: World, judge: str, thinker: str, scores: list[tuple[float, float]], domain: str = PROSE
) -> None:
    """Two rollouts a task, each with the thinker's score and the judge's verdict."""
    with store.transaction() as session:
        by_name = {row.name: row for row in session.scalars(select(ExpertRow))}
        for number in range(0, len(scores), 2):
            both = scores[number : number + 2]
            task = world.task(session, f"{domain} {judge} {new_id()}", domain=domain)
            for rollout, (score, verdict) in zip(world.drawn(session, task, size=len(both)), both, strict=True):
                evidence = {"signals": {"p_yes": 1 - score, "not a number": "x", "beyond": 7}}
                say(session, rollout, by_name[thinker], AnswerContent(score=score, evidence=evidence))
                say(session, rollout, by_name[judge], AnswerContent(score=verdict))


RIGHT_WAY = [(0.9, 1.0), (0.2, 0.0)] * 8
WRONG_WAY = [(0.2, 1.0), (0.9, 0.0)] * 8
EASY_OR_HARD = [(0.9, 1.0)] * 8 + [(0.2, 0.0)] * 8
"""Tells right from wrong only between tasks."""


def read(store: Store, world: World) -> dict[tuple[str, str], Calibration]:
    with store.transaction() as session:
        return {(one.domain, one.signal): one for one in opinions.read(session, world.lineage_id).calibrations}


def put_lesson(store: Store, world: World, scores: list[float], thinker: str = "self-evaluation") -> list[LessonFacts]:
    """A new group in the domain of prose, with the thinker's score and remark about each, as a trainer reads it."""
    with store.transaction() as session:
        by = session.scalars(select(ExpertRow).where(ExpertRow.name == thinker)).one()
        drawn = world.drawn(session, world.task(session, "new", domain=PROSE), size=len(scores))
        for rollout, score in zip(drawn, scores, strict=True):
            said = say(session, rollout, by, AnswerContent(score=score, feedback=Feedback(text="so so")))
            rollouts.open_lesson(session, rollout, [said], late=False)
        return lesson_facts.load(session, session.scalars(select(LessonRow).order_by(LessonRow.id)).all())


def test_a_score_is_measured_by_domain_and_signal_against_verifiers_and_people(store: Store, world: World) -> None:
    with store.transaction() as session:
        for name in ("human", "self-evaluation"):
            expert(session, world, name)
        expert(session, world, "tests", verifier=True)
    put_seen(store, world, "human", "self-evaluation", RIGHT_WAY)
    put_seen(store, world, "tests", "self-evaluation", WRONG_WAY[:8], domain="math")
    found = read(store, world)
    assert found.keys() == {(domain, signal) for domain in ("math", PROSE) for signal in ("score", "p_yes")}
    prose = found[PROSE, "score"]
    assert (prose.num_answers, prose.num_passed, prose.num_tasks, prose.auc) == (16, 8, 8, 1.0)
    assert prose.num_mixed_tasks == 8
    assert prose.auc_low == pytest.approx(0.05 ** (1 / 8)), "the first look errs in 5 %"
    assert prose.brier == pytest.approx((8 * 0.01 + 8 * 0.04) / 16)
    assert prose.brier_of_mean == 0.25
    assert prose.is_calibrated
    assert (found[PROSE, "p_yes"].auc, found[PROSE, "p_yes"].is_calibrated) == (0.0, False)
    assert (found["math", "score"].auc, found["math", "p_yes"].auc) == (0.0, 1.0)
    assert (found["math", "score"].num_passed, found["math", "p_yes"].auc_low) == (4, None), "8 answers are too few"


def test_a_verdict_on_a_score_holds_until_its_answers_have_doubled(store: Store, world: World) -> None:
    with store.transaction() as session:
        for name in ("human", "self-evaluation"):
            expert(session, world, name)
    put_seen(store, world, "human", "self-evaluation", RIGHT_WAY)
    first = read(store, world)[PROSE, "score"]
    put_seen(store, world, "human", "self-evaluation", WRONG_WAY[:14])
    assert read(store, world)[PROSE, "score"] == first, "30 answers: the figures are those of the look at 16"
    put_seen(store, world, "human", "self-evaluation", WRONG_WAY[14:])
    second = read(store, world)[PROSE, "score"]
    assert (second.num_answers, second.num_mixed_tasks, second.auc) == (32, 16, 0.5), "8 tasks right, 8 wrong"
    assert (first.is_calibrated, second.is_calibrated) == (True, False)
    with store.transaction() as session:
        thinker = session.scalars(select(ExpertRow).where(ExpertRow.name == "self-evaluation")).one()
        assert opinions.read_of(session, thinker) == list(opinions.read(session, world.lineage_id).calibrations)


def test_of_an_expert_with_many_scores_the_newest_are_read_that_were_known_when_its_age_last_doubled(
    store: Store, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.transaction() as session:
        for name in ("human", "self-evaluation"):
            expert(session, world, name)
    put_seen(store, world, "human", "self-evaluation", WRONG_WAY)
    put_seen(store, world, "human", "self-evaluation", RIGHT_WAY)
    assert read(store, world)[PROSE, "score"].auc == 0.5
    monkeypatch.setattr(opinions, "NEWEST_READ", 16)
    newest = read(store, world)[PROSE, "score"]
    assert (newest.num_answers, newest.auc) == (16, 1.0)
    assert newest.auc_low == pytest.approx(0.05 ** (1 / 8)), "the first look of all errs in 5 %"
    with store.transaction() as session:
        thinker = session.scalars(select(ExpertRow).where(ExpertRow.name == "self-evaluation")).one()
        thinker.created_at -= timedelta(seconds=65)
    assert read(store, world) == {}, "at the age of 60 seconds there was no score yet"


def test_where_no_verifier_exists_a_calibrated_score_tells_how_likely_a_rollout_is_right(
    store: Store, world: World
) -> None:
    with store.transaction() as session:
        for name in ("human", "self-evaluation"):
            expert(session, world, name)
    put_seen(store, world, "human", "self-evaluation", RIGHT_WAY)
    found = put_lesson(store, world, [0.95, 0.55, 0.1])
    told = [(one.opinion.chance, one.opinion.answer.expert) for one in found if one.opinion is not None]
    assert told == [(1.0, "self-evaluation"), (pytest.approx(0.5), "self-evaluation"), (0.0, "self-evaluation")]
    assert [one.score for one in found] == [None] * 3, "a likelihood is no verdict and no reward"
    with store.transaction() as session:
        assert session.scalars(select(RolloutRow.score).where(RolloutRow.score.is_not(None))).all() == []


def test_where_a_verifier_exists_or_a_verdict_was_given_no_opinion_stands_in(store: Store, world: World) -> None:
    with store.transaction() as session:
        for name in ("human", "self-evaluation"):
            expert(session, world, name)
    put_seen(store, world, "human", "self-evaluation", RIGHT_WAY)
    assert [one.opinion is None for one in put_lesson(store, world, [0.95, 0.95])] == [False, False]
    with store.transaction() as session:
        human = session.scalars(select(ExpertRow).where(ExpertRow.name == "human")).one()
        first, *_ = session.scalars(select(LessonRow).order_by(LessonRow.id)).all()
        say(session, session.get_one(RolloutRow, first.rollout_id), human, AnswerContent(score=0.0))
        found = lesson_facts.load(session, session.scalars(select(LessonRow).order_by(LessonRow.id)).all())
        assert [(one.score, one.opinion is None) for one in found] == [(0.0, True), (None, False)]
        expert(session, world, "tests", verifier=True)
        found = lesson_facts.load(session, session.scalars(select(LessonRow).order_by(LessonRow.id)).all())
        assert [one.opinion for one in found] == [None, None]


@pytest.mark.parametrize("scores", [WRONG_WAY, RIGHT_WAY[:14], EASY_OR_HARD, [(0.9, 1.0)] * 16, []])
def test_a_score_that_is_not_known_to_tell_right_from_wrong_stands_in_for_nothing(
    store: Store, world: World, scores: list[tuple[float, float]]
) -> None:
    with store.transaction() as session:
        for name in ("human", "self-evaluation"):
            expert(session, world, name)
    put_seen(store, world, "human", "self-evaluation", scores)
    assert [one.opinion for one in put_lesson(store, world, [0.95])] == [None]


@pytest.mark.parametrize(("scores", "weight"), [(RIGHT_WAY, 1.0), (WRONG_WAY, 0.0), ([], 0.0)])
def test_what_the_policy_says_of_itself_has_no_weight_until_it_tells_right_from_wrong(
    store: Store, world: World, scores: list[tuple[float, float]], weight: float
) -> None:
    with store.transaction() as session:
        for name in ("human", "self-evaluation"):
            expert(session, world, name)
    put_seen(store, world, "human", "self-evaluation", scores)
    [found] = put_lesson(store, world, [0.95])
    assert [said.weight for said in found.answers] == [weight]
    with store.transaction() as session:
        session.scalars(select(ExpertRow).where(ExpertRow.name == "self-evaluation")).one().own = None
        [stranger] = lesson_facts.load(session, session.scalars(select(LessonRow)).all())
    assert [said.weight for said in stranger.answers] == [1.0], "another expert's words are measured by their gap"


def test_where_verifiers_judge_a_score_of_the_policys_own_has_no_weight_and_a_remark_has_if_it_is_calibrated(
    store: Store, world: World
) -> None:
    with store.transaction() as session:
        expert(session, world, "tests", verifier=True)
        thinker = expert(session, world, "self-evaluation")
        lesson_ids = []
        for feedback in (None, Feedback(text="so so")):
            [rollout] = world.drawn(session, world.task(session, f"new {feedback}", domain=PROSE), size=1)
            said = say(session, rollout, thinker, AnswerContent(score=0.9, feedback=feedback))
            lesson_ids.append(rollouts.open_lesson(session, rollout, [said], late=False).id)

    def read_weights() -> list[float]:
        with store.transaction() as session:
            loaded = [lesson_facts.load(session, [session.get_one(LessonRow, one)]) for one in lesson_ids]
        return [answer.weight for [lesson] in loaded for answer in lesson.answers]

    assert read_weights() == [0.0, 0.0]
    put_seen(store, world, "tests", "self-evaluation", RIGHT_WAY)
    assert read_weights() == [0.0, 1.0]


def test_of_two_calibrated_experts_the_surer_one_is_heard(store: Store, world: World) -> None:
    with store.transaction() as session:
        for name in ("human", "self-evaluation", "critic"):
            expert(session, world, name)
    put_seen(store, world, "human", "critic", RIGHT_WAY)
    put_seen(store, world, "human", "self-evaluation", RIGHT_WAY * 2)
    with store.transaction() as session:
        thinker = session.scalars(select(ExpertRow).where(ExpertRow.name == "self-evaluation")).one()
        critic = session.scalars(select(ExpertRow).where(ExpertRow.name == "critic")).one()
        [rollout] = world.drawn(session, world.task(session, "new", domain=PROSE), size=1)
        said = [say(session, rollout, by, AnswerContent(score=0.9)) for by in (critic, thinker)]
        rollouts.open_lesson(session, rollout, said, late=False)
        [found] = lesson_facts.load(session, session.scalars(select(LessonRow)).all())
    assert found.opinion is not None
    assert found.opinion.answer.expert == "self-evaluation"
