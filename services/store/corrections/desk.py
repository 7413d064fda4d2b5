"""The human queue as people see it: their item, the history of items they decided, the length of the queue."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import ColumnElement, func, select, tuple_
from sqlalchemy.orm import Session

from services.contracts.base import Page
from services.contracts.corrections import CorrectionItem, CorrectionOutcome, CorrectionStatus
from services.contracts.lessons import Lesson
from services.contracts.persons import Right
from services.contracts.tasks import Message
from services.store.core.pages import decode_moment, encode_moment
from services.store.corrections import claims, drafts, effects, ranking, undo, unused
from services.store.corrections.corrections import view
from services.store.ledger import lessons, updates
from services.store.tables.corrections import CorrectionRow
from services.store.tables.ledger import LessonAnswerRow, LessonRow
from services.store.tables.loop import AnswerRow, RolloutRow, TaskRow

COUNTED = 1_000  # counting ends here: a person needs no exact number above a thousand


@dataclass(frozen=True)
class Left:
    """The length of the queue, each count ending at `COUNTED`, and how many items this person decided today (UTC)."""

    open: int
    asked_for: int
    skipped_by_others: int
    decided_today: int


@dataclass(frozen=True)
class Prompt:
    """The subject of an item."""

    domain: str
    messages: list[Message]
    rollout_text: str
    policy_version: str | None


def item(session: Session, row: CorrectionRow, person_id: UUID, rights: frozenset[Right]) -> CorrectionItem:
    """The item with what this person needs to correct it: prompt, answer, what experts said as far as their rights let
    them see it, their own draft."""
    rollout = session.get_one(RolloutRow, row.rollout_id)
    task = session.get_one(TaskRow, rollout.task_id)
    return CorrectionItem(
        **view(row).model_dump(),
        domain=task.domain,
        messages=[Message.model_validate(message) for message in [*task.messages, *(rollout.turns or [])]],
        rollout_text=rollout.text,
        opinions=ranking.read_opinions(session, rollout.id, rights),
        chosen_because=ranking.explain_choice(row),
        draft=drafts.find(session, row.id, person_id),
    )


def outcome(session: Session, row: CorrectionRow) -> CorrectionOutcome:
    """The item with the numbers of the applied updates that used it, in order, and what each changed; where there is
    none, with the reason."""
    found = outcomes(session, [row])[0]
    if found.update_numbers or found.status is not CorrectionStatus.SUBMITTED:
        return found
    return found.model_copy(update={"waits_for": unused.explain(session, row)})


def outcomes(session: Session, rows: Sequence[CorrectionRow]) -> list[CorrectionOutcome]:
    """Items with the numbers of the applied updates that used each, in order, and what each changed; `waits_for` is not
    told of many at once."""
    # by the rollout, for which there is an index over all answers; for the consultation only over current ones
    said = session.execute(
        select(AnswerRow.id, AnswerRow.consultation_id).where(
            AnswerRow.rollout_id.in_([row.rollout_id for row in rows]),
            AnswerRow.consultation_id.in_([row.consultation_id for row in rows]),
        )
    ).all()
    used = updates.numbers_using(session, [answer_id for answer_id, _ in said])
    numbers: dict[UUID, set[int]] = {}
    for answer_id, consultation_id in said:
        numbers.setdefault(consultation_id, set()).update(used.get(answer_id, ()))
    measured = effects.of_corrections(session, [row.id for row in rows])
    undo_until = undo.until(session, rows)
    return [
        CorrectionOutcome(
            **view(row).model_dump(),
            update_numbers=sorted(numbers.get(row.consultation_id, ())),
            waits_for=None,
            effects=measured.get(row.id, []),
            undo_until=undo_until.get(row.id),
        )
        for row in rows
    ]


def prompt(session: Session, row: CorrectionRow) -> Prompt:
    """The subject of the item: the task's messages and the policy's answer."""
    rollout = session.get_one(RolloutRow, row.rollout_id)
    task = session.get_one(TaskRow, rollout.task_id)
    messages = [Message.model_validate(message) for message in [*task.messages, *(rollout.turns or [])]]
    return Prompt(task.domain, messages, rollout.text, rollout.policy_version)


def explain(row: CorrectionRow) -> str:
    """Why the queue put the item where it did."""
    return ranking.explain_choice(row)


def lessons_of(session: Session, row: CorrectionRow) -> list[Lesson]:
    """The lessons that use the person's answer, oldest first."""
    rows = session.scalars(
        select(LessonRow)
        .join(LessonAnswerRow, LessonAnswerRow.lesson_id == LessonRow.id)
        .join(AnswerRow, AnswerRow.id == LessonAnswerRow.answer_id)
        .where(AnswerRow.rollout_id == row.rollout_id, AnswerRow.consultation_id == row.consultation_id)
        .order_by(LessonRow.id)
    )
    return [lessons.view(lesson) for lesson in rows]


