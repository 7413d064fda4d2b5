"""Consultations: who is asked about what, under whose lease, and how each question ends.

The row decides, never the message: a question is claimed by raising `attempts`, and settled only `WHERE attempts` is
still the claimer's. Locks are taken rollout first, then consultation.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import case, func, select, update
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerContent, AnswerKind, check_against_rollout
from services.contracts.base import check_change
from services.contracts.consultations import CONSULTATION_CHANGES, ConsultationStatus, InvalidAnswer
from services.contracts.corrections import CorrectionStatus
from services.contracts.experts import (
    Ask,
    AskedRollout,
    AskedTask,
    ConsultAbstain,
    ConsultLater,
    ConsultRequest,
    ConsultResult,
    ContextAnswer,
    Descriptor,
    ExpertStatus,
)
from services.contracts.rollouts import Purpose, RolloutStatus
from services.contracts.tasks import Message, Split
from services.runtime.errors import Conflict, NotFound
from services.store.core.id_lists import listed
from services.store.corrections import ranking
from services.store.loop import answers, quarantine, rollouts, trust
from services.store.tables.base import LineageRow
from services.store.tables.corrections import CorrectionRow
from services.store.tables.loop import AnswerRow, AttemptRow, ConsultationRow, ExpertRow, RolloutRow, TaskRow

DEADLINE = timedelta(minutes=30)  # an expert that is down for less than this loses no question
LATE_DEADLINE = timedelta(days=7)  # people answer within a week or not at all
BACKOFF_SECONDS = (1, 3, 10, 30, 60)
LAST_TRY = timedelta(minutes=2)  # before its deadline a question is asked once more, whatever an expert said to wait
ANSWER_SHARE = 0.8  # of a lease; the rest is for writing the answer down

Outcome = ConsultResult | ConsultAbstain | ConsultLater | InvalidAnswer


class ConsultationNotFound(NotFound):
    """No consultation with this id."""


class NotWaiting(Conflict):
    """The question is not waiting for a late answer: it was settled, or the expert never said 202."""


@dataclass(frozen=True)
class Question:
    """A claimed consultation: what to send where, and the attempt that may settle it."""

    consultation_id: UUID
    rollout_id: UUID
    group_id: UUID
    attempt: int
    expert_id: UUID
    expert_name: str
    endpoint: str
    signing_secret: str | None
    max_concurrency: int
    claimed_at: datetime
    """By the database's clock, which sets the deadline."""
    timeout_seconds: float
    request: ConsultRequest


@dataclass(frozen=True)
class Place:
    """Whose turn a pending question waits for, and how many questions that expert takes at once."""

    consultation_id: UUID
    expert_id: UUID
    max_concurrency: int


def get(session: Session, consultation_id: UUID) -> ConsultationRow:
    """The consultation. Errors: ConsultationNotFound."""
    row = session.get(ConsultationRow, consultation_id)
    if row is None:
        raise ConsultationNotFound(f"no consultation {consultation_id}")
    return row


def find_quoting(session: Session, rows: Sequence[ConsultationRow]) -> set[UUID]:
    """Those of these questions whose experts were given metadata of the task, at second hand too: the reasons they give
    may quote it."""
    said = select(AnswerRow).where(AnswerRow.id.in_({answer_id for row in rows for answer_id in row.shown}))
    shown = {answer.id: answer for answer in session.scalars(said)}
    asked = session.execute(
        select(ConsultationRow, ExpertRow, TaskRow.metadata_)
        .join(ExpertRow, ExpertRow.id == ConsultationRow.expert_id)
        .join(RolloutRow, RolloutRow.id == ConsultationRow.rollout_id)
        .join(TaskRow, TaskRow.id == RolloutRow.task_id)
        .where(ConsultationRow.id.in_({row.id for row in rows}))
    )
    return {
        row.id
        for row, expert, metadata in asked
        if trust.derive(expert, metadata, [shown[answer_id] for answer_id in row.shown if answer_id in shown])
    }


