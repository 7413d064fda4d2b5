"""Questions that no teacher is shown an answer to: those of validation and held-out tasks, and the task's own."""

from collections.abc import Sequence
from itertools import compress
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.contracts.tasks import Precedent, Split
from services.store.loop import tasks
from services.store.tables.loop import AnswerRow, TaskRow


def may_be_shown(session: Session, lineage_id: UUID, precedents: Sequence[Precedent], but: str) -> list[bool]:
    """Of each precedent, whether its question is asked by no validation or held-out task, and not by the task that it
    is shown about, with system messages or without. but: the `messages_sha256` of that task."""
    asked = {sha256 for one in precedents for sha256 in _hash(one)}
    held_out = session.scalars(
        select(TaskRow.messages_sha256).where(
            TaskRow.lineage_id == lineage_id,
            TaskRow.messages_sha256.in_(asked),
            TaskRow.split != Split.TRAIN.value,
        )
    )
    refused = {but, *held_out}
    return [refused.isdisjoint(_hash(one)) for one in precedents]


def read_precedents(session: Session, answer: AnswerRow, but: str) -> list[Precedent]:
    """The precedents that an answer returns, as far as they may be shown. but: as above."""
    told = [Precedent.model_validate(one) for one in answer.precedents or ()]
    return list(compress(told, may_be_shown(session, answer.lineage_id, told, but=but))) if told else []


def _hash(precedent: Precedent) -> tuple[str, str]:
    """The hashes that a task with this question may have."""
    plain = [message for message in precedent.messages if message.role != "system"]
    return tasks.hash_messages(precedent.messages), tasks.hash_messages(plain)
