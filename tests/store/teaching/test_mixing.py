"""The measurement of a distribution, from train rollouts that were scored: nothing is drawn for it."""

import math
from uuid import UUID

import pytest
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerKind, TopKDistribution
from services.contracts.experts import ConsultResult
from services.contracts.measurements import MeasurementStatus
from services.contracts.rollouts import Sampling
from services.contracts.sources import ContextSource
from services.contracts.templates import Template
from services.store.core.transaction import Store
from services.store.loop import consultations, settling, standing
from services.store.tables.loop import ConsultationRow, ExpertRow, RolloutRow
from services.store.tables.teaching import MeasurementRow
from services.store.teaching import consequences, measurements, mixing
from services.store.teaching.candidates import Ages
from services.store.teaching.rounds import Rules
from tests.store.conftest import TOKENIZER, World

RULES = Rules(
    Sampling(temperature=0.5),
    seed=0,
    share=0.2,
    max_tokens=1000,
    num_precedents=1,
    ages=Ages(32, 1000),
    promote=False,
)
LIKES, DISLIKES = -0.1, -3.0
"""Its log-probability of each of the rollout's tokens; the policy's is -0.5."""


def top_k(logprob: float) -> TopKDistribution:
    rows = [[1], [2], [3]]
    return TopKDistribution(
        tokenizer_hash=TOKENIZER,
        token_ids=rows,
        logprobs=[[logprob]] * 3,
        tail_mass=[1 - math.exp(logprob)] * 3,
    )


def draw(session: Session, world: World, key: str, *, likes: str, scores: tuple[float, float] = (1.0, 0.0)) -> None:
    """A group of two with these scores, of which the expert `larger` likes the first or the second rollout."""
    rows = world.drawn(session, world.task(session, key), size=2)
    for place, row in enumerate(rows):
        for asked in session.query(ConsultationRow).filter_by(rollout_id=row.id).all():
            expert = session.get_one(ExpertRow, asked.expert_id)
            [claimed] = consultations.claim(session, [asked.id], lease_seconds=60)
            is_liked = likes == ("first", "second")[place]
            content = (
                ConsultResult(score=scores[place])
                if expert.name == "judge"
                else ConsultResult(distribution=top_k(LIKES if is_liked else DISLIKES))
            )
            settling.settle(session, claimed, content)


@pytest.mark.parametrize("drawn_at", [0.5, None])
def test_a_distribution_at_another_temperature_than_the_rollouts_is_not_measured_and_the_reason_says_so(
    store: Store, world: World, drawn_at: float | None
) -> None:
    with store.transaction() as session:
        row = begin(session, world)
        for n in range(8):
            draw(session, world, f"t{n}", likes="first")
        assert len(mixing.find_gains(session, row, 8)) == 8
        assert mixing.say_unmatched(session, row) is None
        for one in session.query(RolloutRow).all():
            one.sampling = None if drawn_at is None else {"temperature": drawn_at}
        advance(session, world)

        assert mixing.find_gains(session, row, 8) == []
        assert (row.status, row.num_tasks) == ("measuring", 0)
        assert row.reason is not None
        assert row.reason.startswith("its distributions are at temperature 1, and the rollouts were drawn at")
        assert not is_counted(session, world, row.expert_id)


def begin(session: Session, world: World) -> MeasurementRow:
    world.expert(session)
    larger = world.expert(session, "larger", kinds=(AnswerKind.TOPK,), verifier=False)
    return world.measured(
        session,
        larger.id,
        MeasurementStatus.MEASURING,
        source=ContextSource.DISTRIBUTION,
        template=Template.TURNS,
        low=None,
    )


def advance(session: Session, world: World) -> None:
    measurements.advance(session, world.lineage_id, RULES, is_sampling=False, may_draw=False)
    session.flush()


def test_the_gain_is_read_from_the_groups_whose_verdicts_differ(store: Store, world: World) -> None:
    with store.transaction() as session:
        row = begin(session, world)
        draw(session, world, "a", likes="first")
        draw(session, world, "b", likes="second")
        draw(session, world, "c", likes="first", scores=(1.0, 1.0))

        assert mixing.find_gains(session, row, 3) == [0.0, 0.0], "too few"
        found = mixing.find_gains(session, row, 2)

    # three tokens each: the better one times e^.4 - 1, less the worse one times e^-2.5 - 1; the mean of two
    up, down = 3 * (math.exp(0.4) - 1), 3 * (math.exp(-2.5) - 1)
    assert found == pytest.approx([(up - down) / 2, (down - up) / 2], rel=1e-3)


@pytest.mark.parametrize(("likes", "status"), [("first", "teaches"), ("second", "does_not_teach")])
def test_after_eight_tasks_a_distribution_teaches_if_it_likes_what_passed(
    store: Store, world: World, likes: str, status: str
) -> None:
    with store.transaction() as session:
        row = begin(session, world)
        for n in range(7):
            draw(session, world, f"t{n}", likes=likes)
        advance(session, world)
        assert (row.status, row.num_tasks) == ("measuring", 0)

        draw(session, world, "t7", likes=likes)
        advance(session, world)

        assert (row.status, row.num_tasks, row.num_tokens, row.net) == (status, 8, 0, None)
        assert is_counted(session, world, row.expert_id) == (status == "teaches")
        assert session.get_one(ExpertRow, row.expert_id).status == ("active" if status == "teaches" else "probation")


def is_counted(session: Session, world: World, expert_id: UUID) -> bool:
    return standing.read(session, world.lineage_id).teaches(expert_id, ContextSource.DISTRIBUTION, "math")


def test_a_distribution_is_measured_again_on_what_was_answered_since(store: Store, world: World) -> None:
    with store.transaction() as session:
        row = begin(session, world)
        for n in range(8):
            draw(session, world, f"t{n}", likes="first")
    with store.transaction() as session:
        advance(session, world)
    with store.transaction() as session:
        assert is_counted(session, world, row.expert_id)
        again = world.measured(
            session,
            row.expert_id,
            MeasurementStatus.MEASURING,
            source=ContextSource.DISTRIBUTION,
            template=Template.TURNS,
            low=None,
        )
        assert mixing.find_gains(session, again, 1) == []
        draw(session, world, "later", likes="second")
        [gain] = mixing.find_gains(session, again, 1)
    assert gain < 0


def test_an_expert_that_gives_only_scores_is_never_sent_back_for_what_was_not_measured(
    store: Store, world: World
) -> None:
    with store.transaction() as session:
        judge = world.expert(session, verifier=False)
        consequences.apply(session, [judge.id], promote=False)
        assert (judge.status, judge.reason) == ("active", None)
