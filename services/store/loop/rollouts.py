"""Rollouts: sampled answers, from the moment they are stored until every consultation about them is settled."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Exists, exists, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from services.contracts.base import JsonObject
from services.contracts.consultations import ConsultationStatus
from services.contracts.ids import new_id
from services.contracts.lessons import LessonStatus
from services.contracts.persons import Right
from services.contracts.rollouts import Purpose, Rollout, RolloutDetail, RolloutStatus
from services.contracts.tasks import Message
from services.runtime.errors import NotFound
from services.store.core import copying
from services.store.loop import answers, contexts, opening, tasks, trust
from services.store.loop.opening import FirstConsultation, Subject
from services.store.loop.tasks import KnownTask
from services.store.tables.ledger import LessonAnswerRow, LessonRow
from services.store.tables.loop import AnswerRow, ConsultationRow, ExpertRow, GroupRow, RolloutRow, TaskRow


class RolloutNotFound(NotFound):
    """No rollout with this id."""


@dataclass(frozen=True)
class Sample:
    """One drawn answer, as the policy gave it."""

    token_ids: list[int]
    logprobs: list[float]
    text: str
    finish_reason: str


def get(session: Session, rollout_id: UUID) -> RolloutRow:
    """The rollout. Errors: RolloutNotFound."""
    row = session.get(RolloutRow, rollout_id)
    if row is None:
        raise RolloutNotFound(f"no rollout {rollout_id}")
    return row


def find_hidden(session: Session, rows: Sequence[RolloutRow], rights: frozenset[Right]) -> set[UUID]:
    """The rollouts whose text is hidden from a person with these rights: they were drawn after a context that may quote
    a task's metadata."""
    drawn = {row.id: row.group_id for row in rows if row.shown}
    if not drawn or trust.may_read_metadata(rights):
        return set()
    quotes_nothing = func.coalesce(GroupRow.context["quotes"] == [], False)
    groups = set(session.scalars(select(GroupRow.id).where(GroupRow.id.in_(set(drawn.values())), ~quotes_nothing)))
    return {rollout_id for rollout_id, group_id in drawn.items() if group_id in groups}


def detail(session: Session, row: RolloutRow, rights: frozenset[Right]) -> RolloutDetail:
    """The contract of a row with its tokens, as a person with these rights may see it."""
    context = contexts.of_group(session, row.group_id) if row.shown else None
    found = RolloutDetail.model_validate(row).model_copy(update={"shown_after": context})
    if not find_hidden(session, [row], rights):
        return found
    hidden: dict[str, object] = {
        "shown_after": None if context is None else context.model_copy(update={"messages": []}),
        "prompt_token_ids": None,
        "text": "",
        "token_ids": [],
        "sampler_logprobs": None,
        "action_mask": [],
    }
    return found.model_copy(update=hidden)


@dataclass(frozen=True)
class NewRollout:
    """A rollout to be stored at a free place of an existing group. Without a mask every token is an action."""

    id: UUID
    task: KnownTask
    purpose: str
    group_id: UUID
    index_in_group: int
    policy_version: str | None
    prompt_token_ids: Sequence[int]
    token_ids: Sequence[int]
    sampler_logprobs: Sequence[float] | None
    tokenizer_hash: str
    sampling: JsonObject | None
    text: str
    finish_reason: str
    action_mask: Sequence[bool] | None = None
    tokenized_at_ingest: bool = False
    turns: Sequence[Message] = ()
    answer_start: int = 0
    shown: bool = False
    quotes: frozenset[str] = frozenset()
    """The metadata keys that the context may quote that it was drawn after."""

    @property
    def teaches(self) -> bool:
        """Whether the context it was drawn after is lesson enough, without any answer."""
        return self.shown and self.purpose == Purpose.TRAIN.value


@dataclass(frozen=True)
class StoredRollouts:
    """Rollouts as they were stored, and their first consultations, to be sent after the commit."""

    rollouts: list[Rollout]
    opened: list[UUID]


