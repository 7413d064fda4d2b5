"""What there is to show about a task: in which order, from whom, and never a held-out question."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerContent, AnswerKind
from services.contracts.experts import OwnKind
from services.contracts.measurements import MeasurementStatus
from services.contracts.persons import Role
from services.contracts.rollouts import Purpose
from services.contracts.sources import ContextSource
from services.contracts.tasks import Message, Precedent, Split, TaskCreate
from services.store.core.transaction import Store
from services.store.loop import answers, held_out, rollouts, tasks
from services.store.people import persons
from services.store.tables.corrections import CorrectionRow
from services.store.tables.loop import AnswerRow, ConsultationRow, ExpertRow, RolloutRow, TaskRow
from services.store.tables.teaching import MeasuredTaskRow
from services.store.teaching import material
from services.store.teaching.material import Material
from tests.store.conftest import World

pytestmark = pytest.mark.integration


class Desk:
    """Puts answers into one session, and reads what may be shown."""

    def __init__(self, session: Session, world: World) -> None:
        self.session, self.world = session, world

    def task(self, key: str, question: str = "", *, family: str | None = None, domain: str = "math") -> TaskRow:
        asked = [Message(role="user", content=question or f"What is {key}?")]
        prompt = TaskCreate(key=key, family=family, domain=domain, messages=asked)
        return tasks.add(self.session, self.world.lineage_id, prompt)[0]

    def expert(self, name: str, **options: object) -> ExpertRow:
        return self.world.expert(self.session, name, **options)  # type: ignore[arg-type]

    def drawn(self, task: TaskRow, size: int = 2) -> list[RolloutRow]:
        rows = self.world.drawn(self.session, task, size=size)
        for row in rows:
            row.settled_at = datetime.now(UTC)
        self.session.flush()
        return rows

    def said(self, rollout: RolloutRow, expert: ExpertRow, content: AnswerContent) -> UUID:
        of_both = {"rollout_id": rollout.id, "expert_id": expert.id}
        consultation = self.session.query(ConsultationRow).filter_by(**of_both).one_or_none()
        if consultation is None:
            consultation = ConsultationRow(
                **of_both,
                lineage_id=self.world.lineage_id,
                expert_version=expert.version,
                stage=1,
                ask={"kinds": ["score"]},
                deadline=datetime.now(UTC) + timedelta(hours=1),
            )
            self.session.add(consultation)
        for status in ("asked", "answered"):
            consultation.status = status
            self.session.flush()
        answer = answers.record(self.session, consultation, rollout, content).id
        rollouts.judge_again(self.session, rollout)
        self.session.flush()
        return answer

    def corrected(self, rollout: RolloutRow, expert: ExpertRow, words: str) -> UUID:
        answer_id = self.said(rollout, expert, AnswerContent(score=0.0, solution=words))
        person, _ = persons.create(self.session, f"ann-{answer_id}", Role.ANNOTATOR)
        self.session.add(
            CorrectionRow(
                lineage_id=self.world.lineage_id,
                consultation_id=self.session.get_one(AnswerRow, answer_id).consultation_id,
                rollout_id=rollout.id,
                split=rollout.split,
                status="submitted",
                person_id=person.id,
                verdict="corrected",
                text=words,
            )
        )
        self.session.flush()
        return answer_id

    def find(self, task: TaskRow, **options: object) -> list[Material]:
        lineage_id = self.world.lineage_id
        return material.find_fixed(self.session, lineage_id, [task.id], **options)[task.id]  # type: ignore[arg-type]

    def passed(self, task: TaskRow, words: str, judge: ExpertRow, size: int = 2) -> RolloutRow:
        """A group whose first rollout says this and is called right."""
        first, *others = self.drawn(task, size)
        first.text = words
        self.said(first, judge, AnswerContent(score=1.0))
        for other in others:
            self.said(other, judge, AnswerContent(score=0.0))
        return first


@pytest.fixture
def desk(store: Store, world: World) -> Iterator[Desk]:
    """A desk with a session of the test's own."""
    with store.transaction() as session:
        yield Desk(session, world)


def sources(found: list[Material]) -> list[ContextSource]:
    return [one.source for one in found]


def only(found: list[Material], source: ContextSource) -> Material:
    [one] = [one for one in found if one.source is source]
    return one