def askable_experts(session: Session, lineage_id: UUID) -> Sequence[ExpertRow]:
    """The experts that new questions go to."""
    return session.scalars(
        select(ExpertRow)
        .where(
            ExpertRow.lineage_id == lineage_id,
            ExpertRow.status.in_([ExpertStatus.ACTIVE.value, ExpertStatus.PROBATION.value]),
        )
        .order_by(ExpertRow.id)
    ).all()


def _share(*parts: UUID) -> float:
    """A number in [0, 1) that depends on the ids only, so that asking again chooses the same."""
    return int.from_bytes(hashlib.sha256(b"".join(p.bytes for p in parts)).digest()[:8]) / 2**64


@dataclass(frozen=True)
class Subject:
    """What decides who is asked about a rollout."""

    purpose: str
    split: str
    group_id: UUID
    index_in_group: int
    domain: str
    metadata_keys: frozenset[str]


def choose_kinds(subject: Subject, expert: ExpertRow, descriptor: Descriptor) -> list[AnswerKind]:
    """The kinds of answer this expert is asked for about this rollout; none when it is not asked at all."""
    if not descriptor.matches(subject.domain):
        return []
    if not set(descriptor.metadata_keys) <= subject.metadata_keys.intersection(expert.granted):
        return []
    if subject.purpose != Purpose.TRAIN.value:
        is_asked = descriptor.verifier and subject.purpose in (Purpose.EVALUATION.value, Purpose.PROBE.value)
    elif expert.group_fraction < 1 and _share(subject.group_id, expert.id) >= expert.group_fraction:
        is_asked = False
    else:
        is_asked = expert.rollouts_per_group is None or subject.index_in_group < expert.rollouts_per_group
    if not is_asked:
        return []
    return [k for k in descriptor.kinds if k is not AnswerKind.SOLUTION or subject.split == Split.TRAIN.value]


def open_stage(
    session: Session, rollout: RolloutRow, task: TaskRow, experts: Sequence[ExpertRow], *, stage: int
) -> list[ConsultationRow]:
    """Open the questions of one stage: verifiers and people first, experts that answer given answers second.

    One of the second stage is shown the answers that count and that it may see; where there are none it is not asked.
    """
    opened = []
    said = [row for row in answers.counting(session, rollout.id) if row.distribution_kind is None] if stage == 2 else []
    subject = Subject(
        purpose=rollout.purpose,
        split=rollout.split,
        group_id=rollout.group_id,
        index_in_group=rollout.index_in_group,
        domain=task.domain,
        metadata_keys=frozenset(task.metadata_),
    )
    for expert in experts:
        descriptor = Descriptor.model_validate(expert.descriptor)
        if descriptor.needs_answers != (stage == 2):
            continue
        kinds = choose_kinds(subject, expert, descriptor)
        shown = [answer for answer in said if trust.may_see(expert, answer)]
        if kinds and (shown or stage == 1):
            context = [_show(session, answer) for answer in shown]
            ask = Ask(kinds=kinds, top_k=expert.top_k, temperature=expert.temperature, context=context)
            opened.append(open_one(session, rollout, expert, stage, ask, shown=[answer.id for answer in shown]))
    return opened


def _show(session: Session, answer: AnswerRow) -> ContextAnswer:
    return ContextAnswer(
        expert=session.get_one(ExpertRow, answer.expert_id).name,
        score=answer.score,
        feedback=answers.content(session, answer).feedback,
        solution=answer.solution,
    )


def open_one(
    session: Session, rollout: RolloutRow, expert: ExpertRow, stage: int, ask: Ask, shown: Sequence[UUID] = ()
) -> ConsultationRow:
    """Open one question, in whose context are the answers `shown`. Its message is the caller's to send after the
    commit."""
    row = ConsultationRow(
        lineage_id=rollout.lineage_id,
        rollout_id=rollout.id,
        expert_id=expert.id,
        expert_version=expert.version,
        stage=stage,
        ask=ask.model_dump(mode="json"),
        shown=[*shown],
        deadline=func.now() + DEADLINE,
        sent_at=func.now(),
    )
    session.add(row)
    session.flush()
    return row


