"""Who may train on what: whole groups, one holder at a time, one applied update a lesson."""

import threading
from uuid import UUID

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from services.contracts.answers import AnswerContent, AnswerKind
from services.contracts.ids import new_id
from services.contracts.sources import ContextSource
from services.contracts.updates import TermKind, TermRecord
from services.store.core.locks import LineageLock
from services.store.core.transaction import Store
from services.store.ledger import lesson_facts, lessons, updates
from services.store.ledger.updates import Contribution, LeaseLost
from services.store.loop import groups
from services.store.tables.ledger import LessonRow, UpdateLessonRow, UpdateRow
from services.store.tables.loop import GroupRow, RolloutRow
from services.store.teaching.material import find_fixed
from tests.rows import start_update
from tests.trainer.world import World

pytestmark = pytest.mark.integration


def open_update(store: Store, world: World, owner: UUID, num_groups: int = 1, lease_seconds: float = 60) -> UpdateRow:
    with store.transaction() as session:
        rows = lessons.claim(
            session, world.lineage_id, owner, num_rollouts=8 * num_groups, max_late=4, lease_seconds=lease_seconds
        )
        return start_update(session, world.lineage_id, owner, [row.id for row in rows])


def lessons_of(store: Store, update_id: UUID) -> list[UUID]:
    with store.transaction() as session:
        query = select(UpdateLessonRow.lesson_id).where(UpdateLessonRow.update_id == update_id)
        return list(session.scalars(query))


def apply(store: Store, made: UpdateRow, owner: UUID, contributions: list[Contribution] | None = None) -> None:
    given = contributions or [Contribution(lesson_id) for lesson_id in lessons_of(store, made.id)]
    with store.transaction() as session:
        updates.apply(session, made.id, owner, checkpoint_sha256="c" * 64, metrics={}, contributions=given)


def status_of(store: Store, lesson_id: UUID) -> str:
    with store.transaction() as session:
        return session.get_one(LessonRow, lesson_id).status


def test_a_group_is_claimed_whole_and_in_the_order_of_its_rollouts(store: Store, world: World) -> None:
    [group_id, _] = world.lessons(num_groups=2)
    with store.transaction() as session:
        rows = lessons.claim(session, world.lineage_id, new_id(), num_rollouts=8, max_late=0, lease_seconds=60)
        index = [session.get_one(RolloutRow, row.rollout_id).index_in_group for row in rows]
    assert {row.group_id for row in rows} == {group_id}
    assert index == list(range(8))


def test_groups_are_claimed_from_each_domain_in_turn_the_oldest_of_a_domain_first(store: Store, world: World) -> None:
    made: dict[UUID, str] = {}
    with store.transaction() as session:
        judge = world.expert(session, "judge", [AnswerKind.SCORE])
        for key, domain in (
            ("m1", "math"),
            ("m2", "math"),
            ("m3", "math"),
            ("c1", "code"),
            ("t1", "tool"),
            ("c2", "code"),
        ):
            [row] = world.group(session, world.task(session, key, domain), ["4"])
            world.answer(session, row, judge, AnswerContent(score=1.0))
            world.lesson(session, row)
            made[row.group_id] = key
    claimed = []
    with store.transaction() as session:
        while rows := lessons.claim(session, world.lineage_id, new_id(), num_rollouts=2, max_late=0, lease_seconds=60):
            claimed.append({made[row.group_id] for row in rows})
    assert claimed == [{"m1", "c1"}, {"m2", "t1"}, {"m3", "c2"}]


def test_a_group_with_an_open_rollout_is_not_claimed(store: Store, world: World) -> None:
    [group_id] = world.lessons(num_groups=1)
    with store.transaction() as session:
        first = session.scalars(select(RolloutRow).where(RolloutRow.group_id == group_id)).first()
        assert first is not None
        late_sibling = RolloutRow(
            **{
                column.key: getattr(first, column.key)
                for column in RolloutRow.__table__.columns
                if column.key not in ("id", "index_in_group", "status")
            },
            id=new_id(),
            index_in_group=8,
            status="open",
        )
        session.add(late_sibling)
    with store.transaction() as session:
        assert lessons.count_ready(session, world.lineage_id) == 0
        assert not lessons.claim(session, world.lineage_id, new_id(), num_rollouts=8, max_late=0, lease_seconds=60)


