"""Consultations: which experts are asked about which rollout, and under whose lease.

The row decides, never the message: a consultation is claimed by raising `attempts`. How it ends is in
`services.store.loop.settling`.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerKind
from services.contracts.base import check_change
from services.contracts.consultations import CONSULTATION_CHANGES, ConsultationStatus
from services.contracts.experts import (
    Ask,
    AskedRollout,
    AskedTask,
    ConsultRequest,
    ContextAnswer,
    Descriptor,
    ExpertStatus,
)
from services.contracts.ids import new_id
from services.contracts.rollouts import Purpose
from services.contracts.sources import ContextSource
from services.contracts.tasks import Message, Split
from services.runtime.errors import NotFound
from services.store.core.id_lists import listed
from services.store.loop import answers, contexts, prefixes, standing, trust
from services.store.loop.standing import Standing
from services.store.tables.loop import AnswerRow, AttemptRow, ConsultationRow, ExpertRow, RolloutRow, TaskRow
from services.store.tables.teaching import MeasuredTaskRow, MeasurementRow, ScoutRow

DEADLINE = timedelta(minutes=30)  # an expert that is down for less than this misses no consultation
TRAIN_ONLY_KINDS = (AnswerKind.SOLUTION, AnswerKind.PRECEDENTS)
"""Kinds that are asked for about train tasks alone; what an expert reads off a task is of them."""
DRAWN_FOR_EXPERTS: Final = (Purpose.PROBE.value, Purpose.SCOUT.value)
"""Purposes of groups that are drawn to ask some experts about them."""
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


def askable_experts(session: Session, lineage_id: UUID) -> Sequence[ExpertRow]:
    """The experts that are consulted about new rollouts."""
    return session.scalars(
        select(ExpertRow)
        .where(
            ExpertRow.lineage_id == lineage_id,
            ExpertRow.status.in_([ExpertStatus.ACTIVE.value, ExpertStatus.PROBATION.value]),
        )
        .order_by(ExpertRow.id)
    ).all()


def _share(*parts: UUID) -> float:
    """A number in [0, 1) that depends on the ids only, so that the choice is the same each time."""
    return int.from_bytes(hashlib.sha256(b"".join(p.bytes for p in parts)).digest()[:8]) / 2**64


@dataclass(frozen=True)
class Subject:
    """The properties of a rollout that decide which experts are asked about it, and where.

    drawn_for: the experts whose sources are measured on its group, or that it scouts for.
    """

    purpose: str
    split: str
    group_id: UUID
    index_in_group: int
    domain: str
    metadata_keys: frozenset[str]
    shown: bool
    quotes: frozenset[str]
    action_mask: Sequence[bool]
    sampler_logprobs: Sequence[float] | None
    drawn_for: frozenset[UUID] = frozenset()


MEASURED_KINDS: Final = frozenset({AnswerKind.FEEDBACK, AnswerKind.SOLUTION, AnswerKind.PRECEDENTS})
"""The kinds of answer that a measurement shows."""


def supplies_material(index_in_group: int) -> bool:
    """Whether an answer of the student may supply what a measurement shows; the pass rate of the others is what the
    teacher's is compared with."""
    return index_in_group % 2 == 0


def serves(expert: ExpertRow, descriptor: Descriptor, domain: str, metadata_keys: Set[str]) -> bool:
    """Whether the expert answers about tasks of this domain that have this metadata."""
    return descriptor.matches(domain) and set(descriptor.metadata_keys) <= metadata_keys & set(expert.granted)