def pending_of(session: Session, rollout_ids: Sequence[UUID]) -> list[UUID]:
    """The still pending questions about these rollouts: the ids a message is sent for."""
    return list(
        session.scalars(
            select(ConsultationRow.id)
            .where(
                ConsultationRow.rollout_id.in_(rollout_ids),
                ConsultationRow.status == ConsultationStatus.PENDING.value,
            )
            .order_by(ConsultationRow.id)
        )
    )


def find_places(session: Session, ids: Sequence[UUID]) -> list[Place]:
    """Whom the still pending ones of these questions are for, the oldest first."""
    rows = session.execute(
        select(ConsultationRow.id, ExpertRow.id, ExpertRow.descriptor)
        .join(ExpertRow, ExpertRow.id == ConsultationRow.expert_id)
        .where(ConsultationRow.id.in_(listed(ids)), ConsultationRow.status == ConsultationStatus.PENDING.value)
        .order_by(ConsultationRow.id)
    )
    return [
        Place(row_id, expert_id, Descriptor.model_validate(descriptor).max_concurrency)
        for row_id, expert_id, descriptor in rows
    ]


def claim(session: Session, ids: Sequence[UUID], *, lease_seconds: float) -> list[Question]:
    """Lease the still pending ones of these questions; those of experts that are not asked now stay pending."""
    rows = session.scalars(
        select(ConsultationRow)
        .join(ExpertRow, ExpertRow.id == ConsultationRow.expert_id)
        .where(
            ConsultationRow.id.in_(ids),
            ConsultationRow.status == ConsultationStatus.PENDING.value,
            ConsultationRow.not_before <= func.now(),
            ConsultationRow.deadline > func.now(),
            ExpertRow.status.in_([ExpertStatus.ACTIVE.value, ExpertStatus.PROBATION.value]),
        )
        .order_by(ConsultationRow.id)
        .with_for_update(skip_locked=True, of=ConsultationRow)
    ).all()
    now: datetime = session.scalar(select(func.clock_timestamp()))  # type: ignore[assignment]
    questions = []
    for row in rows:
        if row.shown and row.attempts == 0:
            _choose_context_again(session, row)
        row.status = ConsultationStatus.ASKED.value
        row.attempts += 1
        row.lease_until = now + timedelta(seconds=lease_seconds)
        session.add(AttemptRow(consultation_id=row.id, number=row.attempts))
        questions.append(_question(session, row, now, lease_seconds * ANSWER_SHARE))
    return questions


def _choose_context_again(session: Session, row: ConsultationRow) -> None:
    """Leave out of a question that was never sent what has ceased to count, or to be granted, since it was opened.

    Later tries say what the first said: the expert may have read it, and whatever it says then stands on it.
    """
    expert = session.get_one(ExpertRow, row.expert_id)
    may_be_shown = {said.id for said in answers.counting(session, row.rollout_id) if trust.may_see(expert, said)}
    context = Ask.model_validate(row.ask).context
    kept = [(one, said) for one, said in zip(row.shown, context, strict=True) if one in may_be_shown]
    if len(kept) < len(row.shown):
        row.shown = [one for one, _ in kept]
        row.ask = row.ask | {"context": [said.model_dump(mode="json") for _, said in kept]}


