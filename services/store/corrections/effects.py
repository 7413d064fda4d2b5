"""Effects: which corrections are measured under which versions, by which worker, and the results.

An update that used a correction has two sides: the last version published before it and the first one with it. A side
is asked once that version is published; the sweep plans it, a worker claims it and records it with its attempt number
as the fence, so that a message that comes twice measures once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Update, exists, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from services.contracts.corrections import CorrectionStatus
from services.contracts.effects import CorrectionEffect, EffectSide, EffectStatus
from services.contracts.ids import new_id
from services.contracts.updates import TermRecord, UpdateStatus
from services.store.ledger import fallbacks
from services.store.loop import tasks
from services.store.tables.corrections import CorrectionRow, EffectRow
from services.store.tables.ledger import PolicyVersionRow, UpdateLessonRow, UpdateRow
from services.store.tables.loop import AnswerRow, RolloutRow

MAX_PLANNED_UPDATES = 20  # at a time; the next sweep goes on
LEASE = timedelta(minutes=2)  # a batch of scores and short answers; a busy policy server may take a while
BACKOFF_SECONDS = (2, 5, 15, 30, 60)
MAX_FAILURES = 8  # about three minutes: a policy server that restarted has its versions again by then


@dataclass(frozen=True)
class Measurement:
    """A measurement to make with a version: the probability of `text` after the prompt, and its own likeliest answer.

    The prompt holds the rollout's earlier turns. text is None where the answer was fine as it is: then the rollout's
    own tokens are scored. max_new_tokens: as the task has it (`tasks.find_most_tokens`).
    """

    effect_id: UUID
    attempt: int
    version: str
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    action_mask: tuple[bool, ...]
    text: str | None
    max_new_tokens: int | None


@dataclass(frozen=True)
class Reading:
    """A version's measurement. Logprobs: sums over tokens, in nats; the span: [span_start, span_end) of num_tokens."""

    num_tokens: int
    span_start: int
    span_end: int
    text_logprob: float
    span_logprob: float
    answer: str


def plan(session: Session, lineage_id: UUID) -> None:
    """Open both sides of every correction used by an applied update that a version was published with."""
    published = session.scalar(
        select(func.max(PolicyVersionRow.update_number)).where(
            PolicyVersionRow.lineage_id == lineage_id, _was_published()
        )
    )
    due = session.scalars(
        select(UpdateRow)
        .where(
            UpdateRow.lineage_id == lineage_id,
            UpdateRow.status == UpdateStatus.APPLIED.value,
            ~UpdateRow.effects_planned,
            UpdateRow.number <= (published or 0),
        )
        .order_by(UpdateRow.number)
        .limit(MAX_PLANNED_UPDATES)
        .with_for_update(skip_locked=True)
    ).all()
    for step in due:
        used = _corrections_of(session, step.id)
        if used:
            _open_sides(session, step, used)
        step.effects_planned = True
    session.flush()


def _was_published() -> ColumnElement[bool]:
    """The base has always been there; any other version was published when it began to serve."""
    return PolicyVersionRow.served_at.is_not(None) | (PolicyVersionRow.number == 0)


def _corrections_of(session: Session, update_id: UUID) -> Sequence[UUID]:
    terms = session.scalars(select(UpdateLessonRow.terms).where(UpdateLessonRow.update_id == update_id))
    answers = {answer for row in terms for term in row for answer in TermRecord.model_validate(term).answers}
    return session.scalars(
        select(CorrectionRow.id)
        .join(AnswerRow, AnswerRow.consultation_id == CorrectionRow.consultation_id)
        .where(AnswerRow.id.in_(answers), CorrectionRow.status == CorrectionStatus.SUBMITTED.value)
        .order_by(CorrectionRow.id)
    ).all()


def _open_sides(session: Session, step: UpdateRow, used: Sequence[UUID]) -> None:
    """Both sides of each; none where training left the update behind before it was part of a version."""
    versions = select(PolicyVersionRow.name).where(PolicyVersionRow.lineage_id == step.lineage_id, _was_published())
    carries = fallbacks.carries(PolicyVersionRow.update_number, step.number, step.lineage_id)
    before = versions.where(PolicyVersionRow.update_number < step.number).order_by(PolicyVersionRow.number.desc())
    after = session.scalar(versions.where(carries).order_by(PolicyVersionRow.number).limit(1))
    if after is None:
        return
    sides = {EffectSide.BEFORE: session.scalars(before.limit(1)).one(), EffectSide.AFTER: after}
    session.execute(
        insert(EffectRow)
        .values(
            [
                {
                    "id": new_id(),
                    "correction_id": correction_id,
                    "update_id": step.id,
                    "side": side.value,
                    "version": version,
                    "status": EffectStatus.PENDING.value,
                }
                for correction_id in used
                for side, version in sides.items()
            ]
        )
        .on_conflict_do_nothing(index_elements=["correction_id", "update_id", "side"])
    )


