"""Where a black box is asked to go on: the draw, its probabilities, and what is kept of them."""

import math
from itertools import pairwise

import pytest
from sqlalchemy import select, update

from services.contracts.answers import AnswerKind, Continuation, SamplesDistribution
from services.contracts.experts import ConsultResult
from services.contracts.ids import new_id
from services.contracts.rollouts import Purpose, Sampling
from services.store.core.transaction import Store
from services.store.loop import answers, consultations, groups, rollouts, settling, tasks
from services.store.loop.consultations import ClaimedConsultation
from services.store.loop.prefixes import Places, choose, draw, find_probabilities
from services.store.tables.loop import AnswerRow, ConsultationRow, ExpertRow, RolloutRow
from tests.store.conftest import TOKENIZER, World


def every_draw(probabilities: list[float]) -> list[tuple[float, list[int]]]:
    """All the sets that may be drawn, each with how much of [0, 1) leads to it."""
    ends = [math.fsum(probabilities[: i + 1]) % 1 for i in range(len(probabilities))]
    cuts = sorted({0.0, 1.0, *(end for end in ends if 1e-9 < end < 1 - 1e-9)})
    return [(high - low, draw(probabilities, (low + high) / 2)) for low, high in pairwise(cuts)]


def test_half_of_a_places_chance_is_even_and_half_goes_by_surprisal() -> None:
    assert find_probabilities([3.0, 1.0, 0.0, 0.0], 1) == pytest.approx([0.125 + 0.375, 0.125 + 0.125, 0.125, 0.125])
    assert find_probabilities([0.0, 0.0, 0.0, 0.0], 1) == pytest.approx([0.25] * 4)


def test_a_place_too_heavy_to_be_left_out_is_certain_and_the_others_share_the_rest() -> None:
    # weights 1/8 + (8, 1, 1, 0) / 20; of three places the first would have 1.575, and is certain; the others share two
    assert find_probabilities([8.0, 1.0, 1.0, 0.0], 3) == pytest.approx(
        [1, 2 * 0.175 / 0.475, 2 * 0.175 / 0.475, 2 * 0.125 / 0.475]
    )


@pytest.mark.parametrize(
    ("surprisals", "num_places"),
    [([2.0, 0.1, 0.0, 1.0, 5.0], 1), ([2.0, 0.1, 0.0, 1.0, 5.0], 2), ([0.0, 9.0, 0.0, 0.3], 3), ([0.0] * 6, 4)],
)
def test_over_every_draw_each_cost_divided_by_its_probability_adds_up_to_the_sum_of_all(
    surprisals: list[float], num_places: int
) -> None:
    probabilities = find_probabilities(surprisals, num_places)
    assert min(probabilities) > 0
    draws = every_draw(probabilities)
    assert math.fsum(chance for chance, _ in draws) == pytest.approx(1)
    assert {len(drawn) for _, drawn in draws} == {num_places}
    included = [math.fsum(chance for chance, drawn in draws if i in drawn) for i in range(len(surprisals))]
    assert included == pytest.approx(probabilities)
    costs = [0.7, 0.2, 1.9, 0.4, 3.0, 0.05][: len(surprisals)]
    expected = math.fsum(chance * sum(costs[i] / probabilities[i] for i in drawn) for chance, drawn in draws)
    assert expected == pytest.approx(sum(costs))


def test_only_places_before_tokens_that_the_policy_chose_are_asked_about() -> None:
    mask, logprobs = [False, True, True, False, True, False], [-9.0, -1.0, -1.0, -9.0, -2.0, -9.0]
    assert choose(mask, logprobs, 8, 0.3) == Places([1, 2, 4], []), "all of them: nothing was drawn"
    for start in (0.0, 0.2, 0.4, 0.6, 0.8):
        places = choose(mask, logprobs, 2, start)
        assert set(places.prefixes) < {1, 2, 4}
        # weights 1/6 + (1, 1, 2) / 8, two places drawn
        chances = {1: 7 / 12, 2: 7 / 12, 4: 5 / 6}
        assert places.probabilities == pytest.approx([chances[prefix] for prefix in places.prefixes])


def test_without_the_samplers_logprobs_all_places_are_alike() -> None:
    assert choose([True] * 4, None, 1, 0.6) == Places([2], [0.25])


# --- in the store --------------------------------------------------------------------------------------------------


