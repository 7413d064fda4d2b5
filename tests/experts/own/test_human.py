"""The human expert on a real database: a question becomes one item of the queue, and only a question of ours does."""

from collections.abc import Iterator

import pytest
from sqlalchemy import select

from services.contracts.answers import AnswerKind
from services.contracts.experts import Ask, ConsultAbstain, ConsultLater, ConsultRequest
from services.contracts.ids import new_id
from services.contracts.rollouts import Purpose
from services.contracts.tasks import Split
from services.experts.own.human import HumanExpert
from services.store.core.transaction import Store, StoreUnavailable
from services.store.loop import consultations, lineages
from services.store.tables.corrections import CorrectionRow
from tests.experts.samples import TOKENIZER, make_question
from tests.store.conftest import VOCAB, World

pytestmark = pytest.mark.integration
KINDS = [AnswerKind.SCORE, AnswerKind.SOLUTION]


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    made = Store(database_url, pool_size=4)
    yield made
    made.close()


@pytest.fixture
def world(store: Store) -> World:
    with store.transaction() as session:
        return World(lineages.ensure(session, "main", "tiny", "b" * 64, TOKENIZER, VOCAB).id)


def open_question(store: Store, world: World, split: Split = Split.TRAIN) -> ConsultRequest:
    with store.transaction() as session:
        purpose = Purpose.TRAIN if split is Split.TRAIN else Purpose.EVALUATION
        rollout = world.external(session, world.task(session, split=split), purpose)
        expert = world.expert(session, "human", kinds=tuple(KINDS), verifier=False)
        asked = consultations.open_one(session, rollout, expert, 1, Ask(kinds=KINDS))
        question = make_question(consultation_id=asked.id, kinds=tuple(KINDS))
        return question.model_copy(update={"rollout": question.rollout.model_copy(update={"id": rollout.id})})


def items(store: Store) -> list[CorrectionRow]:
    with store.transaction() as session:
        return list(session.scalars(select(CorrectionRow)))


def test_a_question_asked_twice_is_one_item_of_the_queue_answered_later(store: Store, world: World) -> None:
    question = open_question(store, world)
    for _ in range(2):
        assert isinstance(HumanExpert(store).consult(question), ConsultLater)
    (item,) = items(store)
    assert (item.consultation_id, item.rollout_id) == (question.consultation_id, question.rollout.id)
    assert item.status == "open"


def test_a_question_that_is_not_open_here_is_abstained_from(store: Store, world: World) -> None:
    question = open_question(store, world)
    strange = question.model_copy(update={"consultation_id": new_id()})
    other = question.model_copy(update={"rollout": question.rollout.model_copy(update={"id": new_id()})})
    for asked in (strange, other):
        assert isinstance(HumanExpert(store).consult(asked), ConsultAbstain)
    assert items(store) == []


def test_people_are_not_asked_about_tasks_that_may_not_train(store: Store, world: World) -> None:
    question = open_question(store, world, Split.HELDOUT)
    answer = HumanExpert(store).consult(question)
    assert isinstance(answer, ConsultAbstain)
    assert "train" in answer.reason
    assert items(store) == []


def test_a_database_that_is_away_is_unavailable() -> None:
    away = Store("postgresql://postgres@127.0.0.1:9/none")
    with pytest.raises(StoreUnavailable):
        HumanExpert(away).consult(make_question())
    away.close()
