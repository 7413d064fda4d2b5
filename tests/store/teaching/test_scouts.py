"""Scouts: which tasks are scouted and for whom, who is asked, and what never waits for them."""

from datetime import timedelta

import pytest
from sqlalchemy import func, select

from services.contracts.answers import AnswerContent, AnswerKind
from services.contracts.experts import OwnKind
from services.contracts.measurements import MeasurementStatus
from services.contracts.rollouts import Purpose, Sampling
from services.contracts.sources import ContextSettings, ContextSource
from services.contracts.tasks import Message, TaskCreate
from services.contracts.templates import Template
from services.store.loop import groups, pass_rates, tasks
from services.store.loop.groups import TeacherShare
from services.store.tables.ledger import LessonRow
from services.store.tables.loop import AnswerRow, ConsultationRow, ExpertRow, GroupRow, RolloutRow, TaskRow
from services.store.tables.teaching import ScoutRow
from services.store.teaching import roll_in, scouts
from services.store.teaching.roll_in import RollIn, Teaching
from tests.store.teaching.test_material import LIBRARIAN, REFERENCE, Desk, desk, precedent

__all__ = ["desk"]

pytestmark = pytest.mark.integration

TOLD = precedent("Light the lamp 3.", "/glow 3")


def house(desk: Desk, key: str, *, domain: str = "command", **metadata: object) -> TaskRow:
    """A task that carries precedents, and this too."""
    prompt = TaskCreate(
        key=key,
        domain=domain,
        messages=[Message(role="user", content=f"Light the {key}.")],
        metadata={"precedents": [TOLD.model_dump(mode="json")], **metadata},
    )
    return tasks.add(desk.session, desk.world.lineage_id, prompt)[0]


def failed(desk: Desk, domain: str = "command") -> TaskRow:
    """A task of the domain that the policy failed eight times."""
    judge, task = desk.expert(f"judge of {domain}"), house(desk, f"failed {domain}", domain=domain)
    for row in desk.drawn(task, 8):
        desk.said(row, judge, AnswerContent(score=0.0))
    return task


def librarian(desk: Desk, name: str = "librarian", **options: object) -> ExpertRow:
    return desk.expert(name, **{**LIBRARIAN, "granted": ("precedents",), **options})


def choose(desk: Desk, *found: TaskRow, **changes: object) -> RollIn:
    contexts = ContextSettings.model_validate(changes)
    teaching = Teaching(0.5, 8, temperature=0.5, contexts=contexts, num_precedents=1)
    return roll_in.choose(desk.session, desk.world.lineage_id, found, size=8, teaching=teaching)


def send(desk: Desk, task: TaskRow) -> set[object]:
    """Scout the task if it has to be; the tasks that wait."""
    return {*scouts.send(desk.session, [task], choose(desk, task).unheard, Sampling(max_new_tokens=64))}


def sent(desk: Desk, task: TaskRow) -> list[GroupRow]:
    of_task = select(GroupRow).where(GroupRow.task_id == task.id, GroupRow.purpose == Purpose.SCOUT.value)
    return list(desk.session.scalars(of_task.order_by(GroupRow.id)))


def draw(desk: Desk, group: GroupRow) -> RolloutRow:
    """The scout's rollout, as a worker stores it."""
    [claimed] = groups.claim(desk.session, [group.id], lease_seconds=60)
    finished = groups.finish(desk.session, claimed, "base")
    assert finished is not None
    [row] = desk.world.store_drawn(desk.session, finished)
    return row


def asked(desk: Desk, row: RolloutRow) -> dict[str, list[str]]:
    """By expert, the kinds of answer that it is asked for about this rollout."""
    rows = desk.session.execute(
        select(ExpertRow.name, ConsultationRow.ask)
        .join(ExpertRow, ExpertRow.id == ConsultationRow.expert_id)
        .where(ConsultationRow.rollout_id == row.id)
    )
    return {name: ask["kinds"] for name, ask in rows}  # type: ignore[misc]