def test_rollouts_that_came_from_outside_alone_all_train_beside_the_groups_of_an_update(
    store: Store, world: World
) -> None:
    world.lessons(num_groups=3)
    with store.transaction() as session:
        judge = world.expert(session, "judge", [AnswerKind.SCORE])
        for number in range(20):
            for row in world.group(session, world.task(session, f"outside {number}"), ["4"], external=True):
                world.answer(session, row, judge, AnswerContent(score=1.0))
                world.lesson(session, row)
    with store.transaction() as session:
        assert lessons.count_ready(session, world.lineage_id) == 3 * 8 + 20
        rows = lessons.claim(session, world.lineage_id, new_id(), num_rollouts=16, max_late=0, lease_seconds=60)
        alone = [row for row in rows if session.get_one(GroupRow, row.group_id).external]
    assert (len(rows), len(alone)) == (2 * 8 + 20, 20)


def test_rollouts_from_outside_leave_room_for_draws_however_many_they_are(store: Store, world: World) -> None:
    with store.transaction() as session:
        judge = world.expert(session, "judge", [AnswerKind.SCORE])
        for row in world.group(session, world.task(session, "outside"), ["4"] * 40, external=True):
            world.answer(session, row, judge, AnswerContent(score=1.0))
            world.lesson(session, row)
        world.group(session, world.task(session, "unanswered"), ["4"] * 40, external=True, status="open")
    with store.transaction() as session:
        assert groups.backlog(session, world.lineage_id) == 0
    world.lessons(num_groups=1)
    with store.transaction() as session:
        assert groups.backlog(session, world.lineage_id) == 8


@pytest.mark.parametrize(
    ("sizes", "taken"),
    [
        ([8, 8, 8], [0, 1]),
        ([2, 8, 2, 8, 2], [0, 1, 2, 4]),  # 14 of 16
        ([16, 2], [0]),
        ([20, 2], [0]),
        ([2, 16, 2], [0, 2, 1]),  # 4 alone would be less than half
        ([8, 16], [0]),
        ([2], [0]),
        ([], []),
    ],
)
def test_an_update_is_filled_with_groups_in_turn_and_is_never_a_small_one_while_others_wait(
    sizes: list[int], taken: list[int]
) -> None:
    waiting = [(new_id(), size) for size in sizes]
    assert lessons.fill(waiting, 16) == [waiting[place][0] for place in taken]


