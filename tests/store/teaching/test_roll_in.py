"""Roll-in: how many rollouts of a group its teacher draws, and what it is shown."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerContent
from services.contracts.measurements import MeasurementStatus
from services.contracts.rollouts import Sampling
from services.contracts.sources import ContextSettings, ContextSource
from services.contracts.templates import Template
from services.store.loop import groups
from services.store.loop.groups import TeacherShare
from services.store.tables.loop import ExpertRow, RolloutRow, TaskRow
from services.store.tables.teaching import MeasurementRow
from services.store.teaching import right_answers, roll_in
from services.store.teaching.roll_in import Teaching
from tests.store.teaching.test_material import LIBRARIAN, REFERENCE, Desk, desk

__all__ = ["desk"]


@pytest.mark.parametrize(
    ("share", "pass_rate", "size", "num_shown"),
    [(0.5, 0.0, 8, 4), (0.5, 0.25, 8, 3), (0.5, 0.5, 8, 2), (0.5, 0.9, 8, 0), (0.5, 1.0, 8, 0), (1.0, 0.0, 8, 7)],
)
def test_a_teachers_share_falls_to_nothing_with_the_pass_rate_and_is_never_the_whole_group(
    share: float, pass_rate: float, size: int, num_shown: int
) -> None:
    assert roll_in.count_shown(share, pass_rate, size) == num_shown


@pytest.mark.parametrize(
    ("share", "pass_rate", "least_size", "size"),
    [
        (0.5, 0.0, 2, 2),
        (0.5, 0.24, 2, 2),  # 1.92 of 8 pass
        (0.5, 0.25, 2, 8),
        (0.25, 0.0, 2, 4),  # the teacher draws one of four
        (0.1, 0.0, 2, 8),  # one of ten would be more than a whole group
        (0.9, 0.0, 2, 2),
        (0.5, 0.0, 4, 4),
        (0.5, 0.0, 16, 8),
    ],
)
def test_a_group_is_small_where_less_than_two_of_its_rollouts_would_pass(
    share: float, pass_rate: float, least_size: int, size: int
) -> None:
    assert roll_in.find_size(share, pass_rate, 8, least_size) == size


def choose(
    desk: Desk, *tasks: TaskRow, share: float = 0.5, least_size: int = 8, **changes: Any
) -> list[TeacherShare | None]:
    """What teachers draw of these tasks' next groups of eight, or of at least so many."""
    contexts = ContextSettings.model_validate(changes)
    teaching = Teaching(share, least_size, temperature=0.5, contexts=contexts, num_precedents=1)
    found = roll_in.choose(desk.session, desk.world.lineage_id, tasks, size=8, teaching=teaching).shares
    return [found.get(task.id) for task in tasks]


def judged(desk: Desk, task: TaskRow, judge: ExpertRow, *scores: float) -> list[RolloutRow]:
    """A group with these verdicts."""
    rows = desk.drawn(task, len(scores))
    for row, score in zip(rows, scores, strict=True):
        desk.said(row, judge, AnswerContent(score=score))
    return rows


def refer(desk: Desk, row: RolloutRow) -> ExpertRow:
    """An expert that gave the task's reference with this rollout."""
    reference = desk.expert("reference", **REFERENCE, granted=("reference",))
    desk.said(row, reference, AnswerContent(solution="It is 7."))
    return reference


def contents(share: TeacherShare | None) -> Sequence[str]:
    return [] if share is None else [message.content for message in share.context.messages]


@pytest.mark.integration
def test_the_teacher_draws_by_the_pass_rate_on_the_task_after_what_is_shown_of_it(desk: Desk) -> None:
    judge = desk.expert("judge")
    hard, easier, known = (desk.task(key, domain=key) for key in ("hard", "easier", "known"))
    reference = refer(desk, judged(desk, hard, judge, *[0.0] * 8)[0])
    desk.said(judged(desk, easier, judge, *[0.0] * 6, *[1.0] * 2)[7], reference, AnswerContent(solution="It is 8."))
    judged(desk, known, judge, *[1.0] * 8)
    one, other, none = choose(desk, hard, easier, known)
    assert none is None
    assert one is not None
    assert (one.num_shown, one.context.temperature, one.context.source) == (4, 0.5, ContextSource.REFERENCE)
    assert contents(one) == ["What is hard?", "It is 7.", "What is hard?"]
    assert other is not None  # its own success comes before its reference
    assert (other.num_shown, other.context.source) == (3, ContextSource.OWN_SUCCESS)
    assert contents(other) == ["What is easier?", "answer 7", "What is easier?"]
    [planned] = groups.plan(desk.session, [hard], size=8, sampling=Sampling(), seed=0, shares={hard.id: one})
    assert (planned.num_shown, planned.size) == (4, 8)
    assert (planned.context or {})["quotes"] == ["reference"]
    assert choose(desk, hard, share=0.0) == [None]


