"""The arms of a measurement's task: what the teacher is shown, what the control is shown, and how often each passed.

The student's answers supply material too: its successes, its failures with what was said about them, and what experts
answered. All of that comes from one half of them, and the student's pass rate from the other: who says something about
failures only would otherwise choose the tasks where the student happened to fail. Corrections alone are of earlier
answers, so with them the student is read on both halves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerStatus, Feedback, passes
from services.contracts.rollouts import GroupStatus, RolloutStatus
from services.contracts.sources import Arm, ContextSource, ShownContext
from services.contracts.tasks import Message, Precedent
from services.contracts.templates import Template, build_teacher_messages, render_feedback, strip_thinking
from services.store.loop import held_out, opening, trust
from services.store.tables.loop import AnswerRow, ExpertRow, GroupRow, RolloutRow, TaskRow
from services.store.tables.teaching import MeasurementRow
from services.store.teaching.material import Material

OF_EARLIER_ANSWERS: Final = frozenset({ContextSource.CORRECTION})
"""Sources that the student's answers to the task never supply."""


@dataclass(frozen=True)
class Shown:
    """What one arm is shown about a task, and the answers behind it."""

    answers: tuple[UUID, ...]
    solution: str | None = None
    precedents: tuple[Precedent, ...] = ()
    feedback: str | None = None

    @property
    def words(self) -> str:
        """Its text: the same words of two tasks are no control for each other."""
        return self.solution or self.feedback or "\n\n".join(one.answer for one in self.precedents)


def find_shown(
    session: Session,
    measurement: MeasurementRow,
    student: Sequence[RolloutRow],
    fixed: Sequence[Material],
    *,
    num_precedents: int = 1,
) -> Shown | None:
    """What the teacher is shown about the task that these rollouts of the student answer; None where there is nothing.

    fixed: the task's material that is fixed given the prompt (`material.find_fixed`). num_precedents: shown together.
    """
    source = ContextSource(measurement.source)
    for one in fixed:
        if one.source is source and one.expert_id == measurement.expert_id:
            return Shown(one.answers, one.solution, one.precedents)
    supplying = [rollout for rollout in student if opening.supplies_material(rollout.index_in_group)]
    said = session.scalars(
        select(AnswerRow).where(
            AnswerRow.rollout_id.in_([rollout.id for rollout in supplying]),
            AnswerRow.expert_id == measurement.expert_id,
            AnswerRow.status == AnswerStatus.CURRENT.value,
        )
    ).all()
    by_rollout = {answer.rollout_id: answer for answer in said}
    expert = session.get_one(ExpertRow, measurement.expert_id)
    for rollout in sorted(supplying, key=lambda one: one.index_in_group):
        answer = by_rollout.get(rollout.id)
        if answer is None:
            continue
        shown = (
            _show_precedents(session, rollout, answer, num_precedents)
            if source is ContextSource.PRECEDENTS
            else _show(source, rollout, answer, expert)
        )
        if shown is not None and shown.words.strip():
            return shown
    return None


def _show_precedents(session: Session, rollout: RolloutRow, answer: AnswerRow, num: int) -> Shown | None:
    """The first of the answer's precedents, without those that no teacher is shown."""
    own = session.get_one(TaskRow, rollout.task_id).messages
    [told] = held_out.read_precedents(session, answer.lineage_id, [(answer, own)])
    kept = told[:num]
    return Shown((answer.id,), precedents=tuple(kept)) if kept else None


def _show(source: ContextSource, rollout: RolloutRow, answer: AnswerRow, expert: ExpertRow) -> Shown | None:
    """What this rollout of the student and this answer about it give to show. What a verifier on probation certifies
    is shown whatever the others say: its own judgement is measured."""
    passed = passes(rollout.score)
    if source is ContextSource.OWN_SUCCESS:
        certified = passes(answer.score) and (passed or trust.is_on_probation(expert))
        return Shown((answer.id,), solution=strip_thinking(rollout.text)) if certified else None
    if source is ContextSource.FEEDBACK:
        if answer.feedback is None or rollout.score is None or passed:
            return None
        return Shown((answer.id,), feedback=render_feedback(Feedback.model_validate(answer.feedback)))
    if source in (ContextSource.SOLUTION, ContextSource.REFERENCE) and answer.solution:
        return Shown((answer.id,), solution=strip_thinking(answer.solution))
    return None