def store(session: Session, lineage_id: UUID, new: Sequence[NewRollout]) -> StoredRollouts:
    """Store rollouts and open their first consultations. One that waits for no expert that may train is set aside.

    Errors: StoreUnavailable (503); psycopg.Error for a row that the database refuses.
    """
    if not new:
        return StoredRollouts([], [])
    now = session.scalars(select(func.now())).one()
    first = opening.plan_first(session, lineage_id, {one.id: _describe(one) for one in new}, now)
    rows = [_row(one, lineage_id, first[one.id], now) for one in new]
    opened = [consultation for one in new for consultation in first[one.id]]
    copying.copy(session, RolloutRow, rows)
    copying.copy(session, ConsultationRow, [consultation.row for consultation in opened])
    views = [
        Rollout.model_validate(row | {"num_tokens": len(one.token_ids), "score": None})
        for one, row in zip(new, rows, strict=True)
    ]
    return StoredRollouts(views, [consultation.id for consultation in opened])


def _describe(new: NewRollout) -> Subject:
    return Subject(
        purpose=new.purpose,
        split=new.task.split,
        group_id=new.group_id,
        index_in_group=new.index_in_group,
        domain=new.task.domain,
        metadata_keys=new.task.metadata_keys,
        shown=new.shown,
        quotes=new.quotes,
        action_mask=new.action_mask or [True] * len(new.token_ids),
        sampler_logprobs=new.sampler_logprobs,
    )


def _row(new: NewRollout, lineage_id: UUID, first: Sequence[FirstConsultation], now: datetime) -> dict[str, object]:
    num_training = sum(consultation.may_train for consultation in first)
    is_open = bool(num_training) or new.teaches
    return {
        "id": new.id,
        "lineage_id": lineage_id,
        "task_id": new.task.id,
        "split": new.task.split,
        "purpose": new.purpose,
        "group_id": new.group_id,
        "index_in_group": new.index_in_group,
        "status": (RolloutStatus.OPEN if is_open else RolloutStatus.SET_ASIDE).value,
        "reason": None if is_open else say_unanswered(new.purpose, len(first), num_training),
        "policy_version": new.policy_version,
        "prompt_token_ids": list(new.prompt_token_ids),
        "token_ids": new.token_ids,
        "sampler_logprobs": new.sampler_logprobs,
        "action_mask": new.action_mask or [True] * len(new.token_ids),
        "tokenizer_hash": new.tokenizer_hash,
        "tokenized_at_ingest": new.tokenized_at_ingest,
        "sampling": new.sampling,
        "text": new.text,
        "turns": [turn.model_dump(mode="json") for turn in new.turns] or None,
        "answer_start": new.answer_start,
        "finish_reason": new.finish_reason,
        "shown": new.shown,
        "created_at": now,
        "settled_at": None if is_open else now,
    }


def add_drawn(
    session: Session,
    group: GroupRow,
    *,
    tokenizer_hash: str,
    prompt_token_ids: list[int],
    samples: Sequence[Sample],
    sampling: JsonObject,
    shown_sampling: JsonObject | None = None,
) -> StoredRollouts:
    """Store a group's samples. The sampler's own ids are kept, never re-tokenised.

    The last `num_shown` of them were drawn by its teacher, with `shown_sampling` where that differs. Their
    log-probabilities are not the policy's, so none are kept. prompt_token_ids: the plain prompt's, after which the
    policy reads them all; of a group that its teacher drew as a whole (a probe, which nobody trains on), the context's.
    """
    num_own = group.size - group.num_shown
    context = contexts.of_group(session, group.id) if group.num_shown else None
    quotes = frozenset() if context is None else frozenset(context.quotes)
    task = tasks.to_known(session.get_one(TaskRow, group.task_id))
    drawn = [
        NewRollout(
            id=new_id(),
            task=task,
            purpose=group.purpose,
            group_id=group.id,
            index_in_group=index,
            policy_version=group.policy_version,
            prompt_token_ids=prompt_token_ids,
            token_ids=sample.token_ids,
            sampler_logprobs=sample.logprobs if index < num_own else None,
            tokenizer_hash=tokenizer_hash,
            sampling=sampling if index < num_own else shown_sampling or sampling,
            text=sample.text,
            finish_reason=sample.finish_reason,
            shown=index >= num_own,
            quotes=frozenset() if index < num_own else quotes,
        )
        for index, sample in enumerate(samples)
    ]
    return store(session, group.lineage_id, drawn)


