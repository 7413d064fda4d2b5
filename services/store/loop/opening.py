"""Which experts are asked about which rollout, for what, and what they are shown of others' answers."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerKind
from services.contracts.consultations import ConsultationStatus
from services.contracts.experts import Ask, ContextAnswer, Descriptor, ExpertStatus
from services.contracts.ids import new_id
from services.contracts.rollouts import Purpose
from services.contracts.sources import ContextSource
from services.contracts.tasks import Split
from services.store.loop import answers, consultations, contexts, prefixes, standing, trust
from services.store.loop.consultations import DEADLINE
from services.store.loop.standing import Standing
from services.store.tables.loop import AnswerRow, ExpertRow, RolloutRow, TaskRow
from services.store.tables.teaching import MeasuredTaskRow, MeasurementRow, ScoutRow

TRAIN_ONLY_KINDS = (AnswerKind.SOLUTION, AnswerKind.PRECEDENTS)
"""Kinds that are asked for about train tasks alone; what an expert reads off a task is of them."""
DRAWN_FOR_EXPERTS: Final = (Purpose.PROBE.value, Purpose.SCOUT.value)
"""Purposes of groups that are drawn to ask some experts about them."""


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
            consultations.open_one(session, rollout, expert, 2, ask, shown=[answer_id for answer_id, _ in shown])


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
