"""What an update was shown, from the rows it claims to the terms in its ledger."""

from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerContent, AnswerKind
from services.contracts.experts import OwnKind
from services.contracts.sources import ContextSource, ShownContext
from services.contracts.tasks import Message
from services.contracts.templates import Template, build_teacher_messages
from services.contracts.updates import TermRecord
from services.store.core.transaction import Store
from services.store.ledger import updates
from services.store.loop import withdrawals
from services.store.people import erasing
from services.store.tables.corrections import CorrectionRow
from services.store.tables.ledger import TeacherChoicesRow
from services.store.tables.loop import ExpertRow, GroupRow, RolloutRow, TaskRow
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


def rolled_in(session: Session, world: World, task: TaskRow, after: UUID, reference: ExpertRow) -> None:
    """A group with a reference whose last rollout a teacher drew after this correction."""
    rows = world.group(session, task)
    question = [Message.model_validate(message) for message in task.messages]
    context = ShownContext(
        source=ContextSource.CORRECTION,
        template=Template.TURNS,
        messages=build_teacher_messages(Template.TURNS, question, "It is 4."),
        answers=[after],
    )
    group = session.get_one(GroupRow, rows[0].group_id)
    group.context, group.num_shown = context.model_dump(mode="json"), 1
    rows[-1].shown, rows[-1].sampler_logprobs = True, None
    for row in rows:
        world.answer(session, row, reference, AnswerContent(solution="It is 4."))
        world.lesson(session, row)


def test_who_was_shown_to_the_teacher_that_drew_a_rollout_is_behind_its_terms_and_is_found_when_they_withdraw(
    world: World, store: Store, tmp_path: Path, database_url: str
) -> None:
    with store.transaction() as session:
        people = world.expert(session, "human", [AnswerKind.SOLUTION])
        people.own = OwnKind.HUMAN.value
        task = world.task(session, "2+2")
        corrected = world.correction(session, world.group(session, task)[0], people, "It is 4.")
        reference = world.expert(session, "reference", [AnswerKind.SOLUTION], reference=True)
        rolled_in(session, world, task, corrected, reference)
        person_id = session.scalars(select(CorrectionRow.person_id)).one()
    alone = CONFIG.model_copy(update={"sources": {"*": (ContextSource.REFERENCE,)}})
    bench = Bench.set_up(world, settings_of(tmp_path, database_url), alone)
    bench.update()
    bench.close()
    terms = terms_of(store, world, 1)
    shown = [term for term in terms if corrected in term.answers]
    assert (len(terms), len(shown)) == (8, 1)
    assert [one.expert for one in shown[0].speakers] == ["reference", "human"]
    assert shown[0].sources == ["reference@1", "human@1, shown to the teacher that drew the rollout"]
    with store.transaction() as session:
        assert updates.numbers_using(session, [corrected]) == {corrected: [1]}
        assert person_id is not None
        assert [one.number for one in erasing.preview(session, person_id).updates] == [1]
        before = len(session.scalars(select(TeacherChoicesRow.lesson_id)).all())
        withdrawals.withdraw(session, corrected)
        assert len(session.scalars(select(TeacherChoicesRow.lesson_id)).all()) == before - 1