def advance(session: Session, rollout_id: UUID) -> None:
    """Move an open rollout on when its consultations allow it: to the second stage, or to ready with its lesson.

    Locks the rollout, so that two answers that arrive at once take turns. Only consultations to experts that may train
    hold it open, and of those none that waits for a late answer.
    """
    rollout = session.scalar(select(RolloutRow).where(RolloutRow.id == rollout_id).with_for_update())
    if rollout is None or rollout.status != RolloutStatus.OPEN.value:
        return
    if session.scalar(select(_is_held(rollout.id))):
        return
    stages = session.scalars(select(ConsultationRow.stage).where(ConsultationRow.rollout_id == rollout_id)).all()
    if 2 not in stages:
        task = session.get_one(TaskRow, rollout.task_id)
        opening.open_second_stage(session, rollout, task)
        if session.scalar(select(_is_held(rollout.id))):
            return
    _settle(session, rollout)


def _is_held(rollout_id: UUID | InstrumentedAttribute[UUID]) -> Exists:
    """Whether the rollout waits for an expert that may train."""
    return exists().where(
        ConsultationRow.rollout_id == rollout_id,
        ConsultationRow.status.in_([ConsultationStatus.PENDING.value, ConsultationStatus.ASKED.value]),
        ConsultationRow.expert_id == ExpertRow.id,
        trust.may_train(ExpertRow),
    )


def advance_unheld(session: Session, limit: int) -> list[UUID]:
    """Move on open rollouts whose last open consultation is with an expert that lost its weight; returns their ids."""
    unheld = (
        select(RolloutRow.id)
        .where(RolloutRow.status == RolloutStatus.OPEN.value, ~_is_held(RolloutRow.id))
        .order_by(RolloutRow.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    ids = session.scalars(unheld).all()
    for rollout_id in ids:
        advance(session, rollout_id)
    return list(ids)


def _settle(session: Session, rollout: RolloutRow) -> None:
    said = answers.counting(session, rollout.id)
    _judge(session, rollout)
    rollout.settled_at = func.now()
    asked = session.execute(
        select(ConsultationRow.status, trust.may_train(ExpertRow))
        .join(ExpertRow, ExpertRow.id == ConsultationRow.expert_id)
        .where(ConsultationRow.rollout_id == rollout.id)
    ).all()
    teaches = rollout.shown and rollout.purpose == Purpose.TRAIN.value
    if not said and not teaches and (ConsultationStatus.WAITING.value, True) not in asked:
        rollout.status = RolloutStatus.SET_ASIDE.value
        rollout.reason = say_unanswered(rollout.purpose, len(asked), sum(trained for _, trained in asked))
        return
    rollout.status = RolloutStatus.READY.value
    session.flush()
    taught = set(
        session.scalars(
            select(LessonAnswerRow.answer_id)
            .join(LessonRow, LessonRow.id == LessonAnswerRow.lesson_id)
            .where(LessonRow.rollout_id == rollout.id)
        )
    )
    untaught = [row for row in said if row.id not in taught]
    if teaches or (rollout.purpose == Purpose.TRAIN.value and untaught):
        open_lesson(session, rollout, untaught, late=False)


def judge_again(session: Session, rollout: RolloutRow) -> None:
    """Give a settled rollout the verdict of the answers that count now: a score came late, or one was withdrawn."""
    if rollout.settled_at is not None:
        _judge(session, rollout)
        session.flush()


def _judge(session: Session, rollout: RolloutRow) -> None:
    verdict = answers.verdicts(session, [rollout.id]).get(rollout.id)
    rollout.score = None if verdict is None else verdict.score


def say_unanswered(purpose: str, num_asked: int, num_training: int) -> str:
    """Why a rollout without an answer that counts is set aside."""
    if num_asked and not num_training:
        return "no consulted expert is active"
    if num_asked or purpose in (Purpose.TRAIN.value, Purpose.SCOUT.value):
        return "no expert answered"
    return "rollouts of this purpose are not sent to experts"


def open_lesson(session: Session, rollout: RolloutRow, said: Sequence[AnswerRow], *, late: bool) -> LessonRow:
    """A lesson that may use these answers, and the context of one that a teacher drew. Only a train rollout can have
    one; the database refuses the rest."""
    ordinal = session.scalar(select(func.count()).where(LessonRow.rollout_id == rollout.id)) or 0
    lesson = LessonRow(
        lineage_id=rollout.lineage_id,
        rollout_id=rollout.id,
        split=rollout.split,
        purpose=rollout.purpose,
        group_id=rollout.group_id,
        ordinal=ordinal,
        late=late,
        status=LessonStatus.READY.value,
    )
    session.add(lesson)
    session.flush()
    session.add_all(LessonAnswerRow(lesson_id=lesson.id, answer_id=row.id) for row in said)
    session.flush()
    return lesson