def _question(session: Session, row: ConsultationRow, now: datetime, timeout_seconds: float) -> Question:
    expert = session.get_one(ExpertRow, row.expert_id)
    rollout = session.get_one(RolloutRow, row.rollout_id)
    task = session.get_one(TaskRow, rollout.task_id)
    descriptor = Descriptor.model_validate(expert.descriptor)
    seen = trust.read_keys(expert)
    return Question(
        consultation_id=row.id,
        rollout_id=rollout.id,
        group_id=rollout.group_id,
        attempt=row.attempts,
        expert_id=expert.id,
        expert_name=expert.name,
        endpoint=expert.endpoint,
        signing_secret=expert.signing_secret,
        max_concurrency=descriptor.max_concurrency,
        claimed_at=now,
        timeout_seconds=timeout_seconds,
        request=ConsultRequest(
            consultation_id=row.id,
            deadline=row.deadline,
            ask=Ask.model_validate(row.ask),
            task=AskedTask(
                id=task.id,
                domain=task.domain,
                messages=[Message.model_validate(m) for m in task.messages],
                metadata={key: value for key, value in task.metadata_.items() if key in seen},
            ),
            rollout=AskedRollout(
                id=rollout.id,
                text=rollout.text,
                turns=None if rollout.turns is None else [Message.model_validate(turn) for turn in rollout.turns],
                token_ids=rollout.token_ids,
                tokenizer_hash=rollout.tokenizer_hash,
                policy_version=rollout.policy_version,
            ),
        ),
    )


def settle(session: Session, question: Question, outcome: Outcome) -> list[UUID]:
    """Write down how a question ended, once, and move its rollout on. A late worker changes nothing.

    An answer that counts and comes after its rollout was settled opens a lesson of its own. Returns the ids of
    questions that opened because of it (the second stage), to be sent after the commit.
    """
    rollout = session.scalars(select(RolloutRow).where(RolloutRow.id == question.rollout_id).with_for_update()).one()
    row = session.scalar(
        select(ConsultationRow)
        .where(
            ConsultationRow.id == question.consultation_id,
            ConsultationRow.status == ConsultationStatus.ASKED.value,
            ConsultationRow.attempts == question.attempt,
        )
        .with_for_update()
    )
    if row is None:
        return []
    _end_attempt(session, question, "ok", None)
    quarantine.note_answer(session, row.expert_id)
    answer = _conclude(session, row, rollout, outcome)
    _teach_late(session, rollout, answer)
    rollouts.advance(session, rollout.id)
    return pending_of(session, [rollout.id])


def settle_late(session: Session, consultation_id: UUID, outcome: ConsultResult | ConsultAbstain) -> ConsultationRow:
    """The answer to a waiting question. If its rollout was ready already, a second lesson opens with this answer alone.

    Errors: ConsultationNotFound (404), NotWaiting (409).
    """
    rollout_id = get(session, consultation_id).rollout_id
    rollout = session.scalars(select(RolloutRow).where(RolloutRow.id == rollout_id).with_for_update()).one()
    row = session.scalars(select(ConsultationRow).where(ConsultationRow.id == consultation_id).with_for_update()).one()
    if row.status != ConsultationStatus.WAITING.value:
        raise NotWaiting(f"consultation {consultation_id} is {row.status}, not waiting")
    answer = _conclude(session, row, rollout, outcome)
    _teach_late(session, rollout, answer)
    rollouts.advance(session, rollout.id)
    return row


def _teach_late(session: Session, rollout: RolloutRow, answer: AnswerRow | None) -> None:
    """Open a lesson with an answer that counts and came after its rollout was ready."""
    if answer is None or rollout.status != RolloutStatus.READY.value or rollout.purpose != Purpose.TRAIN.value:
        return
    if answer in answers.counting(session, rollout.id):
        rollouts.open_lesson(session, rollout, [answer], late=True)


def _conclude(session: Session, row: ConsultationRow, rollout: RolloutRow, outcome: Outcome) -> AnswerRow | None:
    answer = None
    if isinstance(outcome, AnswerContent):
        lineage = session.get_one(LineageRow, rollout.lineage_id)
        try:
            check_against_rollout(
                outcome,
                num_tokens=len(rollout.token_ids),
                tokenizer_hash=rollout.tokenizer_hash,
                vocab_size=lineage.vocab_size,
            )
        except ValueError as error:
            row.status, row.reason = ConsultationStatus.INVALID.value, str(error)
        else:
            answer = answers.record(session, row, rollout, outcome)
            row.status = ConsultationStatus.ANSWERED.value
            if answer.score is not None:
                ranking.rank_again(session, rollout.id)
    elif isinstance(outcome, ConsultAbstain):
        row.status, row.reason = ConsultationStatus.ABSTAINED.value, outcome.reason or "the expert abstained"
    elif isinstance(outcome, ConsultLater):
        row.status, row.reason = ConsultationStatus.WAITING.value, outcome.reason or "the answer comes later"
        row.deadline = func.now() + LATE_DEADLINE
    else:
        row.status, row.reason = ConsultationStatus.INVALID.value, outcome.reason[:2000]
    row.lease_until = None
    if row.status != ConsultationStatus.WAITING.value:
        row.settled_at = func.now()
        withdraw_items(session, [row.id])
    session.flush()
    return answer


