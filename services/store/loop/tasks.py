"""Tasks: prompts and their splits."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.contracts.base import Json
from services.contracts.tasks import MAX_NEW_TOKENS, Message, Split, Task, TaskCreate
from services.runtime.errors import Conflict, InvalidInput, NotFound
from services.store.core import row_counts
from services.store.tables.loop import TaskRow


class TaskNotFound(NotFound):
    """No task with this id."""


class TaskKeyTaken(Conflict):
    """The key names a task with other content; tasks are immutable because rollouts refer to them."""

    hint = "Give the changed task a new key."


class SplitsOverlap(InvalidInput):
    """A family or prompt would be in train and in another split: training on the tasks that are measured."""

    hint = "Keep a family in one split, or give a truly different family another name."

    def __init__(self, where: str, detail: str) -> None:
        super().__init__(detail)
        self.where = where


@dataclass(frozen=True)
class KnownTask:
    """The part of a task that storing a rollout needs. Tasks are immutable, so it may be cached."""

    id: UUID
    split: str
    domain: str
    metadata_keys: frozenset[str]
    messages: tuple[Message, ...]


def to_known(row: TaskRow) -> KnownTask:
    """The part of a task that storing a rollout needs."""
    return KnownTask(
        id=row.id,
        split=row.split,
        domain=row.domain,
        metadata_keys=frozenset(row.metadata_),
        messages=tuple(map(Message.model_validate, row.messages)),
    )


def find_known(session: Session, lineage_id: UUID, ids: Collection[UUID]) -> dict[UUID, KnownTask]:
    """Those of these tasks that exist in the lineage."""
    query = select(TaskRow).where(TaskRow.lineage_id == lineage_id, TaskRow.id == func.any(list(ids)))
    return {row.id: to_known(row) for row in session.scalars(query)}


def get(session: Session, task_id: UUID) -> TaskRow:
    """The task. Errors: TaskNotFound."""
    row = session.get(TaskRow, task_id)
    if row is None:
        raise TaskNotFound(f"no task {task_id}")
    return row


def add(session: Session, lineage_id: UUID, task: TaskCreate) -> tuple[TaskRow, bool]:
    """The stored task and whether it is new; the same key with the same content is the same task.

    Errors: TaskKeyTaken (409), SplitsOverlap (422).
    """
    content = task.model_dump(mode="json", exclude={"key"})
    sha256 = _hash(content)
    key = task.key or sha256[:32]
    # Who adds tasks takes turns, so that two at once cannot put one family into two splits.
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"tasks\n{lineage_id}", 0))))
    row = session.scalar(select(TaskRow).where(TaskRow.lineage_id == lineage_id, TaskRow.key == key))
    if row is not None:
        if row.content_sha256 != sha256:
            raise TaskKeyTaken(f"the key {key!r} already names another task")
        return row, False
    row = TaskRow(
        lineage_id=lineage_id,
        key=key,
        domain=task.domain,
        family=task.family or key,
        split=task.split.value,
        messages=content["messages"],
        messages_sha256=hash_messages(task.messages),
        metadata_=content["metadata"],
        content_sha256=sha256,
    )
    _check_splits(session, row)
    session.add(row)
    session.flush()
    return row, True


def hash_messages(messages: Sequence[Message]) -> str:
    """The sha256 by which equal questions are found."""
    return _hash([message.model_dump(mode="json") for message in messages])


def _hash(value: Json) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _check_splits(session: Session, new: TaskRow) -> None:
    """Pass when the task does not leak between train and the other splits. Errors: SplitsOverlap."""
    train = Split.TRAIN.value
    across = TaskRow.split != train if new.split == train else TaskRow.split == train
    for where, same, what in (
        ("messages", [TaskRow.messages_sha256 == new.messages_sha256], "the same messages are"),
        ("family", [TaskRow.domain == new.domain, TaskRow.family == new.family], f"the family {new.family!r} is"),
    ):
        other = session.scalar(select(TaskRow).where(TaskRow.lineage_id == new.lineage_id, across, *same).limit(1))
        if other is not None:
            raise SplitsOverlap(
                where, f"{what} in the split {other.split} already, with the task {other.key!r}, so not in {new.split}"
            )


def view(row: TaskRow) -> Task:
    """The contract of a row."""
    return Task.model_validate(
        {name: getattr(row, name) for name in Task.model_fields if name != "metadata"} | {"metadata": row.metadata_}
    )


def least_drawn(
    session: Session, lineage_id: UUID, max_groups_per_task: int, size: int, limit: int, seed: int
) -> list[TaskRow]:
    """Train tasks to draw next: domains in turn, the one that has waited longest first; in each the least drawn first,
    in an order that depends on the seed only.

    size: of a whole group. Smaller groups of a task count as one once they have as many rollouts together.
    """
    order = func.md5(TaskRow.key + str(seed))
    turn = func.row_number().over(partition_by=TaskRow.domain, order_by=[TaskRow.num_rollouts, order]).label("turn")
    drawn_at = func.max(TaskRow.drawn_at).over(partition_by=TaskRow.domain).label("drawn_at")
    of_train = (TaskRow.lineage_id == lineage_id, TaskRow.split == Split.TRAIN.value)
    is_left = (TaskRow.num_rollouts < max_groups_per_task * size).label("is_left")
    candidates = select(TaskRow.id, turn, drawn_at, is_left, order.label("ord")).where(*of_train).subquery()
    return list(
        session.scalars(
            select(TaskRow)
            .join(candidates, candidates.c.id == TaskRow.id)
            .where(candidates.c.is_left)
            .order_by(
                TaskRow.num_rollouts // size,
                candidates.c.turn,
                candidates.c.drawn_at.asc().nulls_first(),
                candidates.c.ord,
            )
            .limit(limit)
        )
    )


def find_most_tokens(task: TaskRow) -> int | None:
    """The most tokens that an answer to it may have; None where the task does not say."""
    most = task.metadata_.get(MAX_NEW_TOKENS)
    return most if isinstance(most, int) else None


def take_turns(nearest: Sequence[TaskRow], sizes: Mapping[UUID, int], *, size: int, num_turns: int) -> list[TaskRow]:
    """The tasks of so many turns, of one domain each: a task with a group of `size`, or the next ones with smaller
    groups that together come to as many rollouts.

    nearest: in the order in which they are to be drawn. sizes: of the smaller groups, by task.
    """
    left, chosen = list(nearest), list[TaskRow]()
    for _ in range(num_turns):
        if not left:
            break
        first = left[0]
        turn, room = [first], size - sizes.get(first.id, size)
        for task in left[1:]:
            if task.domain == first.domain and sizes.get(task.id, size) <= room:
                turn.append(task)
                room -= sizes[task.id]
        left = [task for task in left if task not in turn]
        chosen += turn
    return chosen


def find_domains(session: Session, lineage_id: UUID, splits: Collection[Split]) -> list[str]:
    """The domains that have tasks in any of these splits, in order."""
    counts = row_counts.read(session, lineage_id, ("task",))["task"]
    return sorted({count.kind for count in counts if count.word in splits and count.num > 0})


def spread_over_families(
    session: Session,
    lineage_id: UUID,
    split: Split,
    num_tasks: int | None,
    seed: int,
    domains: Collection[str] | None = None,
) -> Sequence[TaskRow]:
    """At most `num_tasks` tasks a domain (all when None), taken from its families in turn; of these domains, or of
    all."""
    order = func.md5(TaskRow.key + str(seed))
    within = func.row_number().over(partition_by=[TaskRow.domain, TaskRow.family], order_by=order).label("within")
    inner = (
        select(TaskRow.id, TaskRow.domain, within, func.md5(TaskRow.family + str(seed)).label("family_order"))
        .where(
            TaskRow.lineage_id == lineage_id,
            TaskRow.split == split.value,
            *(() if domains is None else (TaskRow.domain.in_(domains),)),
        )
        .subquery()
    )
    rank = (
        func.row_number()
        .over(partition_by=inner.c.domain, order_by=[inner.c.within, inner.c.family_order])
        .label("rank")
    )
    ranked = select(inner.c.id, rank).subquery()
    query = select(TaskRow).join(ranked, ranked.c.id == TaskRow.id).order_by(ranked.c.rank, TaskRow.domain)
    if num_tasks is not None:
        query = query.where(ranked.c.rank <= num_tasks)
    return session.scalars(query).all()