def choose_kinds(subject: Subject, expert: ExpertRow, descriptor: Descriptor) -> list[AnswerKind]:
    """The kinds of answer this expert is asked for about this rollout; none when it is not asked at all.

    About a rollout that a teacher drew only verifiers are asked: their verdict says whether the teacher was right, and
    counts in no score. About a scout only those are asked that it was drawn for, and only what they say about every
    rollout of the task alike.
    """
    if not serves(expert, descriptor, subject.domain, subject.metadata_keys):
        return []
    kinds = [k for k in descriptor.kinds if k not in TRAIN_ONLY_KINDS or subject.split == Split.TRAIN.value]
    if subject.purpose == Purpose.SCOUT.value:
        is_wanted = expert.id in subject.drawn_for and _is_of_its_share(subject, expert)
        return [kind for kind in kinds if kind in TRAIN_ONLY_KINDS] if is_wanted else []
    if expert.id in subject.drawn_for and not descriptor.verifier:
        return _choose_measured(subject, expert, descriptor, kinds)
    if subject.shown:
        is_asked = descriptor.verifier and trust.may_judge(expert, subject.quotes)
    elif subject.purpose != Purpose.TRAIN.value:
        is_asked = descriptor.verifier and subject.purpose in (Purpose.EVALUATION.value, Purpose.PROBE.value)
    elif not _is_of_its_share(subject, expert):
        is_asked = False
    else:
        is_asked = expert.rollouts_per_group is None or subject.index_in_group < expert.rollouts_per_group
    return kinds if is_asked else []


def _is_of_its_share(subject: Subject, expert: ExpertRow) -> bool:
    """Whether the group is one of those that the expert is asked about."""
    return expert.group_fraction >= 1 or _share(subject.group_id, expert.id) < expert.group_fraction


def _choose_measured(
    subject: Subject, expert: ExpertRow, descriptor: Descriptor, kinds: Sequence[AnswerKind]
) -> list[AnswerKind]:
    """What an expert is asked about the student's answers to a task of its measurement: people and experts that answer
    later are not."""
    if trust.is_people(expert) or descriptor.answers_later or not supplies_material(subject.index_in_group):
        return []
    if expert.rollouts_per_group is not None and subject.index_in_group >= expert.rollouts_per_group:
        return []
    return [kind for kind in kinds if kind in MEASURED_KINDS]


def _find_drawn_for(session: Session, subjects: Iterable[Subject]) -> dict[UUID, frozenset[UUID]]:
    """By group, the experts whose sources are measured on it, as the student's answers, or that it scouts for."""
    group_ids = {subject.group_id for subject in subjects if subject.purpose in DRAWN_FOR_EXPERTS}
    if not group_ids:
        return {}
    measured = (
        select(MeasuredTaskRow.student_group_id, MeasurementRow.expert_id)
        .join(MeasurementRow, MeasurementRow.id == MeasuredTaskRow.measurement_id)
        .where(MeasuredTaskRow.student_group_id.in_(group_ids))
    )
    scouted = select(ScoutRow.group_id, ScoutRow.expert_id).where(ScoutRow.group_id.in_(group_ids))
    found: dict[UUID, frozenset[UUID]] = {}
    for group_id, expert_id in session.execute(measured.union_all(scouted)):
        found[group_id] = found.get(group_id, frozenset()) | {expert_id}
    return found


@dataclass(frozen=True)
class FirstConsultation:
    """A consultation to be opened about a new rollout: its row, and whether its expert may train."""

    id: UUID
    row: dict[str, object]
    may_train: bool


def plan_first(
    session: Session, lineage_id: UUID, subjects: Mapping[UUID, Subject], now: datetime
) -> dict[UUID, list[FirstConsultation]]:
    """The first consultations about new rollouts, by rollout: one of every matching expert that needs no answers."""
    askable = [
        (expert, descriptor)
        for expert in askable_experts(session, lineage_id)
        if not (descriptor := Descriptor.model_validate(expert.descriptor)).needs_answers
    ]
    drawn_for = _find_drawn_for(session, subjects.values())
    return {
        rollout_id: [
            _plan(rollout_id, subject, expert, kinds, now)
            for expert, descriptor in askable
            if (kinds := choose_kinds(_with_drawn_for(subject, drawn_for), expert, descriptor))
        ]
        for rollout_id, subject in subjects.items()
    }


def _with_drawn_for(subject: Subject, drawn_for: Mapping[UUID, frozenset[UUID]]) -> Subject:
    return replace(subject, drawn_for=drawn_for[subject.group_id]) if subject.group_id in drawn_for else subject