def pair_controls(
    source: ContextSource, tasks: Mapping[UUID, TaskRow], shown: Mapping[UUID, Shown]
) -> dict[UUID, Shown]:
    """By task, what its control is shown: the same thing from another of these tasks, of another family if there is
    one. Of precedents it is the precedent's answer, as if it answered this very question. Tasks without are left out.
    """
    if source is ContextSource.PRECEDENTS:
        return {task_id: Shown(one.answers, solution=one.precedents[-1].answer) for task_id, one in shown.items()}
    order = sorted(shown, key=lambda task_id: tasks[task_id].key)
    found: dict[UUID, Shown] = {}
    for place, task_id in enumerate(order):
        others = [other for other in order[place + 1 :] + order[:place] if shown[other].words != shown[task_id].words]
        others.sort(key=lambda other: tasks[other].family == tasks[task_id].family)
        if others:
            found[task_id] = shown[others[0]]
    return found


def build_context(measurement: MeasurementRow, task: TaskRow, shown: Shown, arm: Arm) -> ShownContext:
    """The messages that an arm of the measurement answers."""
    messages = [Message.model_validate(message) for message in task.messages]
    built = build_teacher_messages(
        Template(measurement.template), messages, shown.solution, shown.feedback, shown.precedents
    )
    return ShownContext(
        source=ContextSource(measurement.source),
        template=Template(measurement.template),
        messages=built,
        answers=list(shown.answers),
        measurement_id=measurement.id,
        arm=arm,
    )


@dataclass(frozen=True)
class Tried:
    """How a group of draws came out: answers that were judged and those that passed, of both halves or of one.

    is_over: no draw or verdict is still to come.
    """

    is_over: bool
    num_judged: int = 0
    num_passed: int = 0
    num_compared: int = 0
    num_compared_passed: int = 0
    num_tokens: int = 0

    def rate(self, source: ContextSource, arm: Arm) -> float | None:
        """The arm's pass rate where it is measured; None where nothing was judged."""
        halved = arm is Arm.STUDENT and source not in OF_EARLIER_ANSWERS
        judged, passed = (self.num_compared, self.num_compared_passed) if halved else (self.num_judged, self.num_passed)
        return passed / judged if judged else None


def read_tried(session: Session, group_ids: Sequence[UUID]) -> dict[UUID, Tried]:
    """How these groups came out. What the policy drew in the place of a teacher that could not is judged nowhere."""
    found = {
        group_id: Tried(status in (GroupStatus.SAMPLED.value, GroupStatus.DEAD.value))
        for group_id, status in session.execute(select(GroupRow.id, GroupRow.status).where(GroupRow.id.in_(group_ids)))
    }
    rows = session.execute(
        select(
            RolloutRow.group_id,
            RolloutRow.index_in_group,
            RolloutRow.status,
            RolloutRow.score,
            RolloutRow.token_ids,
            RolloutRow.shown == GroupRow.context.is_not(None),
        )
        .join(GroupRow, GroupRow.id == RolloutRow.group_id)
        .where(RolloutRow.group_id.in_(group_ids))
    )
    for group_id, index, status, verdict, token_ids, as_planned in rows:
        score = verdict if as_planned else None
        judged, passed = int(score is not None), int(passes(score))
        compared = int(not opening.supplies_material(index))
        so_far = found[group_id]
        found[group_id] = replace(
            so_far,
            is_over=so_far.is_over and status != RolloutStatus.OPEN.value,
            num_judged=so_far.num_judged + judged,
            num_passed=so_far.num_passed + passed,
            num_compared=so_far.num_compared + judged * compared,
            num_compared_passed=so_far.num_compared_passed + passed * compared,
            num_tokens=so_far.num_tokens + len(token_ids),
        )
    return found