def history(
    session: Session, lineage_id: UUID, person_id: UUID, *, cursor: str | None, limit: int
) -> Page[CorrectionOutcome]:
    """The items this person submitted or skipped, the latest first, with their effects. Errors: BadCursor."""
    query = (
        select(CorrectionRow)
        .where(
            CorrectionRow.lineage_id == lineage_id,
            CorrectionRow.person_id == person_id,
            CorrectionRow.decided_at.is_not(None),
        )
        .order_by(CorrectionRow.decided_at.desc(), CorrectionRow.id.desc())
    )
    if cursor is not None:
        query = query.where(tuple_(CorrectionRow.decided_at, CorrectionRow.id) < tuple_(*decode_moment(cursor)))
    rows = session.scalars(query.limit(limit + 1)).all()
    shown = rows[:limit]
    last = shown[-1] if len(rows) > limit else None
    following = None if last is None or last.decided_at is None else encode_moment(last.decided_at, last.id)
    return Page[CorrectionOutcome](items=outcomes(session, shown), next_cursor=following)


def subjects(session: Session, rollout_ids: Sequence[UUID]) -> dict[UUID, str]:
    """The last message of each rollout's prompt."""
    rows = session.execute(
        select(RolloutRow.id, TaskRow.messages)
        .join(TaskRow, TaskRow.id == RolloutRow.task_id)
        .where(RolloutRow.id.in_(rollout_ids))
    )
    return {rollout_id: Message.model_validate(messages[-1]).content for rollout_id, messages in rows}


def last_decided(session: Session, lineage_id: UUID, person_id: UUID) -> CorrectionOutcome | None:
    """The correction this person submitted last, while they may still take it back."""
    row = session.scalar(
        select(CorrectionRow)
        .where(
            CorrectionRow.lineage_id == lineage_id,
            CorrectionRow.person_id == person_id,
            CorrectionRow.status == CorrectionStatus.SUBMITTED.value,
            CorrectionRow.decided_at > func.now() - undo.WINDOW,
        )
        .order_by(CorrectionRow.decided_at.desc())
        .limit(1)
    )
    return None if row is None else outcome(session, row)


def count_left(session: Session, lineage_id: UUID, person_id: UUID) -> Left:
    """How much there is to do, and how much this person did today."""

    def count(*where: ColumnElement[bool]) -> int:
        some = select(CorrectionRow.id).where(CorrectionRow.lineage_id == lineage_id, *where).limit(COUNTED)
        return session.scalar(select(func.count()).select_from(some.subquery())) or 0

    open_ = CorrectionRow.status == CorrectionStatus.OPEN.value
    not_theirs = ~claims.was_skipped_by(person_id)
    return Left(
        open=count(open_, not_theirs),
        asked_for=count(open_, not_theirs, CorrectionRow.priority > 0),
        skipped_by_others=count(CorrectionRow.status == CorrectionStatus.SKIPPED.value, not_theirs),
        decided_today=count(
            CorrectionRow.person_id == person_id,
            CorrectionRow.status == CorrectionStatus.SUBMITTED.value,
            CorrectionRow.decided_at >= func.date_trunc("day", func.now(), "UTC"),
        ),
    )
