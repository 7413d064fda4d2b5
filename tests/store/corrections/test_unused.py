"""A correction trains soon, whatever its rollout waits for, and says why it has not."""

from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from services.contracts.corrections import CorrectionSubmit
from services.contracts.ids import new_id
from services.contracts.policies import GateReport
from services.store.core.transaction import Store
from services.store.corrections import claims, corrections, desk
from services.store.ledger import lesson_facts, lessons, policies
from services.store.loop import consultations, settling, switches
from services.store.tables.corrections import CorrectionRow
from services.store.tables.ledger import LessonAnswerRow, LessonRow
from services.store.tables.loop import ExpertRow, RolloutRow
from tests.store.conftest import World
from tests.web.correcting import Queue, Said

pytestmark = pytest.mark.integration


def correct_unsettled(queue: Queue) -> RolloutRow:
    """A correction of a rollout that still waits for the judge."""
    person, _ = queue.person("ana")
    said = CorrectionSubmit(verdict="corrected", text="so it should be")
    with queue.store.transaction() as session:
        [rollout] = queue.world.drawn(session, queue.world.task(session), size=1)
        item = corrections.ask_for(session, rollout.id)
        claims.claim_one(session, item.id, person)
        corrections.submit(session, item.id, person, said)
    return rollout


@pytest.fixture
def queue(store: Store, world: World) -> Queue:
    made = Queue(store, world)
    made.experts("judge")
    return made


def wait_a_minute(queue: Queue) -> int:
    """The sweep, a minute later; how many corrections it gave a lesson of their own."""
    with queue.store.transaction() as session:
        session.execute(update(CorrectionRow).values(decided_at=func.now() - timedelta(seconds=61)))
        return corrections.teach_waiting(session)


def claim_late(queue: Queue, num: int) -> list[LessonRow]:
    with queue.store.transaction() as session:
        return lessons.claim(session, queue.world.lineage_id, new_id(), num_rollouts=0, max_late=num, lease_seconds=60)


def test_a_correction_trains_before_others_have_answered_about_its_rollout_and_only_once(queue: Queue) -> None:
    rollout = correct_unsettled(queue)
    assert claim_late(queue, 8) == []
    assert (wait_a_minute(queue), wait_a_minute(queue)) == (1, 0)
    [taken] = claim_late(queue, 8)
    assert taken.rollout_id == rollout.id
    with queue.store.transaction() as session:
        asked = consultations.claim(session, consultations.pending_of(session, [rollout.id]), lease_seconds=60)
    for question in asked:
        with queue.store.transaction() as session:
            settling.settle(session, question, Said(score=0.0).result())
    with queue.store.transaction() as session:
        uses = select(func.count(LessonAnswerRow.lesson_id)).group_by(LessonAnswerRow.answer_id)
        assert session.scalars(uses).all() == [1, 1]  # the judge's answer in the rollout's own lesson, hers in hers
        by_late = {row.late: row.status for row in session.scalars(select(LessonRow))}
        assert by_late == {True: "claimed", False: "ready"}


def test_corrections_train_in_the_order_in_which_they_were_made(queue: Queue) -> None:
    person, _ = queue.person("ana")
    rollouts = [queue.draw(f"t{i}", "t?", "abc", {"judge": Said(score=0.0)}) for i in range(5)]
    for rollout in reversed(rollouts):
        item = queue.ask(rollout)
        with queue.store.transaction() as session:
            claims.claim_one(session, item, person)
            corrections.submit(session, item, person, CorrectionSubmit(verdict="corrected", text="abd"))
    taken = [row.rollout_id for _ in range(5) for row in claim_late(queue, 1)]
    assert taken == rollouts[::-1]


def test_an_unused_correction_says_what_it_waits_for_or_why_it_was_set_aside(queue: Queue) -> None:
    def why() -> str:
        with queue.store.transaction() as session:
            [row] = session.scalars(select(CorrectionRow)).all()
            return desk.outcome(session, row).waits_for or ""

    correct_unsettled(queue)
    assert "other experts are still asked" in why()
    wait_a_minute(queue)
    assert "0 others came before it" in why()
    with queue.store.transaction() as session:
        switches.switch(session, queue.world.lineage_id, training=False)
    assert why() == "training is off"
    claim_late(queue, 8)
    assert "an update is being made with it" in why()
    with queue.store.transaction() as session:
        lesson = session.scalars(select(LessonRow)).one()
        lesson.status, lesson.reason = "set_aside", "the update changed nothing"
        lesson.owner = lesson.lease_until = None
    assert why() == "set aside: the update changed nothing"


def test_a_correction_of_an_expert_that_may_not_train_says_so(queue: Queue) -> None:
    with queue.store.transaction() as session:
        session.query(ExpertRow).filter_by(name="human").one().weight = 0.0
    correct_unsettled(queue)
    with queue.store.transaction() as session:
        [row] = session.scalars(select(CorrectionRow)).all()
        assert "do not train" in (desk.outcome(session, row).waits_for or "")


def test_a_correction_outlives_the_lesson_of_its_rollout_that_is_too_old(queue: Queue) -> None:
    rollout = correct_unsettled(queue)
    with queue.store.transaction() as session:
        asked = consultations.claim(session, consultations.pending_of(session, [rollout.id]), lease_seconds=60)
    for question in asked:
        with queue.store.transaction() as session:
            settling.settle(session, question, Said(score=0.0).result())
    with queue.store.transaction() as session:
        for number in (1, 2):
            row = policies.add_candidate(
                session, queue.world.lineage_id, artifact_sha256="d" * 64, update_number=number
            )
            policies.serve(session, row.id, GateReport(checks=[]))
        assert lessons.set_aside_stale(session, queue.world.lineage_id, 1) == 1
    [taken] = claim_late(queue, 8)
    with queue.store.transaction() as session:
        [said] = lesson_facts.load(session, [taken])[0].answers
    assert said.solution == "so it should be"
