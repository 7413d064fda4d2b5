"""What could be measured in a domain, and what is due: never measured, or measured under an older policy or expert."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerKind
from services.contracts.corrections import CorrectionStatus
from services.contracts.experts import Descriptor
from services.contracts.sources import ONLY_TEMPLATE, SOURCE_ORDER, ContextSource
from services.contracts.tasks import Split
from services.contracts.templates import Template
from services.store.core import row_counts
from services.store.ledger import policies
from services.store.loop import consultations, coverage, trust
from services.store.loop.newest_measurements import IS_UNDER_WAY, select_newest
from services.store.tables.corrections import CorrectionRow
from services.store.tables.ledger import PolicyVersionRow
from services.store.tables.loop import AnswerRow, ExpertRow, RolloutRow, TaskRow
from services.store.tables.teaching import MeasurementRow

ORDER: Final = (*SOURCE_ORDER, ContextSource.DISTRIBUTION)


@dataclass(frozen=True)
class Key:
    """What one measurement is about, within a domain."""

    expert_id: UUID
    source: ContextSource
    template: Template


def key_of(row: MeasurementRow) -> Key:
    """What a measurement is about."""
    return Key(row.expert_id, ContextSource(row.source), Template(row.template))


def find_domains(session: Session, lineage_id: UUID) -> list[str]:
    """The domains with train tasks that an active verifier judges."""
    tallies = row_counts.by_kind(row_counts.read(session, lineage_id, ("task",))["task"])
    domains = [domain for domain, splits in tallies.items() if splits.get(Split.TRAIN.value)]
    judged = coverage.find_judged(session, lineage_id, domains)
    return [domain for domain in domains if domain in judged]


@dataclass(frozen=True)
class Candidate:
    """An expert that is consulted, and how it describes itself."""

    expert: ExpertRow
    descriptor: Descriptor


def find_experts(session: Session, lineage_id: UUID) -> list[Candidate]:
    """The experts whose sources could be measured."""
    experts = consultations.askable_experts(session, lineage_id)
    return [Candidate(expert, Descriptor.model_validate(expert.descriptor)) for expert in experts]


def find_keys(session: Session, experts: Sequence[Candidate], domain: str) -> list[Key]:
    """Everything of these experts that could be measured in the domain: the first template of every source, then the
    second ones."""
    sources = [(one.expert.id, source) for one in experts for source in _sources_of(session, one, domain)]
    sources.sort(key=lambda one: ORDER.index(one[1]))
    shown = [(expert_id, source, _templates_of(source)) for expert_id, source in sources]
    return [
        Key(expert_id, source, templates[place])
        for place in range(len(Template))
        for expert_id, source, templates in shown
        if place < len(templates)
    ]


def _templates_of(source: ContextSource) -> Sequence[Template]:
    return [ONLY_TEMPLATE[source]] if source in ONLY_TEMPLATE else list(Template)


def _sources_of(session: Session, candidate: Candidate, domain: str) -> Iterator[ContextSource]:
    """The sources that this expert is credited with, or would be once it is promoted. No precedents are made of what an
    expert on probation certified or was given, so there are none to measure; feedback that may quote a reference is
    shown to no teacher."""
    expert, descriptor = candidate.expert, candidate.descriptor
    if not descriptor.matches(domain):
        return
    read, may_train = trust.read_keys(expert), trust.may_train(expert)
    if descriptor.verifier and (may_train or trust.is_on_probation(expert)):
        yield ContextSource.OWN_SUCCESS
    if trust.is_people(expert):
        if _has_corrections(session, expert.lineage_id, domain):
            yield ContextSource.CORRECTION
            yield ContextSource.PRECEDENTS
        return
    if descriptor.answers_later or not set(descriptor.metadata_keys) <= read:
        return
    if AnswerKind.SOLUTION in descriptor.kinds:
        yield ContextSource.REFERENCE if ContextSource.REFERENCE.value in read else ContextSource.SOLUTION
    certifies = descriptor.verifier or ContextSource.REFERENCE.value in read
    if AnswerKind.PRECEDENTS in descriptor.kinds or (may_train and certifies):
        yield ContextSource.PRECEDENTS
    if AnswerKind.FEEDBACK in descriptor.kinds and ContextSource.REFERENCE.value not in read:
        yield ContextSource.FEEDBACK
    if {AnswerKind.TOPK, AnswerKind.SAMPLES} & set(descriptor.kinds):
        yield ContextSource.DISTRIBUTION


def _has_corrections(session: Session, lineage_id: UUID, domain: str) -> bool:
    found = (
        select(CorrectionRow.id)
        .join(RolloutRow, RolloutRow.id == CorrectionRow.rollout_id)
        .join(TaskRow, TaskRow.id == RolloutRow.task_id)
        .where(
            CorrectionRow.lineage_id == lineage_id,
            CorrectionRow.status == CorrectionStatus.SUBMITTED.value,
            TaskRow.domain == domain,
        )
    )
    return session.scalar(found.limit(1)) is not None


@dataclass(frozen=True)
class Ages:
    """After how many versions that began to serve since, or answers of the expert, a source is measured again."""

    versions: int
    answers: int


def keep_due(session: Session, lineage_id: UUID, domain: str, keys: Sequence[Key], ages: Ages) -> list[Key]:
    """Those of these keys that are due and not under way: the never measured first, then those to be measured again."""
    newest = _find_newest(session, lineage_id, domain)
    num_served = policies.num_served(session, lineage_id)
    answered = _find_answered(session, {key.expert_id for key in keys}, ages.answers)
    again = [
        key
        for key in keys
        if key in newest
        and newest[key].decided_at is not None
        and (num_served - newest[key].place >= ages.versions or _is_before(newest[key].decided_at, answered, key))
    ]
    return [key for key in keys if key not in newest] + again


@dataclass(frozen=True)
class _Newest:
    """The newest measurement of a key. place: of its policy version among those that served."""

    decided_at: datetime | None
    place: int


def _find_newest(session: Session, lineage_id: UUID, domain: str) -> dict[Key, _Newest]:
    rows = session.execute(
        select_newest(MeasurementRow.lineage_id == lineage_id, MeasurementRow.domain == domain)
        .join(
            PolicyVersionRow,
            (PolicyVersionRow.lineage_id == MeasurementRow.lineage_id)
            & (PolicyVersionRow.name == MeasurementRow.policy_version),
        )
        .add_columns(policies.place(PolicyVersionRow))
    )
    return {key_of(row): _Newest(row.decided_at, place) for row, place in rows}


def _find_answered(session: Session, expert_ids: Collection[UUID], num: int) -> dict[UUID, datetime]:
    """By expert, when it gave the answer that is so many back from its newest; without those that gave fewer."""
    back = (
        select(AnswerRow.created_at)
        .where(AnswerRow.expert_id == ExpertRow.id)
        .order_by(AnswerRow.id.desc())
        .offset(num - 1)
        .limit(1)
        .scalar_subquery()
    )
    rows = session.execute(select(ExpertRow.id, back).where(ExpertRow.id.in_(expert_ids)))
    return {expert_id: at for expert_id, at in rows if at is not None}


def _is_before(decided_at: datetime | None, answered: Mapping[UUID, datetime], key: Key) -> bool:
    return decided_at is not None and key.expert_id in answered and answered[key.expert_id] > decided_at


def place_of(session: Session, row: MeasurementRow) -> int:
    """Where the version that its newest tasks are drawn from stands among those that served."""
    found = session.scalar(
        select(policies.place(PolicyVersionRow)).where(
            PolicyVersionRow.lineage_id == row.lineage_id, PolicyVersionRow.name == row.policy_version
        )
    )
    return found or 0


def under_way(session: Session, lineage_id: UUID, domain: str) -> Sequence[MeasurementRow]:
    """The measurements of the domain that have not ended, oldest first, locked."""
    return session.scalars(
        select(MeasurementRow)
        .where(
            MeasurementRow.lineage_id == lineage_id,
            MeasurementRow.domain == domain,
            IS_UNDER_WAY,
        )
        .order_by(MeasurementRow.id)
        .with_for_update()
    ).all()


def begin(
    session: Session, lineage_id: UUID, domain: str, keys: Iterable[Key], temperature: float
) -> list[MeasurementRow]:
    """Begin these measurements under the version that serves; none while no version does."""
    version = policies.serving(session, lineage_id)
    if version is None:
        return []
    rows = [
        MeasurementRow(
            lineage_id=lineage_id,
            expert_id=key.expert_id,
            source=key.source.value,
            template=key.template.value,
            domain=domain,
            policy_version=version.name,
            temperature=temperature,
        )
        for key in keys
    ]
    session.add_all(rows)
    session.flush()
    return rows
