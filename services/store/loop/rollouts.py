"""Rollouts: sampled answers, from the draw to the moment every question about them is settled."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Exists, exists, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from services.contracts.base import JsonObject
from services.contracts.consultations import ConsultationStatus
from services.contracts.ids import new_id
from services.contracts.lessons import LessonStatus
from services.contracts.persons import Right
from services.contracts.rollouts import Purpose, RolloutDetail, RolloutStatus
from services.runtime.errors import NotFound
from services.store.loop import answers, consultations, trust
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
    """Those of these rollouts whose words are hidden from a person with these rights: probes that were shown the task's
    reference, and may repeat it."""
    probes = {row.id: row.group_id for row in rows if row.purpose == Purpose.PROBE.value}
    if not probes or trust.may_read_metadata(rights):
        return set()
    was_shown = func.jsonb_exists(GroupRow.sampling, "shown_solution")
    groups = set(session.scalars(select(GroupRow.id).where(GroupRow.id.in_(set(probes.values())), was_shown)))
    return {rollout_id for rollout_id, group_id in probes.items() if group_id in groups}


def detail(session: Session, row: RolloutRow, rights: frozenset[Right]) -> RolloutDetail:
    """The contract of a row with its tokens, as a person with these rights may see it."""
    found = RolloutDetail.model_validate(row)
    if not find_hidden(session, [row], rights):
        return found
    hidden: dict[str, object] = {
        "prompt_token_ids": None,
        "text": "",
        "token_ids": [],
        "sampler_logprobs": None,
        "action_mask": [],
    }
    return found.model_copy(update=hidden)


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

    Locks the rollout, so that two answers that arrive at once take turns. Only questions to experts that may train
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
        experts = consultations.askable_experts(session, rollout.lineage_id)
        consultations.open_stage(session, rollout, task, experts, stage=2)
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
    """Move on open rollouts whose last question was to an expert that lost its weight; which ones."""
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
    rollout.score = answers.verdicts(session, [rollout.id]).get(rollout.id)
    rollout.settled_at = func.now()
    asked = session.execute(
        select(ConsultationRow.status, trust.may_train(ExpertRow))
        .join(ExpertRow, ExpertRow.id == ConsultationRow.expert_id)
        .where(ConsultationRow.rollout_id == rollout.id)
    ).all()
    if not said and (ConsultationStatus.WAITING.value, True) not in asked:
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
    if rollout.purpose == Purpose.TRAIN.value and untaught:
        open_lesson(session, rollout, untaught, late=False)


def judge_again(session: Session, rollout: RolloutRow) -> None:
    """Give a settled rollout the verdict of the answers that are left."""
    if rollout.settled_at is not None:
        rollout.score = answers.verdicts(session, [rollout.id]).get(rollout.id)
        session.flush()


def say_unanswered(purpose: str, num_asked: int, num_training: int) -> str:
    """Why a rollout without an answer that counts is set aside."""
    if num_asked and not num_training:
        return "none of the experts asked may train"
    if num_asked or purpose == Purpose.TRAIN.value:
        return "no expert answered"
    return "nobody is asked about rollouts of this purpose"


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