def withdraw_items(session: Session, consultation_ids: Sequence[UUID]) -> None:
    """Take the undecided items of these questions out of the human queue: nobody waits for them any more."""
    undecided = (CorrectionStatus.OPEN.value, CorrectionStatus.CLAIMED.value, CorrectionStatus.SKIPPED.value)
    session.execute(
        update(CorrectionRow)
        .where(CorrectionRow.consultation_id.in_(consultation_ids), CorrectionRow.status.in_(undecided))
        .values(status=CorrectionStatus.WITHDRAWN.value)
    )


def _end_attempt(session: Session, question: Question, outcome: str, reason: str | None) -> None:
    session.execute(
        update(AttemptRow)
        .where(AttemptRow.consultation_id == question.consultation_id, AttemptRow.number == question.attempt)
        .values(outcome=outcome, reason=reason, ended_at=func.now())
    )


def release(
    session: Session,
    question: Question,
    reason: str,
    *,
    retry_after: float | None,
    max_attempts: int,
    quarantine_after: int,
) -> None:
    """Give a question back after a failed try. `retry_after` means busy, which counts as no failure: the question is
    asked again after so many seconds, and in any case once more before its deadline.

    After `max_attempts` failures the question is dead, the reason kept; after `quarantine_after` failures in a row,
    over all questions, the expert is quarantined.
    """
    session.execute(select(RolloutRow.id).where(RolloutRow.id == question.rollout_id).with_for_update())
    row = session.scalar(
        select(ConsultationRow)
        .where(
            ConsultationRow.id == question.consultation_id,
            ConsultationRow.status == ConsultationStatus.ASKED.value,
            ConsultationRow.attempts == question.attempt,
        )
        .with_for_update()
    )
    if row is None:
        return
    _end_attempt(session, question, "failed", reason[:2000])
    row.reason = reason[:2000]
    row.lease_until = None
    if retry_after is None:
        row.failures += 1
        quarantine.note_failure(session, question.expert_id, reason, quarantine_after)
    if row.failures >= max_attempts:
        row.status = ConsultationStatus.DEAD.value
        row.settled_at = func.now()
        withdraw_items(session, [row.id])
        session.flush()
        rollouts.advance(session, row.rollout_id)
        return
    row.status = ConsultationStatus.PENDING.value
    row.sent_at = None
    if retry_after is None:
        delay = BACKOFF_SECONDS[min(row.failures, len(BACKOFF_SECONDS)) - 1]
        row.not_before = func.now() + timedelta(seconds=delay)
    else:
        before_end = row.deadline - LAST_TRY
        last_try = case((func.now() < before_end, before_end), else_=row.deadline)
        row.not_before = func.least(func.now() + timedelta(seconds=retry_after), last_try)


def kill(session: Session, row: ConsultationRow, reason: str) -> None:
    """End an unsettled question for good and move its rollout on."""
    session.execute(select(RolloutRow.id).where(RolloutRow.id == row.rollout_id).with_for_update())
    row.status = ConsultationStatus.DEAD.value
    row.reason = reason
    row.lease_until = None
    row.settled_at = func.now()
    withdraw_items(session, [row.id])
    session.flush()
    rollouts.advance(session, row.rollout_id)