REFERENCE = {"kinds": (AnswerKind.SOLUTION,), "verifier": False, "metadata_keys": ("reference",)}
LIBRARIAN = {"kinds": (AnswerKind.PRECEDENTS,), "verifier": False, "metadata_keys": ("precedents",)}


def test_all_there_is_to_show_comes_in_the_order_in_which_it_is_looked_for(desk: Desk) -> None:
    judge = desk.expert("execution")
    human = desk.expert(OwnKind.HUMAN.value, kinds=(AnswerKind.SOLUTION,), verifier=False)
    reference = desk.expert("reference", **REFERENCE, granted=("reference",))
    other = desk.task("1+1")
    desk.passed(other, "two", judge)
    task = desk.task("2+2")
    desk.passed(task, "four", judge)
    [first, second] = desk.drawn(task)
    desk.corrected(first, human, "4!")
    desk.said(second, reference, AnswerContent(solution="4"))
    found = desk.find(task)
    assert [(one.source, one.solution, one.expert_id) for one in found] == [
        (ContextSource.OWN_SUCCESS, "four", judge.id),
        (ContextSource.CORRECTION, "4!", human.id),
        (ContextSource.PRECEDENTS, None, judge.id),
        (ContextSource.REFERENCE, "4", reference.id),
    ]
    [precedent] = found[2].precedents
    assert (precedent.messages[0].content, precedent.answer) == ("What is 1+1?", "two")


def test_a_success_is_remembered_with_all_verifiers_that_certified_it_once_for_each_of_them(desk: Desk) -> None:
    first, second = desk.expert("execution"), desk.expert("exact")
    second.weight = 3.0
    task = desk.task("2+2")
    rollout = desk.passed(task, "<think>hm</think>four", first)
    other = desk.said(rollout, second, AnswerContent(score=0.9))
    found, again = desk.find(task)
    assert (found.solution, found.expert_id, found.weight) == ("four", first.id, 1.0)
    assert (again.solution, again.expert_id, again.weight) == ("four", second.id, 3.0)
    assert found.names == (f"the policy's own rollout {rollout.id}", "execution@1", "exact@1")
    assert [speaker.expert_id for speaker in found.speakers] == [first.id, second.id]
    assert (found.answers[1], set(found.answers)) == (other, set(again.answers))


def test_a_success_goes_first_to_the_verifier_with_the_first_id_whoever_answered_first(desk: Desk) -> None:
    first, second = desk.expert("execution"), desk.expert("exact")
    task = desk.task("2+2")
    desk.said(desk.passed(task, "four", second), first, AnswerContent(score=0.9))
    assert [one.expert_id for one in desk.find(task)] == [first.id, second.id]


def test_precedents_of_what_several_verifiers_certified_are_there_once_for_each(desk: Desk) -> None:
    first, second = desk.expert("execution"), desk.expert("exact")
    desk.said(desk.passed(desk.task("1+1"), "two", second), first, AnswerContent(score=0.9))
    desk.passed(desk.task("3+3"), "six", second)
    found = desk.find(desk.task("2+2"), num_precedents=2)
    assert [(one.expert_id, [told.answer for told in one.precedents]) for one in found] == [
        (second.id, ["six", "two"]),
        (first.id, ["two"]),
    ]


def test_the_newest_success_is_remembered_and_only_of_groups_before_the_named_one(desk: Desk) -> None:
    judge = desk.expert("execution")
    task = desk.task("2+2")
    old, new = (desk.passed(task, words, judge) for words in ("old", "new"))
    assert [one.solution for one in desk.find(task)] == ["new"]
    assert [one.solution for one in desk.find(task, before={task.id: new.group_id})] == ["old"]
    assert desk.find(task, before={task.id: old.group_id}) == []


def test_what_one_verifier_calls_wrong_or_a_teacher_drew_is_no_success(desk: Desk) -> None:
    first, second = desk.expert("execution"), desk.expert("exact")
    task = desk.task("2+2")
    desk.said(desk.passed(task, "four", first), second, AnswerContent(score=0.0))
    assert desk.find(task) == []
    shown = desk.passed(task, "shown", first)
    shown.sampler_logprobs, shown.shown = None, True
    desk.session.flush()
    assert desk.find(task) == []


def test_a_success_is_gone_with_the_trust_in_its_verifier(desk: Desk) -> None:
    judge = desk.expert("execution")
    task = desk.task("2+2")
    desk.passed(task, "four", judge)
    judge.status = "paused"
    desk.session.flush()
    assert desk.find(task) == []


