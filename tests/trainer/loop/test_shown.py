"""What an update was shown, from the rows it claims to the terms in its ledger."""

from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import func
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerContent, AnswerKind
from services.contracts.sources import ContextSource
from services.contracts.templates import Template
from services.contracts.updates import TermRecord
from services.store.core.transaction import Store
from services.store.ledger import updates
from services.store.tables.loop import ExpertRow, RolloutRow, TaskRow
from tests.trainer.training import Bench, settings_of
from tests.trainer.world import World
from trainer.config import TrainerConfig

pytestmark = pytest.mark.integration

CONFIG = TrainerConfig(lora_r=4, groups_per_update=1)


def judged(session: Session, world: World, task: TaskRow, judge: ExpertRow, right: Sequence[int]) -> list[RolloutRow]:
    """A settled group of eight, of which these places are right, with its lessons."""
    rows = world.group(session, task)
    task.num_groups += 1
    for row in rows:
        score = float(row.index_in_group in right)
        world.answer(session, row, judge, AnswerContent(score=score))
        row.score, row.settled_at = score, func.now()
        session.flush()
        world.lesson(session, row)
    return rows


def terms_of(store: Store, world: World, number: int) -> list[TermRecord]:
    with store.transaction() as session:
        detail = updates.detail(session, updates.get(session, world.lineage_id, number))
    return [term for lesson in detail.lessons for term in lesson.terms]


def test_a_group_learns_from_the_remembered_success_and_the_verifier_that_certified_it_is_credited(
    world: World, store: Store, tmp_path: Path, database_url: str
) -> None:
    with store.transaction() as session:
        judge = world.expert(session, "execution", [AnswerKind.SCORE])
        judge.descriptor = judge.descriptor | {"verifier": True}
        first, second = world.task(session, "2+2"), world.task(session, "3+3")
        earlier = judged(session, world, first, judge, right=[6])
        judged(session, world, first, judge, right=[])
        judged(session, world, second, judge, right=[])
        judge_id, remembered = judge.id, earlier[6].id
    bench = Bench.set_up(world, settings_of(tmp_path, database_url), CONFIG)
    for _ in range(3):
        bench.update()
    bench.close()
    siblings, own, precedents = (terms_of(store, world, number) for number in (1, 2, 3))
    assert {(term.source, term.template) for term in siblings} == {(ContextSource.OWN_SUCCESS, Template.TURNS)}
    assert len(siblings) == 4, "the half without the success is shown it"
    assert {(term.source, term.sources[0]) for term in own} == {
        (ContextSource.OWN_SUCCESS, f"the policy's own rollout {remembered}")
    }
    assert len(own) == 8
    assert {(term.source, term.sources[0]) for term in precedents} == {(ContextSource.PRECEDENTS, "the task 2+2")}
    speakers: set[UUID] = {one.expert_id for term in (*siblings, *own, *precedents) for one in term.speakers}
    assert speakers == {judge_id}