def put_black_box(store: Store, world: World, num_places: int = 2) -> ClaimedConsultation:
    """What a black box is asked about a rollout of four tokens, the third of them not the policy's."""
    with store.transaction() as session:
        box = world.expert(session, "box", kinds=(AnswerKind.SAMPLES,), verifier=False)
        box.num_places, box.num_samples = num_places, 3
        task = world.task(session)
        group = groups.add(session, task, purpose=Purpose.TRAIN, size=1, sampling=Sampling())
        [begun] = groups.claim(session, [group.id], lease_seconds=60)
        row = groups.finish(session, begun, "base")
        assert row is not None
        new = rollouts.NewRollout(
            id=new_id(),
            task=tasks.to_known(task),
            purpose="train",
            group_id=row.id,
            index_in_group=0,
            policy_version="base",
            prompt_token_ids=[7],
            token_ids=[1, 2, 3, 4],
            sampler_logprobs=[-1.0, -1.0, -9.0, -2.0],
            action_mask=[True, True, False, True],
            tokenizer_hash=TOKENIZER,
            sampling={},
            text="answer",
            finish_reason="stop",
        )
        [opened] = rollouts.store(session, world.lineage_id, [new]).opened
        [question] = consultations.claim(session, [opened], lease_seconds=60)
        return question


def go_on(question: ClaimedConsultation, num_places: int, probabilities: list[float] | None = None) -> ConsultResult:
    """Samples at so many of the places asked for."""
    asked = question.request.ask.prefixes[:num_places]
    continuations = [[Continuation(token_ids=[5])] * question.request.ask.num_samples for _ in asked]
    samples = SamplesDistribution(
        tokenizer_hash=TOKENIZER, prefixes=asked, continuations=continuations, probabilities=probabilities
    )
    return ConsultResult(distribution=samples)


def kept(store: Store, question: ClaimedConsultation, result: ConsultResult) -> SamplesDistribution:
    with store.transaction() as session:
        settling.settle(session, question, result)
        found = answers.distribution(session, session.scalars(select(AnswerRow.id)).one())
        assert isinstance(found, SamplesDistribution)
        return found


@pytest.mark.integration
def test_a_black_box_is_asked_at_drawn_places_and_the_probabilities_are_kept_with_its_answer(
    store: Store, world: World
) -> None:
    question = put_black_box(store, world)
    ask = question.request.ask
    assert len(ask.prefixes) == 2
    assert set(ask.prefixes) < {0, 1, 3}
    assert ask.num_samples == 3
    chances = {0: 7 / 12, 1: 7 / 12, 3: 5 / 6}
    assert ask.probabilities == pytest.approx([chances[prefix] for prefix in ask.prefixes])
    found = kept(store, question, go_on(question, 2, probabilities=[0.5, 0.5]))
    assert found.probabilities == pytest.approx(ask.probabilities), "ours, whatever the expert says"


@pytest.mark.integration
def test_a_black_box_that_answers_at_some_of_the_places_chose_them_itself(store: Store, world: World) -> None:
    question = put_black_box(store, world)
    assert kept(store, question, go_on(question, 1)).probabilities is None


@pytest.mark.integration
def test_where_every_place_is_asked_nothing_was_drawn(store: Store, world: World) -> None:
    question = put_black_box(store, world, num_places=8)
    assert (question.request.ask.prefixes, question.request.ask.probabilities) == ([0, 1, 3], [])
    assert kept(store, question, go_on(question, 3)).probabilities is None


@pytest.mark.integration
def test_an_expert_that_gives_no_samples_is_asked_at_no_place(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session, "judge")
        world.drawn(session, world.task(session), size=1)
        [question] = consultations.claim(session, session.scalars(select(ConsultationRow.id)).all(), lease_seconds=60)
    assert (question.request.ask.prefixes, question.request.ask.num_samples) == ([], 1)


@pytest.mark.integration
def test_an_expert_of_the_second_stage_is_asked_at_drawn_places_too(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session, "judge")
        box = world.expert(session, "box", kinds=(AnswerKind.SAMPLES,), verifier=False, needs_answers=True)
        session.execute(update(ExpertRow).where(ExpertRow.id == box.id).values(num_places=1))
        world.drawn(session, world.task(session), size=1)
        [first] = consultations.claim(session, session.scalars(select(ConsultationRow.id)).all(), lease_seconds=60)
    with store.transaction() as session:
        settling.settle(session, first, ConsultResult(score=1.0))
    with store.transaction() as session:
        [second] = consultations.claim(session, session.scalars(select(ConsultationRow.id)).all(), lease_seconds=60)
        assert session.scalars(select(RolloutRow.sampler_logprobs)).one() == [-0.5, -0.5, -0.5]
    assert len(second.request.ask.prefixes) == 1
    assert second.request.ask.probabilities == pytest.approx([1 / 3])
    assert second.request.ask.context