def test_verdicts_of_a_verifier_on_probation_are_found_only_to_be_measured(desk: Desk) -> None:
    newcomer = desk.expert("newcomer", status="probation")
    task = desk.task("2+2")
    rollout, _ = desk.drawn(task)
    rollout.text = "four"
    desk.said(rollout, newcomer, AnswerContent(score=1.0))
    assert desk.find(task) == []
    [found] = desk.find(task, include_probation=True)
    assert (found.source, found.solution, found.expert_id) == (ContextSource.OWN_SUCCESS, "four", newcomer.id)


def test_a_correction_that_may_still_be_taken_back_is_not_shown(desk: Desk) -> None:
    human = desk.expert(OwnKind.HUMAN.value, kinds=(AnswerKind.SOLUTION,), verifier=False)
    task = desk.task("2+2")
    rollout, _ = desk.drawn(task)
    desk.corrected(rollout, human, "4!")
    assert sources(desk.find(task)) == [ContextSource.CORRECTION]
    item = desk.session.query(CorrectionRow).one()
    item.held_until = datetime.now(UTC) + timedelta(hours=1)
    desk.session.flush()
    assert desk.find(task) == []


def test_precedents_are_of_the_same_family_first_and_then_the_most_alike(desk: Desk) -> None:
    judge = desk.expert("execution")
    for key, question, family in (
        ("far", "Reverse a word.", "words"),
        ("near", "Add these two numbers: 3 and 4.", "sums of two"),
        ("kin", "Multiply a list.", "sums"),
        ("nearer kin", "Add numbers of a list.", "sums"),
    ):
        desk.passed(desk.task(key, question, family=family), key, judge)
    task = desk.task("asked", "Add these numbers: 1 and 2.", family="sums")

    def shown(num: int) -> list[str]:
        found = only(desk.find(task, num_precedents=num), ContextSource.PRECEDENTS)
        return [one.answer for one in found.precedents]

    assert shown(4) == ["nearer kin", "kin", "near", "far"]
    assert shown(1) == ["nearer kin"]
    assert desk.find(task, num_precedents=0) == []
    assert only(desk.find(task), ContextSource.PRECEDENTS).names == ("the task nearer kin", "execution@1")


def test_no_precedent_is_of_another_domain_or_asks_the_same_question(desk: Desk) -> None:
    judge = desk.expert("execution")
    desk.passed(desk.task("elsewhere", domain="code"), "x", judge)
    desk.passed(desk.task("twin", "What is 2+2?"), "four", judge)
    assert desk.find(desk.task("2+2")) == []


def test_corrections_and_references_of_other_tasks_are_precedents_each_of_its_own_expert(desk: Desk) -> None:
    human = desk.expert(OwnKind.HUMAN.value, kinds=(AnswerKind.SOLUTION,), verifier=False)
    reference = desk.expert("reference", **REFERENCE, granted=("reference",))
    corrected, referred = desk.task("corrected"), desk.task("referred")
    desk.corrected(desk.drawn(corrected)[0], human, "by hand")
    desk.said(desk.drawn(referred)[0], reference, AnswerContent(solution="by the key"))
    found = desk.find(desk.task("asked"))
    assert sources(found) == [ContextSource.PRECEDENTS] * 2
    assert {one.expert_id: one.precedents[0].answer for one in found} == {
        human.id: "by hand",
        reference.id: "by the key",
    }


def precedent(question: str, answer: str, system: str | None = None) -> Precedent:
    said = [] if system is None else [Message(role="system", content=system)]
    return Precedent(messages=[*said, Message(role="user", content=question)], answer=answer)


def test_a_reference_given_while_something_was_measured_is_one_too_but_no_measured_success_is(desk: Desk) -> None:
    judge, reference = desk.expert("judge"), desk.expert("reference", **REFERENCE, granted=("reference",))
    task, other = desk.task("one", "Add 1 and 1."), desk.task("two", "Add 1 and 2.")
    drawn, _ = desk.world.drawn(desk.session, other, purpose=Purpose.PROBE)
    desk.said(drawn, reference, AnswerContent(solution="It is 3."))
    desk.said(drawn, judge, AnswerContent(score=1.0))
    measurement = desk.world.measured(desk.session, judge.id, MeasurementStatus.MEASURING)
    place = MeasuredTaskRow(measurement_id=measurement.id, task_id=other.id, student_group_id=drawn.group_id)
    desk.session.add(place)
    desk.session.flush()
    [found] = desk.find(task)
    assert (found.source, found.expert_id) == (ContextSource.PRECEDENTS, reference.id)
    assert found.precedents[0].answer == "It is 3."