def take_due(session: Session, *, resend_seconds: float, limit: int) -> list[UUID]:
    """The effects that one message is to be sent for now, all of one version: the newest that waits, since a policy
    server that is given many versions lets go of the oldest.

    None while another message's are being measured: they are asked of the policy server that the rollouts are drawn
    from, and it changes weights for every version.
    """
    is_pending = EffectRow.status == EffectStatus.PENDING.value
    is_sent = EffectRow.sent_at >= func.now() - timedelta(seconds=resend_seconds)
    is_leased = EffectRow.sent_at.is_not(None) & (EffectRow.not_before > func.now())
    if session.scalar(select(exists().where(is_pending, is_sent | is_leased))):
        return []
    waits = (is_pending, EffectRow.not_before <= func.now())
    newest = (
        select(EffectRow.version)
        .join(CorrectionRow, CorrectionRow.id == EffectRow.correction_id)
        .join(
            PolicyVersionRow,
            (PolicyVersionRow.lineage_id == CorrectionRow.lineage_id) & (PolicyVersionRow.name == EffectRow.version),
        )
        .where(*waits)
        .order_by(PolicyVersionRow.number.desc())
        .limit(1)
    )
    due = (
        select(EffectRow.id)
        .where(*waits, EffectRow.version == newest.scalar_subquery())
        .order_by(EffectRow.not_before, EffectRow.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    sent = update(EffectRow).where(EffectRow.id.in_(due)).values(sent_at=func.now()).returning(EffectRow.id)
    return list(session.scalars(sent))


def claim(session: Session, ids: Sequence[UUID]) -> list[Measurement]:
    """Lease the still pending ones of these effects to this worker."""
    rows = session.scalars(
        select(EffectRow)
        .where(
            EffectRow.id.in_(ids), EffectRow.status == EffectStatus.PENDING.value, EffectRow.not_before <= func.now()
        )
        .order_by(EffectRow.id)
        .with_for_update(skip_locked=True)
    ).all()
    claimed = []
    for row in rows:
        item = session.get_one(CorrectionRow, row.correction_id)
        if item.status != CorrectionStatus.SUBMITTED.value or (item.verdict == "corrected" and item.text is None):
            row.status, row.reason = EffectStatus.GONE.value, "the correction was withdrawn, or its text erased"
            continue
        row.attempts += 1
        row.not_before = func.now() + LEASE
        rollout = session.get_one(RolloutRow, item.rollout_id)
        claimed.append(
            Measurement(
                effect_id=row.id,
                attempt=row.attempts,
                version=row.version,
                prompt_token_ids=(*rollout.prompt_token_ids, *rollout.token_ids[: rollout.answer_start]),
                token_ids=tuple(rollout.token_ids[rollout.answer_start :]),
                action_mask=tuple(rollout.action_mask[rollout.answer_start :]),
                text=item.text,
                max_new_tokens=tasks.find_most_tokens(tasks.get(session, rollout.task_id)),
            )
        )
    session.flush()
    return claimed


def record(session: Session, asked: Measurement, found: Reading) -> None:
    """Record the measurement, once. A late worker changes no row."""
    session.execute(
        _of_attempt(asked).values(
            status=EffectStatus.MEASURED.value,
            reason=None,
            num_tokens=found.num_tokens,
            span_start=found.span_start,
            span_end=found.span_end,
            text_logprob=found.text_logprob,
            span_logprob=found.span_logprob,
            answer=found.answer,
            measured_at=func.now(),
        )
    )


def release(session: Session, asked: Measurement, reason: str, *, counts: bool) -> None:
    """Give it back for another try; after `MAX_FAILURES` tries that count the version is taken to be gone."""
    row = session.scalar(
        select(EffectRow)
        .where(
            EffectRow.id == asked.effect_id,
            EffectRow.status == EffectStatus.PENDING.value,
            EffectRow.attempts == asked.attempt,
        )
        .with_for_update()
    )
    if row is None:
        return
    row.failures += int(counts)
    row.reason = reason[:2000]
    row.sent_at = None
    row.not_before = func.now() + timedelta(seconds=BACKOFF_SECONDS[min(row.failures, len(BACKOFF_SECONDS) - 1)])
    if row.failures >= MAX_FAILURES:
        row.status = EffectStatus.GONE.value
    session.flush()


def give_up(session: Session, asked: Measurement, reason: str) -> None:
    """This can never be measured; the reason is kept."""
    session.execute(_of_attempt(asked).values(status=EffectStatus.GONE.value, reason=reason[:2000]))


def of_corrections(session: Session, correction_ids: Sequence[UUID]) -> dict[UUID, list[CorrectionEffect]]:
    """The effects of these corrections, of each by update, before and then after; of one without any, no entry."""
    rows = session.execute(
        select(EffectRow, UpdateRow.number, UpdateRow.status)
        .join(UpdateRow, UpdateRow.id == EffectRow.update_id)
        .where(EffectRow.correction_id.in_(correction_ids))
        .order_by(UpdateRow.number, EffectRow.side.desc())
    )
    columns = [name for name in CorrectionEffect.model_fields if name not in ("update_number", "update_status")]
    found: dict[UUID, list[CorrectionEffect]] = {}
    for row, number, status in rows:
        seen = {name: getattr(row, name) for name in columns} | {"update_number": number, "update_status": status}
        found.setdefault(row.correction_id, []).append(CorrectionEffect.model_validate(seen))
    return found


def _of_attempt(asked: Measurement) -> Update:
    return update(EffectRow).where(
        EffectRow.id == asked.effect_id,
        EffectRow.status == EffectStatus.PENDING.value,
        EffectRow.attempts == asked.attempt,
    )
