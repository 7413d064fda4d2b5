"""Rollouts: sampled answers, from the draw to the moment every question about them is settled."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.contracts.base import JsonObject
from services.contracts.consultations import ConsultationStatus
from services.contracts.ids import new_id
from services.contracts.lessons import LessonStatus
from services.contracts.rollouts import Purpose, RolloutStatus
from services.errors import NotFound
from services.store import answers, consultations
from services.store.models import (
    AnswerRow,
    ConsultationRow,
    ExpertRow,
    GroupRow,
    LessonAnswerRow,
    LessonRow,
    RolloutRow,
    TaskRow,
)


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


def add_drawn(
    session: Session,
    group: GroupRow,
    *,
    tokenizer_hash: str,
    prompt_token_ids: list[int],
    samples: Sequence[Sample],
    sampling: JsonObject,
) -> list[RolloutRow]:
    """Store a group's samples and open their first questions. The sampler's own ids are kept, never re-tokenised."""
    rows = [
        RolloutRow(
            id=new_id(),
            lineage_id=group.lineage_id,
            task_id=group.task_id,
            split=group.split,
            purpose=group.purpose,
            group_id=group.id,
            index_in_group=index,
            policy_version=group.policy_version,
            prompt_token_ids=prompt_token_ids,
            token_ids=sample.token_ids,
            sampler_logprobs=sample.logprobs,
            action_mask=[True] * len(sample.token_ids),
            tokenizer_hash=tokenizer_hash,
            sampling=sampling,
            text=sample.text,
            finish_reason=sample.finish_reason,
        )
        for index, sample in enumerate(samples)
    ]
    session.add_all(rows)
    session.flush()
    task = session.get_one(TaskRow, group.task_id)
    experts = consultations.askable_experts(session, group.lineage_id)
    for row in rows:
        consultations.open_stage(session, row, task, experts, stage=1)
        advance(session, row.id)
    return rows


def advance(session: Session, rollout_id: UUID) -> None:
    """Move an open rollout on when its questions allow it: to the second stage, or to ready with its lesson.

    Locks the rollout, so that two answers that arrive at once take turns. A waiting question holds nothing open.
    """
    rollout = session.scalar(select(RolloutRow).where(RolloutRow.id == rollout_id).with_for_update())
    if rollout is None or rollout.status != RolloutStatus.OPEN.value:
        return
    questions = session.scalars(select(ConsultationRow).where(ConsultationRow.rollout_id == rollout_id)).all()
    unsettled = {ConsultationStatus.PENDING.value, ConsultationStatus.ASKED.value}
    if any(q.status in unsettled for q in questions):
        return
    if not any(q.stage == 2 for q in questions):
        task = session.get_one(TaskRow, rollout.task_id)
        experts = consultations.askable_experts(session, rollout.lineage_id)
        if consultations.open_stage(session, rollout, task, experts, stage=2):
            return
    _settle(session, rollout)


def _settle(session: Session, rollout: RolloutRow) -> None:
    said = answers.current(session, rollout.id)
    rollout.settled_at = func.now()
    rollout.score = _verdict(session, said)
    waits = session.scalar(
        select(func.count()).where(
            ConsultationRow.rollout_id == rollout.id, ConsultationRow.status == ConsultationStatus.WAITING.value
        )
    )
    if not said and not waits:
        asked = session.scalar(select(func.count()).where(ConsultationRow.rollout_id == rollout.id))
        rollout.status = RolloutStatus.SET_ASIDE.value
        rollout.reason = "no expert answered" if asked else say_unasked(rollout.purpose)
        return
    rollout.status = RolloutStatus.READY.value
    session.flush()
    if rollout.purpose == Purpose.TRAIN.value and said:
        open_lesson(session, rollout, said, late=False)


def say_unasked(purpose: str) -> str:
    """Why a rollout about which nobody was asked is set aside."""
    return "no expert answered" if purpose == Purpose.TRAIN.value else "nobody is asked about rollouts of this purpose"


def _verdict(session: Session, said: Sequence[AnswerRow]) -> float | None:
    """The lowest score of the verifiers that are not on probation; None when none gave one."""
    scores = [
        row.score
        for row in said
        if row.score is not None
        and (expert := session.get_one(ExpertRow, row.expert_id)).descriptor.get("verifier")
        and expert.status != "probation"
    ]
    return min(scores, default=None)


def open_lesson(session: Session, rollout: RolloutRow, said: Sequence[AnswerRow], *, late: bool) -> LessonRow:
    """A lesson that may use these answers. Only a train rollout can have one; the database refuses the rest."""
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
