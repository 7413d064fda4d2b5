"""Scouts: what experts read off a task, heard before the task's train group is planned.

A task's reference or its own precedents are known to the loop from an expert's answer about a rollout of the task, so a
task that was never drawn has nothing of its own for a teacher to draw after. A scout is one short rollout of it, about
which those experts alone are asked. It never trains and counts in no score, baseline or pass rate.

A task is scouted once for each expert, a new version being another expert. Its group waits for the scout, but not for
long: a draw that fails, or an expert that does not answer, holds nothing up.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from services.contracts.rollouts import GroupStatus, Purpose, RolloutStatus, Sampling
from services.store.loop import groups
from services.store.tables.loop import GroupRow, RolloutRow, TaskRow
from services.store.tables.teaching import ScoutRow

AHEAD: Final = 8
"""Tasks after those that there is room for which are scouted too: more than updates use up while a scout is out."""
MAX_TOKENS: Final = 8
"""Of a scout's answer, which what is asked for does not depend on."""
WAIT: Final = timedelta(seconds=30)
"""The longest that a task's group waits for its scout."""


def send(
    session: Session, tasks: Sequence[TaskRow], unheard: Mapping[UUID, AbstractSet[UUID]], sampling: Sampling
) -> set[UUID]:
    """Scout those of these tasks about which experts were not heard, as `unheard` has them, nor scouted for; returns
    the tasks whose scouts are under way."""
    wanted = [task for task in tasks if unheard.get(task.id)]
    if not wanted:
        return set()
    ids = [task.id for task in wanted]
    sent = {
        (task_id, expert_id)
        for task_id, expert_id in session.execute(
            select(ScoutRow.task_id, ScoutRow.expert_id).where(ScoutRow.task_id.in_(ids))
        )
    }
    for task in wanted:
        if new := sorted(expert_id for expert_id in unheard[task.id] if (task.id, expert_id) not in sent):
            _send(session, task, new, sampling)
    return _find_under_way(session, ids)


def _send(session: Session, task: TaskRow, experts: Sequence[UUID], sampling: Sampling) -> None:
    short = sampling.model_copy(update={"max_new_tokens": min(sampling.max_new_tokens, MAX_TOKENS)})
    group = groups.add(session, task, purpose=Purpose.SCOUT, size=1, sampling=short)
    session.add_all(ScoutRow(task_id=task.id, expert_id=expert_id, group_id=group.id) for expert_id in experts)
    session.flush()


def _find_under_way(session: Session, task_ids: Sequence[UUID]) -> set[UUID]:
    is_drawn = GroupRow.status.in_([GroupStatus.PENDING.value, GroupStatus.ASKED.value])
    is_asked = exists().where(RolloutRow.group_id == GroupRow.id, RolloutRow.status == RolloutStatus.OPEN.value)
    under_way = (
        select(ScoutRow.task_id)
        .join(GroupRow, GroupRow.id == ScoutRow.group_id)
        .where(ScoutRow.task_id.in_(task_ids), GroupRow.created_at > func.now() - WAIT, is_drawn | is_asked)
    )
    return set(session.scalars(under_way))
