"""Roll-in: which share of a planned group its teacher draws, and after what.

This is DAgger's mixture. A policy that never succeeds at a task visits only states from which nothing can be learned;
the teacher, shown something that is fixed given the prompt, leads it to better ones. The share falls to 0 as the
policy's own pass rate rises, and one rollout at least stays its own.

Groups are small there: siblings that fail have nothing to show each other, and an update of more tasks learns more from
as many rollouts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Final
from uuid import UUID

from sqlalchemy.orm import Session

from services.contracts.experts import ExpertStatus
from services.contracts.sources import ContextSettings, ContextSource, ShownContext
from services.contracts.tasks import Message
from services.contracts.templates import Template, build_teacher_messages
from services.store.loop import pass_rates, standing
from services.store.loop.groups import TeacherShare
from services.store.loop.standing import Standing
from services.store.tables.loop import TaskRow
from services.store.teaching import material, right_answers
from services.store.teaching.material import Material
from services.store.teaching.right_answers import Giver

SIBLINGS: Final = 2
"""Successes that a group must be expected to have for its rollouts to learn from each other."""


@dataclass(frozen=True)
class Teaching:
    """How teachers draw. contexts: what they are shown, as the trainer has it. num_precedents: how many other tasks are
    shown together."""

    share: float
    """Of a group whose policy never passes, 0..1."""
    least_size: int
    """Of a group where the policy hardly passes."""
    temperature: float
    contexts: ContextSettings
    num_precedents: int


@dataclass(frozen=True)
class RollIn:
    """The roll-in of some tasks' next groups.

    shares: by task, what its teacher draws; a task whose policy draws alone is left out. unheard: by task whose teacher
    has nothing of the task's own to draw after, the experts that would give it, and were not heard about the task yet.
    """

    shares: Mapping[UUID, TeacherShare] = field(default_factory=dict)
    unheard: Mapping[UUID, frozenset[UUID]] = field(default_factory=dict)


def choose(session: Session, lineage_id: UUID, tasks: Sequence[TaskRow], *, size: int, teaching: Teaching) -> RollIn:
    """The roll-in of these tasks' next groups. size: of groups without one."""
    if teaching.share == 0:
        return RollIn()
    parts = _divide(session, lineage_id, tasks, size, teaching)
    taught = [task for task in tasks if parts[task.id].num_shown]
    if not taught:
        return RollIn()
    ids = [task.id for task in taught]
    givers = right_answers.find_givers(session, lineage_id)
    found = material.find_fixed(session, lineage_id, ids, num_precedents=teaching.num_precedents, givers=givers)
    may_show = standing.read(session, lineage_id)
    shares, unheard = dict[UUID, TeacherShare](), dict[UUID, frozenset[UUID]]()
    for task in taught:
        first = find_first(found[task.id], may_show, task.domain, teaching.contexts)
        if first is not None:
            part = parts[task.id]
            context = _build_context(task, *first, teaching.temperature)
            shares[task.id] = TeacherShare(context, part.num_shown, part.size)
        if first is None or may_show.is_last_resort(first[0].expert_id, first[0].source, task.domain):
            unheard[task.id] = _find_unheard(task, givers, found[task.id], may_show, teaching.contexts)
    return RollIn(shares, unheard)


def count_shown(share: float, pass_rate: float, size: int) -> int:
    """How many rollouts of a group the teacher draws: share · (1 - pass rate) · size, rounded; never all of them."""
    return min(math.floor(share * (1 - pass_rate) * size + 0.5), size - 1)


def find_size(share: float, pass_rate: float, size: int, least_size: int) -> int:
    """How many rollouts a group has: `size`, or, where fewer than two of those would pass, so that a success seldom has
    a sibling to learn from it, the fewest of which the teacher's share is one at least."""
    if pass_rate * size >= SIBLINGS:
        return size
    return min(size, max(least_size, math.ceil(1 / share)))


@dataclass(frozen=True)
class _Part:
    """What a teacher draws of a group of `size`."""

    num_shown: int
    size: int


def _divide(
    session: Session, lineage_id: UUID, tasks: Sequence[TaskRow], size: int, teaching: Teaching
) -> Mapping[UUID, _Part]:
    """By task, from the policy's pass rate on it, or on its domain where none of its rollouts was judged. Before either
    is known the policy draws alone."""
    of_tasks = pass_rates.of_tasks(session, lineage_id, [task.id for task in tasks])
    of_domains = {rate.domain: rate.pass_rate for rate in pass_rates.of_domains(session, lineage_id)}
    rates = {task.id: of_tasks.get(task.id, of_domains.get(task.domain, 1.0)) for task in tasks}
    sizes = {one: find_size(teaching.share, rate, size, teaching.least_size) for one, rate in rates.items()}
    return {one: _Part(count_shown(teaching.share, rate, sizes[one]), sizes[one]) for one, rate in rates.items()}


def find_first(
    found: Sequence[Material], may_show: Standing, domain: str, contexts: ContextSettings
) -> tuple[Material, Template] | None:
    """The first material that teaches, and its template, in the trainer's order (`trainer.batch.contexts`), up to the
    plain prompt if it is one of them."""
    order = _find_order(domain, contexts)
    usable = [one for one in found if one.source in order and one.weight > 0]

    def place(one: Material) -> tuple[bool, int]:
        return may_show.is_last_resort(one.expert_id, one.source, domain), order.index(one.source)

    for one in sorted(usable, key=place):
        template = may_show.template_for(one.expert_id, one.source, domain, contexts.template_of(one.source))
        if template is not None:
            return one, template
    return None


def _find_order(domain: str, contexts: ContextSettings) -> list[ContextSource]:
    return list(takewhile(lambda source: source is not ContextSource.NOTHING, contexts.order_of(domain)))


def _find_unheard(
    task: TaskRow, givers: Sequence[Giver], found: Sequence[Material], may_show: Standing, contexts: ContextSettings
) -> frozenset[UUID]:
    """The experts that are asked now, give what a teacher may be shown of this task, and have not given it."""
    order = _find_order(task.domain, contexts)
    heard = {(one.expert_id, one.source) for one in found}
    return frozenset(
        giver.expert.id
        for giver in givers
        if giver.source in order
        and giver.expert.status == ExpertStatus.ACTIVE.value
        and giver.serves(task)
        and (giver.expert.id, giver.source) not in heard
        and may_show.template_for(giver.expert.id, giver.source, task.domain, contexts.template_of(giver.source))
    )


def _build_context(task: TaskRow, one: Material, template: Template, temperature: float) -> ShownContext:
    question = [Message.model_validate(message) for message in task.messages]
    return ShownContext(
        source=one.source,
        template=template,
        messages=build_teacher_messages(template, question, one.solution, precedents=one.precedents),
        answers=list(one.answers),
        temperature=temperature,
    )