def words(share: TeacherShare) -> list[str]:
    return [message.content for message in share.context.messages]


def test_a_task_never_drawn_is_scouted_and_its_teacher_then_draws_after_its_own_precedents(desk: Desk) -> None:
    failed(desk)
    expert, task = librarian(desk), house(desk, "lamp")
    found = choose(desk, task)
    assert not found.shares
    assert found.unheard == {task.id: {expert.id}}
    assert send(desk, task) == {task.id}
    [group] = sent(desk, task)
    assert (group.size, group.num_shown, group.sampling["max_new_tokens"]) == (1, 0, 8)
    assert task.num_groups == 0
    row = draw(desk, group)
    assert asked(desk, row) == {"librarian": ["precedents"]}
    assert send(desk, task) == {task.id}  # it is being asked
    desk.said(row, expert, AnswerContent(precedents=[TOLD]))
    row.status = "ready"
    desk.session.flush()
    assert send(desk, task) == set()
    share = choose(desk, task).shares[task.id]
    assert (share.num_shown, share.context.source) == (4, ContextSource.PRECEDENTS)
    assert words(share) == ["Light the lamp 3.", "/glow 3", "Light the lamp."]
    assert sent(desk, task) == [group]


def test_a_scout_counts_in_no_backlog_pass_rate_or_lesson(desk: Desk) -> None:
    failed(desk)
    librarian(desk)
    task = house(desk, "lamp")
    before = groups.backlog(desk.session, desk.world.lineage_id)
    send(desk, task)
    row = draw(desk, sent(desk, task)[0])
    row.score, row.status = 1.0, "ready"
    desk.session.flush()
    assert groups.backlog(desk.session, desk.world.lineage_id) == before
    [rate] = pass_rates.of_domains(desk.session, desk.world.lineage_id)
    assert (rate.num_judged, rate.pass_rate) == (8, 0.0)
    assert pass_rates.of_tasks(desk.session, desk.world.lineage_id, [task.id]) == {}
    assert not desk.session.scalars(select(LessonRow).where(LessonRow.rollout_id == row.id)).all()


@pytest.mark.parametrize("status", ["pending", "dead"])
def test_a_group_waits_for_a_scout_thirty_seconds_and_not_for_a_failed_one(desk: Desk, status: str) -> None:
    failed(desk)
    librarian(desk)
    task = house(desk, "lamp")
    assert send(desk, task) == {task.id}
    [group] = sent(desk, task)
    group.status = status
    now = desk.session.scalars(select(func.now())).one()  # of the transaction, which may have begun long ago
    group.created_at = now - timedelta(seconds=20 if status == "dead" else 31)
    desk.session.flush()
    assert send(desk, task) == set()
    assert sent(desk, task) == [group]  # and it is not scouted again


def test_a_task_is_scouted_once_for_each_expert_that_may_train_and_is_asked_now(desk: Desk) -> None:
    failed(desk)
    first = librarian(desk)
    newcomer = librarian(desk, "newcomer", status="probation")
    away = librarian(desk, "away", status="quarantined")
    away.was_active = True
    task = house(desk, "lamp")
    send(desk, task)
    scouted = select(ScoutRow.expert_id).where(ScoutRow.task_id == task.id)
    assert list(desk.session.scalars(scouted)) == [first.id]
    newcomer.status = "active"
    desk.session.flush()
    assert send(desk, task) == {task.id}
    assert {*desk.session.scalars(scouted)} == {first.id, newcomer.id}
    assert asked(desk, draw(desk, sent(desk, task)[1])) == {"newcomer": ["precedents"]}


