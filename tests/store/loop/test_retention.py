"""Which old rows go, and that nothing goes that a ledger row, an evaluation or a person's work refers to."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from services.contracts.experts import ConsultResult
from services.contracts.ids import new_id
from services.contracts.persons import Role
from services.contracts.rollouts import Purpose, Sampling
from services.contracts.updates import TermKind, TermRecord
from services.store.core import idempotency
from services.store.core.transaction import Store
from services.store.ledger import policies, updates
from services.store.ledger.policies import WeightsDeleted
from services.store.loop import consultations, evaluations, groups, retention, settling
from services.store.people import persons
from services.store.tables.corrections import CorrectionRow
from services.store.tables.ledger import LessonRow
from services.store.tables.loop import (
    AnswerRow,
    AttemptRow,
    ConsultationRow,
    EvaluationRow,
    GroupRow,
    RolloutRow,
    TaskRow,
)
from services.store.tables.schema import METADATA
from tests.rows import start_update
from tests.store.conftest import World

NOW = 0.0
"""Days: everything there is counts as old."""
DELETED_WITH_A_GROUP = [str(statement.entity_description["table"]) for statement in retention.deletions([])]
KEEP_A_GROUP = ("update_lesson", "correction_effect")


def test_every_table_that_refers_to_a_rollout_goes_with_it_or_keeps_it() -> None:
    known = {*DELETED_WITH_A_GROUP, *KEEP_A_GROUP}
    referring = {
        table.name
        for table in METADATA.tables.values()
        for key in table.foreign_keys
        if key.column.table.name in DELETED_WITH_A_GROUP
    }
    assert referring <= known


def test_rows_go_before_those_they_refer_to() -> None:
    order = {name: place for place, name in enumerate(DELETED_WITH_A_GROUP)}
    for name in DELETED_WITH_A_GROUP:
        for key in METADATA.tables[name].foreign_keys:
            if key.column.table.name in order:
                assert order[name] <= order[key.column.table.name]


def judged_group(store: Store, world: World, key: str = "t", *, purpose: Purpose = Purpose.TRAIN) -> UUID:
    """A group of two rollouts that its expert has judged; its lessons are ready."""
    with store.transaction() as session:
        rows = world.drawn(session, world.task(session, key), purpose=purpose)
        group_id = rows[0].group_id
        ids = session.scalars(select(ConsultationRow.id).where(ConsultationRow.rollout_id.in_([r.id for r in rows])))
        questions = consultations.claim(session, list(ids), lease_seconds=60)
    for question in questions:
        with store.transaction() as session:
            settling.settle(session, question, ConsultResult(score=1.0))
    return group_id


def set_lessons_aside(session: Session, group_id: UUID) -> None:
    session.execute(
        update(LessonRow).where(LessonRow.group_id == group_id).values(status="set_aside", reason="too old")
    )


def use_in_update(session: Session, world: World, group_id: UUID, terms: tuple[TermRecord, ...] = ()) -> None:
    owner = new_id()
    lessons = session.scalars(select(LessonRow).where(LessonRow.group_id == group_id)).all()
    for lesson in lessons:
        lesson.status, lesson.owner, lesson.lease_until = "claimed", owner, func.now() + timedelta(hours=1)
    session.flush()
    row = start_update(
        session, world.lineage_id, owner, [lesson.id for lesson in lessons[:1]]
    )  # one sibling is enough to keep the group
    updates.apply(
        session,
        row.id,
        owner,
        checkpoint_sha256="c" * 64,
        metrics={},
        contributions=[updates.Contribution(lessons[0].id, terms=terms)],
    )
    for lesson in lessons[1:]:
        lesson.status, lesson.reason, lesson.owner, lesson.lease_until = "set_aside", "not needed", None, None


def correct(session: Session, world: World, group_id: UUID) -> None:
    set_lessons_aside(session, group_id)
    rollout = session.scalars(select(RolloutRow).where(RolloutRow.group_id == group_id)).first()
    assert rollout is not None
    asked = session.scalars(select(ConsultationRow.id).where(ConsultationRow.rollout_id == rollout.id)).one()
    person, _ = persons.create(session, f"ann-{group_id}", Role.ANNOTATOR)
    session.add(
        CorrectionRow(
            lineage_id=world.lineage_id,
            consultation_id=asked,
            rollout_id=rollout.id,
            split="train",
            status="submitted",
            person_id=person.id,
            verdict="corrected",
            text="better",
        )
    )


def leave_ready(session: Session, world: World, group_id: UUID) -> None:
    """Nothing: its lessons wait for the trainer."""


def evaluate(session: Session, world: World, group_id: UUID) -> None:
    set_lessons_aside(session, group_id)
    row = EvaluationRow(lineage_id=world.lineage_id, policy_version="base", split="validation", settings={})
    session.add(row)
    session.flush()
    session.get_one(GroupRow, group_id).evaluation_id = row.id


@pytest.fixture
def expert(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.expert(session)


def num_rows(store: Store) -> dict[str, int]:
    with store.transaction() as session:
        return {
            name: session.scalar(select(func.count()).select_from(METADATA.tables[name])) or 0
            for name in DELETED_WITH_A_GROUP
        }


@pytest.mark.integration
@pytest.mark.usefixtures("expert")
def test_an_old_group_that_nothing_refers_to_goes_with_all_its_rows(store: Store, world: World) -> None:
    group_id = judged_group(store, world)
    with store.transaction() as session:
        set_lessons_aside(session, group_id)
    with store.transaction() as session:
        walked = retention.delete_unused_groups(session, NOW, limit=10)
    assert walked.num_deleted == 1
    assert set(num_rows(store).values()) == {0}
    with store.transaction() as session:
        assert session.scalars(select(TaskRow.num_groups)).all() == [1]  # a task remembers how often it was drawn


@pytest.mark.integration
@pytest.mark.usefixtures("expert")
@pytest.mark.parametrize("keep", [use_in_update, correct, leave_ready, evaluate])
def test_a_group_that_something_refers_to_stays_whole(
    store: Store, world: World, keep: Callable[[Session, World, UUID], None]
) -> None:
    group_id = judged_group(store, world)
    with store.transaction() as session:
        keep(session, world, group_id)
    before = num_rows(store)
    with store.transaction() as session:
        assert retention.delete_unused_groups(session, NOW, limit=10).num_deleted == 0
    assert num_rows(store) == before


@pytest.mark.integration
@pytest.mark.usefixtures("expert")
def test_a_group_whose_success_was_shown_to_the_teacher_of_another_stays(store: Store, world: World) -> None:
    shown, other, unused = (judged_group(store, world, key) for key in ("shown", "other", "unused"))
    with store.transaction() as session:
        of_group = select(AnswerRow.id).join(RolloutRow, RolloutRow.id == AnswerRow.rollout_id)
        answer_id = session.scalars(of_group.where(RolloutRow.group_id == shown)).first()
        assert answer_id is not None
        term = TermRecord(kind=TermKind.CONDITIONED, answers=[answer_id], weight=1.0, share=1.0)
        for group_id in (shown, unused):
            set_lessons_aside(session, group_id)
        use_in_update(session, world, other, (term,))
    with store.transaction() as session:
        assert retention.delete_unused_groups(session, NOW, limit=10).num_deleted == 1
        assert set(session.scalars(select(GroupRow.id))) == {shown, other}


@pytest.mark.integration
@pytest.mark.usefixtures("expert")
def test_a_group_with_a_question_under_way_stays(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.drawn(session, world.task(session))
    with store.transaction() as session:
        assert retention.delete_unused_groups(session, NOW, limit=10).num_deleted == 0


@pytest.mark.integration
@pytest.mark.usefixtures("expert")
def test_a_young_group_stays(store: Store, world: World) -> None:
    group_id = judged_group(store, world)
    with store.transaction() as session:
        set_lessons_aside(session, group_id)
    with store.transaction() as session:
        walked = retention.delete_unused_groups(session, 1.0, limit=10)
    assert (walked.num_deleted, walked.at_end) == (0, True)


@pytest.mark.integration
@pytest.mark.usefixtures("expert")
def test_a_walk_reads_on_from_its_mark_and_begins_anew_at_its_end(store: Store, world: World) -> None:
    kept = [judged_group(store, world, key) for key in "abc"]
    at_end: list[bool] = []
    for _ in range(3):
        with store.transaction() as session:
            walked = retention.delete_unused_groups(session, NOW, limit=2)
            at_end.append(walked.at_end)
    assert at_end == [False, True, True]  # two groups, the third, none
    with store.transaction() as session:
        set_lessons_aside(session, kept[0])  # the first walk has passed it
    with store.transaction() as session:
        assert retention.delete_unused_groups(session, NOW, limit=2).num_deleted == 1


@pytest.mark.integration
@pytest.mark.usefixtures("expert")
def test_tries_of_settled_questions_go_and_the_others_stay(store: Store, world: World) -> None:
    judged_group(store, world)
    with store.transaction() as session:
        rows = world.drawn(session, world.task(session, "open"), size=1)
        asked = session.scalars(select(ConsultationRow.id).where(ConsultationRow.rollout_id == rows[0].id)).all()
        consultations.claim(session, asked, lease_seconds=60)
    with store.transaction() as session:
        assert retention.delete_attempts(session, NOW, limit=100).num_deleted == 2
        assert session.scalars(select(AttemptRow.consultation_id)).all() == asked


def add_versions(session: Session, world: World, addresses: Sequence[str]) -> None:
    for address in addresses:
        row = policies.add_candidate(session, world.lineage_id, artifact_sha256=address, update_number=1)
        policies.serve(session, row.id)


@pytest.mark.integration
def test_weights_of_old_superseded_versions_are_deletable_and_the_newest_are_not(store: Store, world: World) -> None:
    addresses = [letter * 64 for letter in "abcd"]
    with store.transaction() as session:
        add_versions(session, world, addresses)
    with store.transaction() as session:
        assert retention.retire_old_weights(session, NOW, max_staleness=1) == 2
        assert retention.choose_deletable(session, [*addresses, "f" * 64]) == addresses[:2]


@pytest.mark.integration
def test_weights_that_a_kept_version_shares_stay(store: Store, world: World) -> None:
    with store.transaction() as session:
        add_versions(session, world, ["a" * 64, "b" * 64, "a" * 64])
    with store.transaction() as session:
        assert retention.retire_old_weights(session, NOW, max_staleness=0) == 2
        assert retention.choose_deletable(session, ["a" * 64, "b" * 64]) == ["b" * 64]


@pytest.mark.integration
def test_weights_that_a_planned_draw_names_stay(store: Store, world: World) -> None:
    with store.transaction() as session:
        add_versions(session, world, ["a" * 64, "b" * 64])
        groups.add(
            session,
            world.task(session),
            purpose=Purpose.CHAT,
            size=1,
            sampling=Sampling(),
            policy_version="main-v1",
        )
    with store.transaction() as session:
        assert retention.retire_old_weights(session, NOW, max_staleness=0) == 0


@pytest.mark.integration
def test_a_version_without_its_weights_neither_serves_nor_is_measured(store: Store, world: World) -> None:
    with store.transaction() as session:
        add_versions(session, world, ["a" * 64, "b" * 64])
    with store.transaction() as session:
        assert retention.retire_old_weights(session, NOW, max_staleness=0) == 1
    with store.transaction() as session, pytest.raises(WeightsDeleted):
        policies.serve(session, policies.by_name(session, world.lineage_id, "main-v1").id)
    with store.transaction() as session, pytest.raises(WeightsDeleted):
        evaluations._version(session, world.lineage_id, "main-v1")


@pytest.mark.integration
def test_old_answers_to_posts_go_in_batches(store: Store) -> None:
    with store.transaction() as session:
        for number in range(5):
            request = idempotency.Request("someone", f"key {number}", "POST /", "0" * 64)
            idempotency.keep(session, request, idempotency.Stored(201, "{}"))
    with store.transaction() as session:
        assert idempotency.forget_old(session, days=0, limit=3) == 3
        assert idempotency.forget_old(session, days=0, limit=3) == 2
