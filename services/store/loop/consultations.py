"""Consultations: questions to experts about rollouts, and under whose lease each is asked.

The row decides, never the message: a consultation is claimed by raising `attempts`. Which are opened is in
`services.store.loop.opening`, how they end in `services.store.loop.settling`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from services.contracts.base import check_change
from services.contracts.consultations import CONSULTATION_CHANGES, ConsultationStatus
from services.contracts.experts import Ask, AskedRollout, AskedTask, ConsultRequest, Descriptor, ExpertStatus
from services.contracts.tasks import Message
from services.runtime.errors import NotFound
from services.store.core.id_lists import listed
from services.store.loop import answers, trust
from services.store.tables.loop import AnswerRow, AttemptRow, ConsultationRow, ExpertRow, RolloutRow, TaskRow

DEADLINE = timedelta(minutes=30)  # an expert that is down for less than this misses no consultation
ANSWER_SHARE = 0.8  # of a lease; the rest is for writing the answer down


class ConsultationNotFound(NotFound):
    """No consultation with this id."""


@dataclass(frozen=True)
class ClaimedConsultation:
    """A claimed consultation: the request, its endpoint, and the attempt that may settle it."""

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
    """The expert that a pending consultation waits for, and how many that expert takes at once."""

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
    """The consultations whose experts were given metadata of the task, also at second hand: reasons may quote it."""
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


def open_one(
    session: Session, rollout: RolloutRow, expert: ExpertRow, stage: int, ask: Ask, shown: Sequence[UUID] = ()
) -> ConsultationRow:
    """Open one consultation with the answers `shown` in its context. The caller sends its message after the commit."""
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
    """The ids of pending consultations about these rollouts, for which messages are sent."""
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
    """The places of those that are still pending, the oldest first."""
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


def claim(session: Session, ids: Sequence[UUID], *, lease_seconds: float) -> list[ClaimedConsultation]:
    """Lease those that are still pending to this worker; those of experts that are not asked now stay pending."""
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
    claimed = []
    for row in rows:
        if row.shown and row.attempts == 0:
            _choose_context_again(session, row)
        row.status = ConsultationStatus.ASKED.value
        row.attempts += 1
        row.lease_until = now + timedelta(seconds=lease_seconds)
        session.add(AttemptRow(consultation_id=row.id, number=row.attempts))
        claimed.append(_claimed(session, row, now, lease_seconds * ANSWER_SHARE))
    return claimed


def _choose_context_again(session: Session, row: ConsultationRow) -> None:
    """Drop answers from the context of a consultation that was never sent if they no longer count or are not granted.

    Later tries repeat the first one's context: the expert may have read it, and its answer may rest on it.
    """
    expert = session.get_one(ExpertRow, row.expert_id)
    may_be_shown = {said.id for said in answers.counting(session, row.rollout_id) if trust.may_see(expert, said)}
    context = Ask.model_validate(row.ask).context
    kept = [(one, said) for one, said in zip(row.shown, context, strict=True) if one in may_be_shown]
    if len(kept) < len(row.shown):
        row.shown = [one for one, _ in kept]
        row.ask = row.ask | {"context": [said.model_dump(mode="json") for _, said in kept]}


def _claimed(session: Session, row: ConsultationRow, now: datetime, timeout_seconds: float) -> ClaimedConsultation:
    expert = session.get_one(ExpertRow, row.expert_id)
    rollout = session.get_one(RolloutRow, row.rollout_id)
    task = session.get_one(TaskRow, rollout.task_id)
    descriptor = Descriptor.model_validate(expert.descriptor)
    seen = trust.read_keys(expert)
    return ClaimedConsultation(
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


def requeue(session: Session, consultation_id: UUID) -> ConsultationRow:
    """Ask a dead consultation once more, with fresh attempts and deadline.

    Errors: ConsultationNotFound (404), IllegalStatusChange (409) when it is not dead.
    """
    row = get(session, consultation_id)
    check_change(CONSULTATION_CHANGES, ConsultationStatus(row.status), ConsultationStatus.PENDING)
    requeue_all(session, [row.id])
    session.refresh(row)
    return row


def requeue_all(session: Session, ids: Sequence[UUID]) -> None:
    """Ask the dead ones of these consultations once more, with fresh attempts and deadline."""
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
