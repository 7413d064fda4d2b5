"""Pass rates of the policy on train tasks, by its newest judged rollouts.

Only what the policy itself drew is evidence about it: a rollout from elsewhere is not, and neither is what its teacher
drew.
"""

from collections.abc import Collection
from uuid import UUID

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from services.contracts.answers import PASS_SCORE
from services.contracts.rollouts import Purpose
from services.contracts.status import PassRate
from services.store.tables.loop import RolloutRow, TaskRow

NEWEST_OF_ALL = 128  # a pass rate of the last few groups, not of the whole history
NEWEST_OF_TASK = 16  # its last two groups of the usual size


def _judged(lineage_id: UUID) -> tuple[ColumnElement[bool], ...]:
    """The conditions that a rollout counts in a pass rate."""
    return (
        RolloutRow.lineage_id == lineage_id,
        RolloutRow.purpose == Purpose.TRAIN.value,
        RolloutRow.score.is_not(None),
        RolloutRow.policy_version.is_not(None),
        ~RolloutRow.shown,
    )


def of_domains(session: Session, lineage_id: UUID) -> list[PassRate]:
    """By domain, of the lineage's newest judged rollouts; a domain that none of them is from is left out."""
    newest = (
        select(RolloutRow.task_id, RolloutRow.score)
        .where(*_judged(lineage_id))
        .order_by(RolloutRow.id.desc())
        .limit(NEWEST_OF_ALL)
        .subquery()
    )
    passed = func.count().filter(newest.c.score > PASS_SCORE)
    rows = session.execute(
        select(TaskRow.domain, func.count(), passed)
        .join(newest, newest.c.task_id == TaskRow.id)
        .group_by(TaskRow.domain)
        .order_by(TaskRow.domain)
    )
    return [PassRate(domain=d, num_judged=n, pass_rate=int(p) / int(n)) for d, n, p in rows]


def of_tasks(session: Session, lineage_id: UUID, task_ids: Collection[UUID]) -> dict[UUID, float]:
    """By task, of its newest judged rollouts; a task that has none is left out."""
    age = func.row_number().over(partition_by=RolloutRow.task_id, order_by=RolloutRow.id.desc())
    ranked = (
        select(RolloutRow.task_id, RolloutRow.score, age.label("age"))
        .where(RolloutRow.task_id.in_(task_ids), *_judged(lineage_id))
        .subquery()
    )
    passed = func.count().filter(ranked.c.score > PASS_SCORE)
    rows = session.execute(
        select(ranked.c.task_id, func.count(), passed).where(ranked.c.age <= NEWEST_OF_TASK).group_by(ranked.c.task_id)
    )
    return {task_id: int(num_passed) / int(num) for task_id, num, num_passed in rows}