def requeue(session: Session, consultation_id: UUID) -> ConsultationRow:
    """Ask a dead question once more, with fresh attempts and deadline.

    Errors: ConsultationNotFound (404), IllegalStatusChange (409) when it is not dead.
    """
    row = get(session, consultation_id)
    check_change(CONSULTATION_CHANGES, ConsultationStatus(row.status), ConsultationStatus.PENDING)
    requeue_all(session, [row.id])
    session.refresh(row)
    return row


def requeue_all(session: Session, ids: Sequence[UUID]) -> None:
    """Ask those of these questions that are dead once more, with fresh attempts and deadline."""
    session.execute(
        update(ConsultationRow)
        .where(ConsultationRow.id.in_(listed(ids)), ConsultationRow.status == ConsultationStatus.DEAD.value)
        .values(
            status=ConsultationStatus.PENDING.value,
            failures=0,
            reason=None,
            settled_at=None,
            deadline=func.now() + DEADLINE,
            sent_at=func.now(),
            not_before=func.now(),
        )
    )


def sweep(session: Session, *, resend_seconds: float, limit: int) -> list[UUID]:
    """Free the questions of dead workers, end those past their deadline, move on rollouts that nobody who may train
    holds any more, return the questions to be sent (again)."""
    session.execute(
        update(ConsultationRow)
        .where(
            ConsultationRow.id.in_(
                select(ConsultationRow.id)
                .where(
                    ConsultationRow.status == ConsultationStatus.ASKED.value,
                    ConsultationRow.lease_until < func.now(),
                )
                .with_for_update(skip_locked=True)
            )
        )
        .values(status=ConsultationStatus.PENDING.value, lease_until=None, sent_at=None)
    )
    late = session.execute(
        select(ConsultationRow.id, ConsultationRow.rollout_id)
        .where(
            ConsultationRow.status.in_([ConsultationStatus.PENDING.value, ConsultationStatus.WAITING.value]),
            ConsultationRow.deadline < func.now(),
        )
        .order_by(ConsultationRow.rollout_id)
        .limit(limit)
    ).all()
    unheard = session.execute(
        select(ConsultationRow.id, ConsultationRow.rollout_id)
        .join(ExpertRow, ExpertRow.id == ConsultationRow.expert_id)
        .where(
            ConsultationRow.status == ConsultationStatus.PENDING.value,
            ExpertRow.status == ExpertStatus.QUARANTINED.value,
            ~trust.may_train(ExpertRow),
        )
        .order_by(ConsultationRow.rollout_id)
        .limit(limit)
    ).all()
    ended = [(each, "no answer before its deadline") for each in late]
    ended += [(each, "the expert, whose answers carry no weight, went into quarantine") for each in unheard]
    for (consultation_id, rollout_id), why in sorted(ended, key=lambda one: one[0][1]):  # in the order of every lock
        session.execute(select(RolloutRow.id).where(RolloutRow.id == rollout_id).with_for_update())
        row = session.scalars(
            select(ConsultationRow).where(ConsultationRow.id == consultation_id).with_for_update()
        ).one()
        if row.status in (ConsultationStatus.PENDING.value, ConsultationStatus.WAITING.value):
            kill(session, row, f"{why}; last: {row.reason or 'never asked'}")
    rollouts.advance_unheld(session, limit)
    due = (
        select(ConsultationRow.id)
        .join(ExpertRow, ExpertRow.id == ConsultationRow.expert_id)
        .where(
            ConsultationRow.status == ConsultationStatus.PENDING.value,
            ConsultationRow.not_before <= func.now(),
            (ConsultationRow.sent_at.is_(None))
            | (ConsultationRow.sent_at < func.now() - timedelta(seconds=resend_seconds)),
            ExpertRow.status.in_([ExpertStatus.ACTIVE.value, ExpertStatus.PROBATION.value]),
        )
        .order_by(ConsultationRow.id)
        .limit(limit)
        .with_for_update(skip_locked=True, of=ConsultationRow)
    )
    return list(
        session.scalars(
            update(ConsultationRow)
            .where(ConsultationRow.id.in_(due))
            .values(sent_at=func.now())
            .returning(ConsultationRow.id)
        )
    )