def test_two_trainers_never_get_the_same_group(store: Store, world: World) -> None:
    world.lessons(num_groups=12)
    claimed: list[tuple[int, UUID]] = []
    start = threading.Barrier(2)

    def claim_all(name: int) -> None:
        owner = new_id()
        start.wait()
        while True:
            with store.transaction() as session:
                rows = lessons.claim(session, world.lineage_id, owner, num_rollouts=8, max_late=0, lease_seconds=60)
                claimed.extend((name, row.id) for row in rows)
                if not lessons.count_ready(session, world.lineage_id):
                    return

    threads = [threading.Thread(target=claim_all, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = [lesson_id for _, lesson_id in claimed]
    assert len(ids) == len(set(ids)) == 12 * 8


def test_a_lease_that_ran_out_gives_the_lessons_back_and_abandons_the_update(store: Store, world: World) -> None:
    world.lessons(num_groups=1)
    owner = new_id()
    made = open_update(store, world, owner)
    with store.transaction() as session:
        assert lessons.free_expired(session) == 0
        assert lessons.renew(session, owner, 0) == 8
    with store.transaction() as session:
        assert lessons.free_expired(session) == 8
        assert lessons.count_ready(session, world.lineage_id) == 8
        assert session.get_one(UpdateRow, made.id).status == "abandoned"


def test_a_trainer_that_lost_its_lease_changes_nothing(store: Store, world: World) -> None:
    world.lessons(num_groups=1)
    slow, quick = new_id(), new_id()
    lost = open_update(store, world, slow, lease_seconds=0)
    ids = lessons_of(store, lost.id)
    with store.transaction() as session:
        lessons.free_expired(session)
    won = open_update(store, world, quick)
    with pytest.raises(LeaseLost):
        apply(store, lost, slow)
    apply(store, won, quick)
    assert {status_of(store, lesson_id) for lesson_id in ids} == {"used"}
    with store.transaction() as session:
        assert updates.last_applied(session, world.lineage_id).id == won.id  # type: ignore[union-attr]


def test_an_update_with_a_withdrawn_lesson_is_not_applied_at_all(store: Store, world: World) -> None:
    world.lessons(num_groups=1)
    owner = new_id()
    made = open_update(store, world, owner)
    ids = lessons_of(store, made.id)
    with store.transaction() as session:
        session.execute(update(LessonRow).where(LessonRow.id == ids[0]).values(status="withdrawn"))
    with pytest.raises(LeaseLost):
        apply(store, made, owner)
    assert status_of(store, ids[1]) == "claimed"


def test_the_database_refuses_a_lesson_in_two_updates_that_count(store: Store, world: World) -> None:
    world.lessons(num_groups=1)
    owner = new_id()
    made = open_update(store, world, owner)
    ids = lessons_of(store, made.id)
    apply(store, made, owner)
    with store.transaction() as session:
        session.execute(update(LessonRow).values(status="ready"))
    with pytest.raises(IntegrityError), store.transaction() as session:
        start_update(session, world.lineage_id, owner, ids)


def test_a_commit_of_unknown_outcome_may_be_repeated(store: Store, world: World) -> None:
    world.lessons(num_groups=1)
    owner = new_id()
    made = open_update(store, world, owner)
    apply(store, made, owner)
    apply(store, made, owner)
    with store.transaction() as session:
        assert updates.last_number(session, world.lineage_id) == 1


def test_an_invalid_lesson_keeps_its_reason_and_does_not_count_as_used(store: Store, world: World) -> None:
    world.lessons(num_groups=1)
    owner = new_id()
    made = open_update(store, world, owner)
    ids = lessons_of(store, made.id)
    apply(
        store,
        made,
        owner,
        [Contribution(ids[0], invalid="NaN in its logprobs"), *(Contribution(lesson_id) for lesson_id in ids[1:])],
    )
    with store.transaction() as session:
        row = session.get_one(LessonRow, ids[0])
        assert (row.status, row.reason) == ("invalid", "NaN in its logprobs")
        assert session.get_one(UpdateLessonRow, (made.id, ids[0])).status == "abandoned"


def test_lessons_that_taught_nothing_are_set_aside_with_the_reason_and_never_claimed_again(
    store: Store, world: World
) -> None:
    world.lessons(num_groups=1)
    owner, reason = new_id(), "none of its rows has usable feedback"
    made = open_update(store, world, owner)
    ids = lessons_of(store, made.id)
    given = [Contribution(ids[0], invalid="NaN"), *(Contribution(lesson_id) for lesson_id in ids[1:])]
    for _ in range(2):  # a commit of unknown outcome may be repeated
        with store.transaction() as session:
            updates.set_aside(session, made.id, owner, reason=reason, metrics={"num_rows": 8}, contributions=given)
    with store.transaction() as session:
        rows = {row.id: (row.status, row.reason) for row in session.scalars(select(LessonRow))}
        row = session.get_one(UpdateRow, made.id)
        assert (row.status, row.reason, row.metrics) == ("abandoned", reason, {"num_rows": 8})
        assert updates.last_number(session, world.lineage_id) == 0
        assert set(session.scalars(select(UpdateLessonRow.status))) == {"abandoned"}
        assert lessons.count_ready(session, world.lineage_id) == 0
    assert rows == {ids[0]: ("invalid", "NaN")} | dict.fromkeys(ids[1:], ("set_aside", reason))


def test_a_trainer_that_lost_its_lease_sets_nothing_aside(store: Store, world: World) -> None:
    world.lessons(num_groups=1)
    owner = new_id()
    made = open_update(store, world, owner, lease_seconds=0)
    given = [Contribution(lesson_id) for lesson_id in lessons_of(store, made.id)]
    with store.transaction() as session:
        lessons.free_expired(session)
    with pytest.raises(LeaseLost), store.transaction() as session:
        updates.set_aside(session, made.id, owner, reason="nothing", metrics={}, contributions=given)
    assert {status_of(store, one.lesson_id) for one in given} == {"ready"}


def test_the_ledger_tells_which_updates_used_an_answer(store: Store, world: World) -> None:
    world.lessons(num_groups=1)
    owner, answer_id = new_id(), new_id()
    made = open_update(store, world, owner)
    ids = lessons_of(store, made.id)
    term = TermRecord(kind=TermKind.LABEL, answers=[answer_id], weight=1, share=0.1)
    apply(store, made, owner, [Contribution(ids[0], terms=(term,)), *(Contribution(i) for i in ids[1:])])
    with store.transaction() as session:
        assert updates.numbers_using(session, [answer_id, new_id()]) == {answer_id: [1]}
        assert updates.numbers_using(session, []) == {}
        detail = updates.detail(session, updates.get(session, world.lineage_id, 1))
    assert [one.terms for one in detail.lessons if one.terms] == [[term]]


def test_what_was_sampled_too_many_versions_ago_is_set_aside_with_the_reason(store: Store, world: World) -> None:
    with store.transaction() as session:
        world.version(session, 1)
        world.version(session, 2)
        judge = world.expert(session, "judge", [AnswerKind.SCORE])
        for name in ("base", "main-v1", "main-v2", "somewhere else"):
            [row] = world.group(session, world.task(session, name), ["4"], policy_version=name)
            world.answer(session, row, judge, AnswerContent(score=1.0))
            world.lesson(session, row, late=name == "base")
        [row] = world.group(session, world.task(session, "old"), ["4"])
        world.answer(session, row, judge, AnswerContent(score=1.0))
        world.lesson(session, row)
    with store.transaction() as session:
        assert lessons.set_aside_stale(session, world.lineage_id, 1) == 1
        aside = session.scalars(select(LessonRow).where(LessonRow.status == "set_aside")).all()
    assert [(lesson.rollout_id, lesson.reason) for lesson in aside] == [
        (row.id, "stale: sampled over 1 serving versions ago")
    ]


def test_late_lessons_are_claimed_one_by_one_beside_the_groups(store: Store, world: World) -> None:
    with store.transaction() as session:
        judge = world.expert(session, "judge", [AnswerKind.SCORE])
        for key in "abc":
            [row] = world.group(session, world.task(session, key), ["4"])
            world.answer(session, row, judge, AnswerContent(score=1.0))
            world.lesson(session, row, late=True)
    with store.transaction() as session:
        rows = lessons.claim(session, world.lineage_id, new_id(), num_rollouts=0, max_late=2, lease_seconds=60)
    assert [row.late for row in rows] == [True, True]


def test_the_answers_of_an_expert_that_is_not_active_weigh_nothing(store: Store, world: World) -> None:
    with store.transaction() as session:
        active = world.expert(session, "active", [AnswerKind.SOLUTION], reference=True)
        trial = world.expert(session, "trial", [AnswerKind.SOLUTION], status="probation")
        [row] = world.group(session, world.task(session, "x"), ["4"])
        for expert in (active, trial):
            world.answer(session, row, expert, AnswerContent(solution="four"))
        lesson = world.lesson(session, row)
        [fact] = lesson_facts.load(session, [lesson])
    assert {answer.expert: answer.weight for answer in fact.answers} == {"active": 1.0, "trial": 0.0}
    assert {answer.expert: answer.from_reference for answer in fact.answers} == {"active": True, "trial": False}


def test_a_submitted_correction_is_found_for_later_groups_of_its_task(store: Store, world: World) -> None:
    with store.transaction() as session:
        human = world.expert(session, "human", [AnswerKind.SOLUTION])
        task = world.task(session, "x")
        [row] = world.group(session, task, ["5"])
        answer_id = world.correction(session, row, human, "4")
        [fact] = lesson_facts.load(session, [world.lesson(session, row, late=True)])
        before = {task.id: new_id()}
        [found] = find_fixed(session, world.lineage_id, [task.id], before=before)[task.id]
        same_group = find_fixed(session, world.lineage_id, [task.id], before={task.id: row.group_id})[task.id]
    assert fact.answers[0].corrected
    assert (found.source, found.answers, found.solution) == (ContextSource.CORRECTION, (answer_id,), "4")
    assert same_group == []


def test_one_holder_has_the_lineage_until_its_connection_ends(world: World, database_url: str) -> None:
    first, second = LineageLock(database_url, world.lineage_id), LineageLock(database_url, world.lineage_id)
    assert first.hold()
    assert first.hold()
    assert not second.hold()
    first.release()
    assert second.hold()
    second.release()
