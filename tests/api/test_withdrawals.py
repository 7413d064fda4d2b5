"""Withdrawing an answer: it counts nowhere from then on, and neither does what was said by those who were shown it."""

from collections.abc import Callable
from uuid import UUID

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerKind, Feedback
from services.contracts.experts import ConsultResult
from services.contracts.persons import Role
from services.contracts.sources import ContextSource
from services.contracts.tasks import Message, Precedent
from services.store.core.transaction import Store
from services.store.ledger import lessons, updates
from services.store.loop import consultations, rollouts, settling
from services.store.tables.ledger import LessonRow, UpdateRow
from services.store.tables.loop import AnswerRow, ConsultationRow, ExpertRow, RolloutRow
from services.store.tables.people import AuditRow
from tests.api.conftest import Api, items, made, refused
from tests.store.conftest import World, show

pytestmark = pytest.mark.integration

SAID = {
    "judge": ConsultResult(score=0.0),
    "solver": ConsultResult(
        solution="the answer is 1",
        precedents=[Precedent(messages=[Message(role="user", content="And 0?")], answer="the answer is 0")],
    ),
    "reader": ConsultResult(feedback=Feedback(text="say that the answer is 1")),
}


@pytest.fixture
def answered(api: Api, store: Store, world: World) -> dict[str, UUID]:
    """A settled train rollout's answers by expert; the reader was shown what the two others said."""
    with store.transaction() as session:
        world.expert(session, "judge")
        world.expert(session, "solver", kinds=(AnswerKind.SOLUTION,), verifier=False, teaches=ContextSource.SOLUTION)
        world.expert(session, "reader", kinds=(AnswerKind.FEEDBACK,), verifier=False, needs_answers=True)
        [rollout] = world.drawn(session, world.task(session), size=1)
        rollout_id = rollout.id
    for _ in range(2):
        with store.transaction() as session:
            asked = consultations.claim(session, consultations.pending_of(session, [rollout_id]), lease_seconds=60)
        for question in asked:
            with store.transaction() as session:
                settling.settle(session, question, SAID[name_of(session, question.consultation_id)])
    with store.transaction() as session:
        named = select(ExpertRow.name, AnswerRow.id).join(AnswerRow, AnswerRow.expert_id == ExpertRow.id)
        found = dict(session.execute(named).all())
    assert found.keys() == SAID.keys()
    return found


def name_of(session: Session, consultation_id: UUID) -> str:
    return session.scalars(
        select(ExpertRow.name)
        .join(ConsultationRow, ConsultationRow.expert_id == ExpertRow.id)
        .where(ConsultationRow.id == consultation_id)
    ).one()


def withdraw(api: Api, answer_id: UUID) -> str:
    return str(made(api.post(f"/v1/answers/{answer_id}/withdraw"))["status"])


def test_what_a_teacher_drew_that_was_shown_a_withdrawn_answer_is_no_lesson(
    api: Api, store: Store, world: World, answered: dict[str, UUID]
) -> None:
    with store.transaction() as session:
        contexts = [show(ContextSource.SOLUTION, answered[name]) for name in ("solver", "judge")]
        drawn = [world.drawn(session, world.task(session), 1, context=one, num_shown=1)[0] for one in contexts]
        for row in drawn:
            [asked] = consultations.claim(session, consultations.pending_of(session, [row.id]), lease_seconds=60)
            settling.settle(session, asked, ConsultResult(score=1.0))
    assert withdraw(api, answered["solver"]) == "withdrawn"
    with store.transaction() as session:
        gone, kept = (session.get_one(RolloutRow, row.id) for row in drawn)
        assert (gone.status, gone.text, kept.status, kept.text) == ("set_aside", "", "ready", "answer 0")
        of_drawn = select(LessonRow.rollout_id, LessonRow.status).where(LessonRow.rollout_id.in_([gone.id, kept.id]))
        assert dict(session.execute(of_drawn).all()) == {gone.id: "withdrawn", kept.id: "ready"}


def test_a_withdrawn_answer_leaves_ready_lessons_contexts_and_what_was_made_of_it(
    api: Api, store: Store, answered: dict[str, UUID]
) -> None:
    assert withdraw(api, answered["solver"]) == "withdrawn"
    with store.transaction() as session:
        gone = {name: session.get_one(AnswerRow, answer_id) for name, answer_id in answered.items()}
        assert {name: row.status for name, row in gone.items()} == {
            "judge": "current",
            "solver": "withdrawn",
            "reader": "withdrawn",
        }
        assert (gone["solver"].solution, gone["solver"].precedents) == (None, None)
        question = session.get_one(ConsultationRow, gone["reader"].consultation_id)
        assert [one["expert"] for one in question.ask["context"]] == ["judge"]  # type: ignore[union-attr, call-overload, index]
        lesson = session.scalars(select(LessonRow)).one()
        assert lesson.status == "ready", "the judge's answer is left in it"
        [entry] = session.scalars(select(AuditRow).where(AuditRow.action == "answers.withdraw"))
        assert (entry.noun, entry.noun_id) == ("answer", str(answered["solver"]))


def test_a_lesson_with_nothing_else_is_withdrawn_and_a_verdict_goes_with_its_answer(
    api: Api, store: Store, answered: dict[str, UUID]
) -> None:
    for name in ("solver", "judge"):
        withdraw(api, answered[name])
    [lesson] = items(api.get("/v1/lessons", status="withdrawn"))
    assert (lesson["reason"], items(api.get("/v1/lessons", status="ready"))) == ("an answer of it was withdrawn", [])
    with store.transaction() as session:
        assert rollouts.get(session, UUID(str(lesson["rollout_id"]))).score is None


def test_an_update_that_has_begun_starts_again_without_the_answer(
    api: Api, store: Store, world: World, answered: dict[str, UUID]
) -> None:
    owner = UUID(int=7)
    with store.transaction() as session:
        held = lessons.claim(session, world.lineage_id, owner, num_rollouts=8, max_late=0, lease_seconds=60)
        assert held
        lesson = session.scalars(select(LessonRow)).one()
        started = UpdateRow(lineage_id=world.lineage_id, number=1, objective="distil", owner=owner, settings={})
        started.batch_sha256 = "0" * 64
        session.add(started)
    withdraw(api, answered["solver"])
    with store.transaction() as session:
        assert updates.get(session, world.lineage_id, 1).status == "abandoned"
        assert session.get_one(LessonRow, lesson.id).status in ("ready", "claimed")


def test_only_who_operates_withdraws_an_answer_and_only_once(
    api: Api, someone: Callable[[str, Role], Api], answered: dict[str, UUID]
) -> None:
    path = f"/v1/answers/{answered['judge']}/withdraw"
    for role in (Role.ANNOTATOR, Role.SERVICE):
        refused(someone(role.value, role).post(path), 403)
    refused(api.post(f"/v1/answers/{UUID(int=0)}/withdraw"), 404)
    made(someone("op", Role.OPERATOR).post(path))
    assert "withdrawn" in str(refused(api.post(path), 409)["detail"])
