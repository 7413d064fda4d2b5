"""Questions that no teacher is shown an answer to: those of validation and held-out tasks, and the task's own."""

from collections.abc import Sequence
from itertools import compress
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Text, cast, func, literal_column, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import InstrumentedAttribute, Session

from services.contracts.base import JsonObject
from services.contracts.tasks import Message, Precedent, Split
from services.store.loop import tasks
from services.store.tables.loop import QUESTION, AnswerRow, TaskRow

Told = tuple[Sequence[Precedent], Sequence[JsonObject]]
"""Precedents, and the messages of the task that they are shown about."""


def may_be_shown(session: Session, lineage_id: UUID, told: Sequence[Told]) -> list[list[bool]]:
    """Of each precedent, whether its question is asked by no validation or held-out task, and not by the task that it
    is shown about, whatever the system messages on either side. One statement for all."""
    asked = [[[message.model_dump(mode="json") for message in one.messages] for one in shown] for shown, _ in told]
    distinct = {_hash(messages): messages for questions in asked for messages in questions}
    if not distinct:
        return [[] for _ in told]
    held_out = session.scalars(
        select(TaskRow.messages).where(
            TaskRow.lineage_id == lineage_id,
            TaskRow.split != Split.TRAIN.value,
            _fingerprint(TaskRow.messages).in_([_fingerprint(cast(messages, JSONB)) for messages in distinct.values()]),
        )
    )
    refused = {_hash(messages) for messages in held_out}
    return [
        [_hash(messages) not in refused | {_hash(own)} for messages in questions]
        for questions, (_, own) in zip(asked, told, strict=True)
    ]


def read_precedents(
    session: Session, lineage_id: UUID, answers: Sequence[tuple[AnswerRow, Sequence[JsonObject]]]
) -> list[list[Precedent]]:
    """The precedents that each answer returns, as far as they may be shown about the task with these messages."""
    told = [([Precedent.model_validate(one) for one in answer.precedents or ()], own) for answer, own in answers]
    free = may_be_shown(session, lineage_id, told)
    return [list(compress(shown, kept)) for (shown, _), kept in zip(told, free, strict=True)]


def _fingerprint(messages: ColumnElement[Any] | InstrumentedAttribute[Any]) -> ColumnElement[str]:
    """Of the question as the database keeps it: what the index `ix_task_question` holds."""
    return func.md5(func.jsonb_path_query_array(messages, literal_column(f"'{QUESTION}'")).cast(Text))


def _hash(messages: Sequence[JsonObject]) -> str:
    """Of the question: the messages without those of the system."""
    read = [Message.model_validate(message) for message in messages]
    return tasks.hash_messages([message for message in read if message.role != "system"])
