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
from services.contracts.rollouts import GroupStatus, Purpose, RolloutCreate, RolloutStatus
from services.contracts.tasks import Split
from services.errors import InvalidInput, NotFound
from services.store import answers, consultations
from services.store.models import (
    AnswerRow,
    ConsultationRow,
    ExpertRow,
    GroupRow,
    LessonAnswerRow,
    LessonRow,
    LineageRow,
    PolicyVersionRow,
    RolloutRow,
    TaskRow,
)


class RolloutNotFound(NotFound):
    """No rollout with this id."""


class NotTrainable(InvalidInput):
    """Only rollouts of train tasks may be drawn for training."""


class OutsideVocabulary(InvalidInput):
    """A token id is not in the lineage's vocabulary."""


class NoSuchVersion(InvalidInput):
    """The rollout names a policy version that this lineage never had."""

    hint = "Name one of GET /v1/policies, or leave policy_version out for a rollout of another policy."


class TokenizerDiffers(InvalidInput):
    """The token ids were made by another tokenizer; re-tokenising them would change what was sampled."""

    hint = "Send the text instead: it is tokenised once at ingest and trains the local term only."


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


def check_external(session: Session, lineage: LineageRow, task: TaskRow, rollout: RolloutCreate) -> None:
    """Pass when a rollout sampled elsewhere can be used here.

    Errors: NotTrainable, NoSuchVersion, TokenizerDiffers, OutsideVocabulary (422 each).
    """
    if rollout.purpose is Purpose.TRAIN and task.split != Split.TRAIN.value:
        raise NotTrainable(
            f"task {task.id} is of the split {task.split!r}; only `train` tasks train",
            hint="Send it with purpose `evaluation`, or use a train task.",
        )
    if rollout.policy_version is not None:
        known = select(PolicyVersionRow.id).where(
            PolicyVersionRow.lineage_id == lineage.id, PolicyVersionRow.name == rollout.policy_version
        )
        if session.scalar(known) is None:
            raise NoSuchVersion(f"no policy version is named {rollout.policy_version!r}")
    if rollout.token_ids is None:
        return
    if rollout.tokenizer_hash != lineage.tokenizer_hash:
        raise TokenizerDiffers(
            f"the rollout's tokenizer is {str(rollout.tokenizer_hash)[:12]}…, the policy's is "
            f"{lineage.tokenizer_hash[:12]}…"
        )
    if (largest := max(rollout.token_ids)) >= lineage.vocab_size:
        raise OutsideVocabulary(f"token id {largest} is outside the vocabulary of {lineage.vocab_size}")


def add_external(
    session: Session,
    lineage: LineageRow,
    task: TaskRow,
    rollout: RolloutCreate,
    prompt_token_ids: list[int],
    token_ids: list[int],
    text: str,
    tokenized_at_ingest: bool,
) -> RolloutRow:
    """Store a rollout sampled elsewhere, as a group of its own or one more of a group, and open its first questions.

    Errors: those of `check_external`; InvalidInput when the named group is not one for such rollouts of this task.
    """
    check_external(session, lineage, task, rollout)
    if rollout.group_id is None:
        group = GroupRow(
            lineage_id=lineage.id,
            task_id=task.id,
            split=task.split,
            purpose=rollout.purpose.value,
            policy_version=rollout.policy_version,
            size=1,
            sampling={} if rollout.sampling is None else rollout.sampling.model_dump(mode="json"),
            external=True,
            status=GroupStatus.SAMPLED.value,
        )
        session.add(group)
        session.flush()
        index = 0
    else:
        found = session.scalar(select(GroupRow).where(GroupRow.id == rollout.group_id).with_for_update())
        if found is None or not found.external or found.task_id != task.id or found.purpose != rollout.purpose.value:
            raise InvalidInput(
                f"group {rollout.group_id} is not a group of external rollouts of this task and purpose",
                hint="Leave group_id out for the first rollout and use the group_id it gets for its siblings.",
            )
        group = found
        index = group.size
        group.size += 1
    row = RolloutRow(
        lineage_id=lineage.id,
        task_id=task.id,
        split=task.split,
        purpose=rollout.purpose.value,
        group_id=group.id,
        index_in_group=index,
        policy_version=rollout.policy_version,
        prompt_token_ids=prompt_token_ids,
        token_ids=token_ids,
        sampler_logprobs=rollout.sampler_logprobs,
        action_mask=rollout.action_mask or [True] * len(token_ids),
        tokenizer_hash=lineage.tokenizer_hash,
        tokenized_at_ingest=tokenized_at_ingest,
        sampling=None if rollout.sampling is None else rollout.sampling.model_dump(mode="json"),
        text=text,
        finish_reason="external",
    )
    session.add(row)
    session.flush()
    consultations.open_stage(session, row, task, consultations.askable_experts(session, lineage.id), stage=1)
    advance(session, row.id)
    return row


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
        nobody = rollout.purpose != Purpose.TRAIN.value and not asked
        rollout.status = RolloutStatus.SET_ASIDE.value
        rollout.reason = "nobody is asked about rollouts of this purpose" if nobody else "no expert answered"
        return
    rollout.status = RolloutStatus.READY.value
    session.flush()
    if rollout.purpose == Purpose.TRAIN.value and said:
        open_lesson(session, rollout, said, late=False)


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
