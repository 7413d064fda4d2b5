"""Tasks whose right answers may be precedents: of the same domain, those of the same family first, then by likeness.

Only train tasks are among them, and no family is both in train and in another split. Bounded: of a domain, the newest
tasks that were drawn or measured, and those of the newest corrections.
"""

from collections.abc import Collection
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, ScalarSelect, Select, exists, func, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from services.contracts.corrections import CorrectionStatus
from services.contracts.tasks import Split
from services.store.tables.corrections import CorrectionRow
from services.store.tables.loop import AnswerRow, RolloutRow, TaskRow
from services.store.tables.teaching import MeasuredTaskRow
from services.store.teaching import right_answers, similar

MAX_TASKS: Final = 256
MAX_CORRECTIONS: Final = 256
MAX_READ: Final = 8
"""Newest rollouts of a task that are looked through for a reference, which most of them have."""
MAX_CHARS: Final = 4_000
"""Of a question, when it is compared with others."""


def find_alike(session: Session, task: TaskRow, readers: Collection[UUID]) -> list[UUID]:
    """Other tasks of this one's domain that have what may be a right answer, the best precedents first.

    readers: the experts whose solutions are references.
    """
    of_domain = (
        TaskRow.lineage_id == task.lineage_id,
        TaskRow.split == Split.TRAIN.value,
        TaskRow.domain == task.domain,
        TaskRow.messages_sha256 != task.messages_sha256,
    )
    same_family = TaskRow.family == task.family
    drawn = (
        select(TaskRow.id)
        .where(*of_domain, (TaskRow.num_groups > 0) | TaskRow.id.in_(select(MeasuredTaskRow.task_id)))
        .order_by(same_family.desc(), TaskRow.id.desc())
        .limit(MAX_TASKS)
        .subquery()
    )
    corrected = _find_corrected(task.lineage_id).subquery()
    candidates = select(drawn.c.id).union(select(corrected.c.task_id))
    answered = _has_success() | _has_reference(readers) | TaskRow.id.in_(select(corrected.c.task_id))
    rows = session.execute(
        select(TaskRow.id, same_family, _question())
        .where(TaskRow.id.in_(candidates), *of_domain, answered)
        .order_by(TaskRow.id.desc())
    ).all()
    own = session.scalar(select(_question()).where(TaskRow.id == task.id))
    order = similar.rank(own or "", [question or "" for _, _, question in rows])
    return [rows[place][0] for place in sorted(order, key=lambda place: not rows[place][1])]


def _find_corrected(lineage_id: UUID) -> Select[UUID]:
    """The tasks of the newest corrections."""
    newest = (
        select(CorrectionRow.rollout_id)
        .where(CorrectionRow.lineage_id == lineage_id, CorrectionRow.status == CorrectionStatus.SUBMITTED.value)
        .order_by(CorrectionRow.id.desc())
        .limit(MAX_CORRECTIONS)
        .subquery()
    )
    return select(RolloutRow.task_id).join(newest, newest.c.rollout_id == RolloutRow.id)


def _has_success() -> ColumnElement[bool]:
    return exists().where(RolloutRow.task_id == TaskRow.id, right_answers.passed())


def _has_reference(readers: Collection[UUID]) -> ColumnElement[bool]:
    newest = (
        select(RolloutRow.id)
        .where(
            RolloutRow.task_id == TaskRow.id,
            RolloutRow.purpose.in_(right_answers.ASKED_ALIKE),
            ~RolloutRow.shown,
        )
        .order_by(RolloutRow.id.desc())
        .limit(MAX_READ)
        .correlate(TaskRow)
    )
    return exists().where(
        AnswerRow.rollout_id.in_(newest), AnswerRow.expert_id.in_(readers), AnswerRow.solution.is_not(None)
    )


def _question() -> ScalarSelect[str]:
    """The words of a task's messages, without those of the system."""
    message = func.jsonb_array_elements(TaskRow.messages, type_=JSONB).table_valued("value", name="message")
    said = message.c.value
    words = func.string_agg(said.op("->>")("content"), " ")
    return (
        select(func.left(words, MAX_CHARS))
        .select_from(message)
        .where(said.op("->>")("role") != "system")
        .scalar_subquery()
    )