@pytest.mark.integration
def test_who_gives_references_and_precedents_is_read_once_for_a_round(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, librarian = desk.expert("judge"), desk.expert("librarian", **LIBRARIAN, granted=("precedents",))
    hard, other = desk.task("hard", domain="hard"), desk.task("other", domain="hard")
    reference = refer(desk, judged(desk, hard, judge, *[0.0] * 8)[0])
    desk.said(judged(desk, other, judge, *[0.0] * 8)[0], reference, AnswerContent(solution="It is 8."))
    read, found = right_answers.find_givers, list[list[right_answers.Giver]]()

    def note(session: Session, lineage_id: UUID) -> list[right_answers.Giver]:
        found.append(read(session, lineage_id))
        return found[-1]

    monkeypatch.setattr(right_answers, "find_givers", note)
    assert None not in choose(desk, hard, other)
    [once] = found
    given = {(giver.expert.id, giver.source) for giver in once}
    assert given == {(reference.id, ContextSource.REFERENCE), (librarian.id, ContextSource.PRECEDENTS)}


@pytest.mark.integration
def test_the_group_of_a_task_that_the_policy_fails_is_planned_small_with_one_rollout_of_the_teachers(
    desk: Desk,
) -> None:
    judge = desk.expert("judge")
    hard, easier = desk.task("hard", domain="hard"), desk.task("easier", domain="easier")
    reference = refer(desk, judged(desk, hard, judge, *[0.0] * 8)[0])
    desk.said(judged(desk, easier, judge, *[0.0] * 6, *[1.0] * 2)[7], reference, AnswerContent(solution="It is 8."))
    one, other = choose(desk, hard, easier, least_size=2)
    assert one is not None
    assert other is not None
    assert [(each.num_shown, each.size) for each in (one, other)] == [(1, 2), (3, 8)]
    shares = {hard.id: one, easier.id: other}
    planned = groups.plan(desk.session, [hard, easier], size=8, sampling=Sampling(), seed=0, shares=shares)
    assert [(group.num_shown, group.size) for group in planned] == [(1, 2), (3, 8)]
    assert (hard.num_rollouts, easier.num_rollouts) == (10, 16)


@pytest.mark.integration
def test_a_task_without_verdicts_takes_its_domains_pass_rate_and_one_without_either_is_the_policys(desk: Desk) -> None:
    judge = desk.expert("judge")
    desk.passed(desk.task("one", "Add 1 and 1."), "It is 2.", judge, size=20)  # 1 of 20
    new, elsewhere = desk.task("two", "Add 1 and 2."), desk.task("three", "Add 1 and 3.", domain="code")
    share, none = choose(desk, new, elsewhere)
    assert none is None
    assert share is not None
    assert (share.num_shown, share.context.source) == (4, ContextSource.PRECEDENTS)  # half of .95 of 8, rounded
    assert contents(share) == ["Add 1 and 1.", "It is 2.", "Add 1 and 2."]


@pytest.mark.integration
def test_a_reference_is_shown_before_another_tasks_right_answer_that_nobody_measured(desk: Desk) -> None:
    judge = desk.expert("judge")
    desk.passed(desk.task("one", "Add 1 and 1."), "It is 2.", judge, size=20)
    task = desk.task("two", "Add 3 and 4.")
    refer(desk, judged(desk, task, judge, 0.0, 0.0)[0])
    [share] = choose(desk, task)
    assert share is not None
    assert share.context.source is ContextSource.REFERENCE
    desk.world.measured(
        desk.session,
        judge.id,
        MeasurementStatus.TEACHES,
        source=ContextSource.PRECEDENTS,
        template=Template.TURNS,
    )
    [share] = choose(desk, task)
    assert share is not None
    assert share.context.source is ContextSource.PRECEDENTS  # measured, it has its place in the order


@pytest.mark.integration
def test_a_teacher_that_draws_is_shown_what_the_trainers_settings_name_in_their_order(desk: Desk) -> None:
    judge = desk.expert("judge")
    task = desk.task("easier")
    refer(desk, judged(desk, task, judge, *[0.0] * 6, *[1.0] * 2)[0])
    orders: list[tuple[dict[str, list[str]], str | None]] = [
        ({}, "own_success"),
        ({"*": ["reference", "own_success"]}, "reference"),
        ({"*": ["own_success"], "math": ["correction", "reference"]}, "reference"),
        ({"*": ["nothing", "reference"]}, None),
        ({"*": ["feedback"]}, None),
    ]
    for sources, shown in orders:
        [share] = choose(desk, task, sources=sources)
        assert (share and share.context.source) == shown
    [share] = choose(desk, task, sources={"*": ["reference"]}, template=Template.REPROMPT)
    assert share is not None
    assert share.context.template is Template.REPROMPT
    assert len(share.context.messages) == 1
    assert "It is 7." in contents(share)[0]


@pytest.mark.integration
def test_what_was_measured_not_to_teach_is_not_drawn_after(desk: Desk) -> None:
    task = desk.task("hard")
    reference = refer(desk, judged(desk, task, desk.expert("judge"), *[0.0] * 8)[0])
    assert choose(desk, task) != [None]
    desk.session.add(
        MeasurementRow(
            lineage_id=desk.world.lineage_id,
            expert_id=reference.id,
            source=ContextSource.REFERENCE.value,
            template=Template.TURNS.value,
            domain="math",
            policy_version="base",
            temperature=0.5,
            status="does_not_teach",
            gap_low=-0.2,
            decided_at=datetime.now(UTC),
        )
    )
    desk.session.flush()
    assert choose(desk, task) == [None]
