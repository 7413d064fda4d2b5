"""Tasks whose right answers may be precedents: of the same domain, those of the same family first, then by likeness.

Only train tasks are among them, and no family is both in train and in another split. Bounded: of a domain, the newest
tasks that were drawn or measured, and those of the newest corrections.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import ARRAY, ColumnElement, ScalarSelect, Select, Text, exists, func, literal, select, true
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


@dataclass(frozen=True)
class _Candidate:
    """A task that has what may be a right answer. is_corrected: that of a person, by which it is found everywhere."""

    id: UUID
    domain: str
    family: str
    messages_sha256: str
    question: str
    is_corrected: bool


def find_alike(session: Session, tasks: Sequence[TaskRow], readers: Collection[UUID]) -> dict[UUID, list[UUID]]:
    """By task, other tasks of its domain that have what may be a right answer, the best precedents first.

    All tasks are of one lineage. readers: the experts whose solutions are references. As many statements for many tasks
    as for one.
    """
    if not tasks:
        return {}
    drawn = _find_drawn(session, tasks)
    candidates = _read_candidates(session, tasks, {one for near in drawn.values() for one in near}, readers)
    asked = select(TaskRow.id, _question()).where(TaskRow.id.in_([task.id for task in tasks]))
    questions = {task_id: question or "" for task_id, question in session.execute(asked)}
    found = {}
    for task in tasks:
        near = drawn.get((task.domain, task.family), set())
        usable = [
            one
            for one in candidates
            if one.domain == task.domain
            and one.messages_sha256 != task.messages_sha256
            and (one.is_corrected or one.id in near)
        ]
        order = similar.rank(questions[task.id], [one.question for one in usable])
        ranked = sorted(order, key=lambda place: usable[place].family != task.family)
        found[task.id] = [usable[place].id for place in ranked]
    return found


def _find_drawn(session: Session, tasks: Sequence[TaskRow]) -> dict[tuple[str, str], set[UUID]]:
    """By domain and family of these tasks, the newest train tasks of the domain that were drawn or measured, those of
    the family first."""
    places = sorted({(task.domain, task.family) for task in tasks})
    columns = (literal([one[place] for one in places], ARRAY(Text())) for place in (0, 1))
    wanted = func.unnest(*columns).table_valued("domain", "family", name="wanted").render_derived()
    drawn = (
        select(TaskRow.id)
        .where(
            TaskRow.lineage_id == tasks[0].lineage_id,
            TaskRow.split == Split.TRAIN.value,
            TaskRow.domain == wanted.c.domain,
            (TaskRow.num_groups > 0) | TaskRow.id.in_(select(MeasuredTaskRow.task_id)),
        )
        .order_by((TaskRow.family == wanted.c.family).desc(), TaskRow.id.desc())
        .limit(MAX_TASKS)
        .lateral("drawn")
    )
    found: dict[tuple[str, str], set[UUID]] = {}
    rows = session.execute(select(wanted.c.domain, wanted.c.family, drawn.c.id).select_from(wanted).join(drawn, true()))
    for domain, family, task_id in rows:
        found.setdefault((domain, family), set()).add(task_id)
    return found


def _read_candidates(
    session: Session, tasks: Sequence[TaskRow], drawn: Collection[UUID], readers: Collection[UUID]
) -> list[_Candidate]:
    """Of the drawn tasks those with a success or a reference, and the corrected ones of the same domains; the newest
    first."""
    lineage_id = tasks[0].lineage_id
    is_corrected = TaskRow.id.in_(select(_find_corrected(lineage_id).subquery().c.task_id))
    is_answered = TaskRow.id.in_(drawn) & (_has_success() | _has_reference(readers))
    rows = session.execute(
        select(TaskRow.id, TaskRow.domain, TaskRow.family, TaskRow.messages_sha256, _question(), is_corrected)
        .where(
            TaskRow.lineage_id == lineage_id,
            TaskRow.split == Split.TRAIN.value,
            TaskRow.domain.in_({task.domain for task in tasks}),
            is_answered | is_corrected,
        )
        .order_by(TaskRow.id.desc())
    )
    return [
        _Candidate(task_id, domain, family, sha256, question or "", bool(corrected))
        for task_id, domain, family, sha256, question, corrected in rows
    ]


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