def _plan(
    rollout_id: UUID, subject: Subject, expert: ExpertRow, kinds: list[AnswerKind], now: datetime
) -> FirstConsultation:
    consultation_id = new_id()
    row: dict[str, object] = {
        "id": consultation_id,
        "lineage_id": expert.lineage_id,
        "rollout_id": rollout_id,
        "expert_id": expert.id,
        "expert_version": expert.version,
        "stage": 1,
        "ask": _build_ask(rollout_id, subject, expert, kinds).model_dump(mode="json"),
        "status": ConsultationStatus.PENDING.value,
        "deadline": now + DEADLINE,
        "sent_at": now,
    }
    return FirstConsultation(consultation_id, row, trust.may_train(expert))


def _build_ask(
    rollout_id: UUID,
    subject: Subject,
    expert: ExpertRow,
    kinds: list[AnswerKind],
    context: Sequence[ContextAnswer] = (),
) -> Ask:
    """Which kinds, of which size; where samples are among them, at places drawn for this expert and rollout."""
    ask = Ask(kinds=kinds, top_k=expert.top_k, temperature=expert.temperature, context=[*context])
    if AnswerKind.SAMPLES not in kinds:
        return ask
    start = _share(rollout_id, expert.id)
    places = prefixes.choose(subject.action_mask, subject.sampler_logprobs, expert.num_places, start)
    return ask.model_copy(
        update={
            "prefixes": places.prefixes,
            "probabilities": places.probabilities,
            "num_samples": expert.num_samples,
        }
    )


def open_second_stage(session: Session, rollout: RolloutRow, task: TaskRow) -> None:
    """Open the consultations of experts that answer given answers.

    Each is shown the answers that count and that it may see, of these a verdict and what teaches; one that may be shown
    none is not asked.
    """
    answered = [row for row in answers.counting(session, rollout.id) if row.distribution_kind is None]
    subject = Subject(
        purpose=rollout.purpose,
        split=rollout.split,
        group_id=rollout.group_id,
        index_in_group=rollout.index_in_group,
        domain=task.domain,
        metadata_keys=frozenset(task.metadata_),
        shown=rollout.shown,
        quotes=frozenset(contexts.quoted_in(session, rollout)),
        action_mask=rollout.action_mask,
        sampler_logprobs=rollout.sampler_logprobs,
    )
    subject = _with_drawn_for(subject, _find_drawn_for(session, [subject]))
    in_second_stage = [
        (expert, descriptor)
        for expert in askable_experts(session, rollout.lineage_id)
        if (descriptor := Descriptor.model_validate(expert.descriptor)).needs_answers
    ]
    if not in_second_stage:
        return
    found = standing.read(session, rollout.lineage_id)
    said = {answer.id: _show(session, answer, found, task.domain) for answer in answered}
    for expert, descriptor in in_second_stage:
        kinds = choose_kinds(subject, expert, descriptor)
        seen = [(answer.id, said[answer.id]) for answer in answered if trust.may_see(expert, answer)]
        shown = [(answer_id, content) for answer_id, content in seen if content is not None]
        if kinds and shown:
            ask = _build_ask(rollout.id, subject, expert, kinds, [content for _, content in shown])
            open_one(session, rollout, expert, 2, ask, shown=[answer_id for answer_id, _ in shown])


def _show(session: Session, answer: AnswerRow, found: Standing, domain: str) -> ContextAnswer | None:
    """What another expert may be shown of an answer: its verdict, and those parts that teach; None if that is none."""
    expert = session.get_one(ExpertRow, answer.expert_id)
    feedback, solution = answers.content(session, answer).feedback, answer.solution
    if not found.teaches(expert.id, ContextSource.FEEDBACK, domain):
        feedback = None
    if not found.teaches(expert.id, _source_of(expert), domain):
        solution = None
    if answer.score is None and feedback is None and solution is None:
        return None
    return ContextAnswer(expert=expert.name, score=answer.score, feedback=feedback, solution=solution)


def _source_of(expert: ExpertRow) -> ContextSource:
    """Which source this expert's solutions are."""
    if trust.is_people(expert):
        return ContextSource.CORRECTION
    return (
        ContextSource.REFERENCE if ContextSource.REFERENCE.value in trust.read_keys(expert) else ContextSource.SOLUTION
    )


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
