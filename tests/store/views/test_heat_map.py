"""The heat map of a rollout: what each token cost, what came after it, and what others would have said."""

import math

import numpy as np
import pytest
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerKind, Continuation, SamplesDistribution, TopKDistribution
from services.store.core.transaction import Store
from services.store.ledger import distributions
from services.store.ledger.distributions import TopK
from services.store.loop import vocabularies
from services.store.tables.ledger import TeacherChoicesRow, UpdateLessonRow
from services.store.tables.loop import AnswerRow, ExpertRow, RolloutRow
from services.store.views import heat_map
from services.store.views.heat_map import Choice
from tests.store.conftest import TOKENIZER, World
from tests.store.views.test_views import answered, lesson, update

TEXTS = ["<end>", "one", " two", " three", "four"]


def test_the_cost_to_go_of_a_token_is_the_sum_of_the_later_costs() -> None:
    assert heat_map.sum_later([1.0, 2.0, 4.0]) == [6.0, 4.0, 0.0]
    assert heat_map.sum_later([]) == []


def test_heat_grows_with_the_root_of_the_cost_up_to_the_hottest() -> None:
    assert [heat_map.measure_heat(cost, 4.0) for cost in (None, 0.0, -1.0, 1.0, 4.0, 9.0)] == [0, 0, 0, 4, 9, 9]


def rollout(session: Session, world: World) -> RolloutRow:
    """Tokens 1, 2, 3, the second of them given by a tool."""
    vocabularies.add(session, TOKENIZER, TEXTS)
    row = world.drawn(session, world.task(session), size=1)[0]
    row.action_mask = [True, False, True]
    session.flush()
    return row


@pytest.mark.integration
def test_before_an_update_used_it_a_rollout_shows_its_tokens_without_costs(store: Store, world: World) -> None:
    with store.transaction() as session:
        found = heat_map.read(session, rollout(session, world))
    assert [token.text for token in found.tokens] == ["one", " two", " three"]
    assert {token.cost for token in found.tokens} == {None}
    assert (found.update_number, found.total_cost, found.has_texts, found.voices) == (None, None, True, ())
    assert found.tokens[0].probability == pytest.approx(math.exp(-0.5))
    assert found.tokens[1].probability is None  # a tool gave it


@pytest.mark.integration
def test_after_an_update_a_rollout_shows_costs_and_what_the_teacher_would_have_said(store: Store, world: World) -> None:
    with store.transaction() as session:
        row = rollout(session, world)
        made, used = update(session, world, 7), lesson(session, world, row)
        session.add(
            UpdateLessonRow(
                update_id=made.id, lesson_id=used.id, status="applied", terms=[], token_costs=[0.5, 0.0, 1.5]
            )
        )
        session.flush()
        top = TopK(
            np.array([[1, 4], [0, 0], [4, 3]]),
            np.log(np.array([[0.75, 0.25], [1.0, 1.0], [0.5, 0.25]])),
            np.array([0, 1, 0.25]),
        )
        session.add(
            TeacherChoicesRow(
                update_id=made.id, lesson_id=used.id, num_rows=3, width=2, packed=distributions.pack_top_k(top)
            )
        )
        session.flush()
        found = heat_map.read(session, row)
    assert (found.update_number, found.total_cost) == (7, 2.0)
    assert [token.cost for token in found.tokens] == [0.5, None, 1.5]
    assert [token.cost_to_go for token in found.tokens] == [1.5, None, 0.0]
    [voice] = found.tokens[2].voices
    assert voice.name == "our teacher, in update 7"
    assert [choice.text for choice in voice.choices] == ["four", " three"]
    assert [choice.probability for choice in voice.choices] == pytest.approx([0.5, 0.25], abs=1e-3)
    assert found.tokens[1].voices == ()  # it said nothing about the tool's token


def answer(session: Session, world: World, row: RolloutRow, name: str) -> AnswerRow:
    return answered(session, row, world.expert(session, name, kinds=(AnswerKind.TOPK,), verifier=False))


@pytest.mark.integration
def test_experts_that_sent_a_distribution_are_heard_before_any_update(store: Store, world: World) -> None:
    with store.transaction() as session:
        row = rollout(session, world)
        told = TopKDistribution(
            tokenizer_hash=TOKENIZER,
            token_ids=[[4, 1], [2, 3], [3, 2]],
            logprobs=[[math.log(0.25), math.log(0.5)]] * 3,
            tail_mass=[0.25] * 3,
        )
        distributions.add(session, answer(session, world, row, "larger"), told)
        drawn = SamplesDistribution(
            tokenizer_hash=TOKENIZER,
            prefixes=[2],
            continuations=[[Continuation(token_ids=[4, 1]), Continuation(token_ids=[4]), Continuation(token_ids=[0])]],
        )
        distributions.add(session, answer(session, world, row, "sampler"), drawn)
        found = heat_map.read(session, row)
    assert found.voices == ("larger", "sampler")
    assert [choice.text for choice in found.tokens[0].voices[0].choices] == ["one", "four"]  # the likeliest first
    assert found.tokens[2].voices[1].choices == (Choice("four", 2 / 3), Choice("<end>", 1 / 3))


@pytest.mark.integration
def test_experts_of_one_name_are_two_voices(store: Store, world: World) -> None:
    with store.transaction() as session:
        row = rollout(session, world)
        for token_id in (1, 4):
            told = TopKDistribution(
                tokenizer_hash=TOKENIZER, token_ids=[[token_id]] * 3, logprobs=[[0.0]] * 3, tail_mass=[0.0] * 3
            )
            given = answer(session, world, row, "larger")
            distributions.add(session, given, told)
            session.get_one(ExpertRow, given.expert_id).status = "retired"
        found = heat_map.read(session, row)
    assert len(found.voices) == 2
    assert {voice.choices[0].text for voice in found.tokens[0].voices} == {"one", "four"}


@pytest.mark.integration
def test_tokens_are_shown_by_their_ids_where_no_trainer_has_spelled_them(store: Store, world: World) -> None:
    with store.transaction() as session:
        row = world.drawn(session, world.task(session), size=1)[0]
        found = heat_map.read(session, row, start=1, limit=1)
    assert [token.text for token in found.tokens] == ["#2"]
    assert (found.has_texts, found.start, found.num_tokens) == (False, 1, 3)