def test_only_what_may_be_shown_and_is_not_known_is_scouted_for(desk: Desk) -> None:
    failed(desk)
    expert, key = librarian(desk), desk.expert("key", **REFERENCE, granted=("reference",))
    task, plain = house(desk, "lamp", reference="/glow"), desk.task("plain", domain="command")
    assert choose(desk, task, plain).unheard == {task.id: {expert.id, key.id}, plain.id: frozenset()}
    assert choose(desk, task, sources={"*": ["reference"]}).unheard == {task.id: {key.id}}
    assert choose(desk, task, sources={"*": ["nothing", "reference"]}).unheard == {task.id: frozenset()}
    desk.world.measured(
        desk.session,
        key.id,
        MeasurementStatus.DOES_NOT_TEACH,
        source=ContextSource.REFERENCE,
        template=Template.TURNS,
        domain="command",
    )
    assert choose(desk, task).unheard == {task.id: {expert.id}}
    desk.said(desk.drawn(task, 1)[0], expert, AnswerContent(precedents=[TOLD]))
    assert choose(desk, task).unheard == {}


def test_a_task_that_the_policy_draws_alone_is_not_scouted(desk: Desk) -> None:
    librarian(desk)
    task = house(desk, "lamp")
    assert choose(desk, task).unheard == {}  # nothing was judged yet
    judge = desk.expert("judge")
    for row in desk.drawn(house(desk, "other"), 8):
        desk.said(row, judge, AnswerContent(score=1.0))
    assert choose(desk, task).unheard == {}


def test_an_expert_that_is_asked_about_no_group_is_asked_about_no_scout(desk: Desk) -> None:
    failed(desk)
    librarian(desk).group_fraction = 0.0
    task = house(desk, "lamp")
    send(desk, task)
    row = draw(desk, sent(desk, task)[0])
    assert (asked(desk, row), row.status, row.reason) == ({}, "set_aside", "no expert answered")


def test_a_verifier_is_asked_about_a_scout_only_for_what_it_reads_off_the_task(desk: Desk) -> None:
    failed(desk)
    kinds = (AnswerKind.SCORE, AnswerKind.SOLUTION)
    desk.expert("marker", kinds=kinds, metadata_keys=("reference",), granted=("reference",))
    task = house(desk, "lamp", reference="/glow")
    send(desk, task)
    assert asked(desk, draw(desk, sent(desk, task)[0])) == {"marker": ["solution"]}


def test_another_tasks_answer_is_never_shown_of_a_task_that_carries_precedents_of_its_own(desk: Desk) -> None:
    human = desk.expert(OwnKind.HUMAN.value, kinds=(AnswerKind.SOLUTION,), verifier=False)
    judge = desk.expert("judge")
    corrected = house(desk, "door")
    for row in desk.drawn(corrected, 16):
        desk.said(row, judge, AnswerContent(score=0.0))
    desk.corrected(desk.session.scalars(select(RolloutRow)).all()[0], human, "/swing 1")
    task = house(desk, "lamp")
    [pooled] = desk.find(task)  # nobody would give its own
    assert [one.answer for one in pooled.precedents] == ["/swing 1"]
    assert choose(desk, task).shares[task.id].context.source is ContextSource.PRECEDENTS
    expert = librarian(desk)
    assert desk.find(task) == []  # its own are expected
    assert choose(desk, task).shares == {}
    without = desk.task("without", domain="command")
    assert [one.answer for one in desk.find(without)[0].precedents] == ["/swing 1"]
    desk.said(desk.drawn(task, 1)[0], expert, AnswerContent(precedents=[TOLD]))
    assert [one.expert_id for one in desk.find(task)] == [expert.id]


def test_the_answer_about_a_scout_is_one_of_the_tasks_own_whatever_else_it_says(desk: Desk) -> None:
    failed(desk)
    key = desk.expert("key", **REFERENCE, granted=("reference",))
    task = house(desk, "lamp", reference="/glow")
    send(desk, task)
    answer_id = desk.said(draw(desk, sent(desk, task)[0]), key, AnswerContent(solution="/glow"))
    [found] = desk.find(task)
    assert (found.source, found.solution, found.answers) == (ContextSource.REFERENCE, "/glow", (answer_id,))
    assert desk.session.get_one(AnswerRow, answer_id).could_train