def test_of_precedents_that_an_expert_returns_those_that_answer_a_held_out_question_are_left_out(desk: Desk) -> None:
    librarian = desk.expert("librarian", **LIBRARIAN, granted=("precedents",))
    desk.world.task(desk.session, "measured", split=Split.HELDOUT)
    task = desk.task("2+2")
    told = [
        precedent("What is measured?", "leak"),
        precedent("What is measured?", "leak in disguise", system="You are kind."),
        precedent("What is 2+2?", "the very answer"),
        precedent("What is 1+1?", "two"),
    ]
    desk.said(desk.drawn(task)[0], librarian, AnswerContent(precedents=told))
    [found] = desk.find(task, num_precedents=8)
    assert (found.source, found.expert_id) == (ContextSource.PRECEDENTS, librarian.id)
    assert [one.answer for one in found.precedents] == ["two"]


@pytest.mark.parametrize("of_task", [None, "You are kind."])
@pytest.mark.parametrize("of_precedent", [None, "You are kind.", "You are strict."])
@pytest.mark.parametrize("split", [Split.VALIDATION, Split.HELDOUT, Split.TRAIN])
def test_a_question_is_the_same_whatever_the_system_messages_on_either_side(
    desk: Desk, of_task: str | None, of_precedent: str | None, split: Split
) -> None:
    """A train task's answer may be shown about another task; about itself it may not."""
    wanted = TaskCreate(
        key="asked", domain="math", split=split, messages=precedent("What is it?", "any", of_task).messages
    )
    task = tasks.add(desk.session, desk.world.lineage_id, wanted)[0]
    other = desk.task("2+2")
    told = [precedent("What is it?", "leak", of_precedent), precedent("What else is it?", "fine", of_precedent)]

    def may_be_shown(about: TaskRow) -> list[bool]:
        [shown] = held_out.may_be_shown(desk.session, desk.world.lineage_id, [(told, about.messages)])
        return shown

    assert may_be_shown(task) == [False, True]
    assert may_be_shown(other) == [split is Split.TRAIN, True]


def test_precedents_of_an_expert_that_is_not_given_the_tasks_own_are_not_fixed_by_the_task(desk: Desk) -> None:
    chooser = desk.expert("chooser", kinds=(AnswerKind.PRECEDENTS,), verifier=False)
    task = desk.task("2+2")
    desk.said(desk.drawn(task)[0], chooser, AnswerContent(precedents=[precedent("What is 1+1?", "two")]))
    assert desk.find(task) == []


def test_what_may_be_shown_about_many_tasks_takes_as_many_statements_as_about_one(
    desk: Desk, num_statements: Callable[[Callable[[], object]], int]
) -> None:
    judge, librarian = desk.expert("execution"), desk.expert("librarian", **LIBRARIAN, granted=("precedents",))
    asked = [desk.task(f"asked {number}", family=f"family {number}") for number in range(3)]
    for task in asked:
        told = AnswerContent(precedents=[precedent("What is 1+1?", f"two, about {task.key}")])
        desk.said(desk.drawn(task)[0], librarian, told)
    for number in range(3):
        desk.passed(desk.task(f"kin {number}", family=f"family {number}"), f"right {number}", judge)
    found: dict[UUID, list[Material]] = {}

    def read(some: list[TaskRow]) -> None:
        ids = [task.id for task in some]
        found.update(material.find_fixed(desk.session, desk.world.lineage_id, ids))

    assert num_statements(lambda: read(asked[:1])) == num_statements(lambda: read(asked))
    shown = {task.key: {told.answer for one in found[task.id] for told in one.precedents} for task in asked}
    assert shown == {f"asked {number}": {f"two, about asked {number}", f"right {number}"} for number in range(3)}


def test_equal_rows_give_equal_material(desk: Desk) -> None:
    judge = desk.expert("execution")
    for number in range(6):
        desk.passed(desk.task(f"{number}+{number}"), f"{2 * number}", judge)
    task = desk.task("9+9")
    assert desk.find(task, num_precedents=3) == desk.find(task, num_precedents=3)
