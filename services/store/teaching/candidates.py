"""What could be measured in a domain, and what is due: never measured, or measured under an older policy or expert."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerKind
from services.contracts.corrections import CorrectionStatus
from services.contracts.experts import Descriptor
from services.contracts.measurements import MeasurementStatus
from services.contracts.sources import SOURCE_ORDER, ContextSource, templates_of
from services.contracts.tasks import Split
from services.contracts.templates import Template
from services.store.ledger import policies
from services.store.loop import coverage, opening, tasks, trust
from services.store.loop.newest_measurements import IS_UNDER_WAY, find_verdicts, select_newest
from services.store.tables.corrections import CorrectionRow
from services.store.tables.ledger import PolicyVersionRow
from services.store.tables.loop import AnswerRow, ExpertRow, RolloutRow, TaskRow
from services.store.tables.teaching import MeasurementRow

ORDER: Final = (*SOURCE_ORDER, ContextSource.DISTRIBUTION)
PATIENCE: Final = 4
"""Versions that begin to serve before tasks without anything to show are tried again."""
LAPSE: Final = 4
"""So many times the age at which it is due to be measured again, a source that taught is as good as not measured."""


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
    domains = tasks.find_domains(session, lineage_id, [Split.TRAIN])
    judged = coverage.find_judged(session, lineage_id, domains)
    return [domain for domain in domains if domain in judged]


@dataclass(frozen=True)
class Candidate:
    """An expert that is consulted, and how it describes itself."""

    expert: ExpertRow
    descriptor: Descriptor


def find_experts(session: Session, lineage_id: UUID) -> list[Candidate]:
    """The experts whose sources could be measured."""
    experts = opening.askable_experts(session, lineage_id)
    return [Candidate(expert, Descriptor.model_validate(expert.descriptor)) for expert in experts]


def find_keys(session: Session, experts: Sequence[Candidate], domain: str) -> list[Key]:
    """Everything of these experts that could be measured in the domain: the first template of every source, then the
    second ones."""
    sources = [(one.expert.id, source) for one in experts for source in _sources_of(session, one, domain)]
    sources.sort(key=lambda one: ORDER.index(one[1]))
    shown = [(expert_id, source, templates_of(source)) for expert_id, source in sources]
    return [
        Key(expert_id, source, templates[place])
        for place in range(len(Template))
        for expert_id, source, templates in shown
        if place < len(templates)
    ]


def find_measurable(session: Session, expert: ExpertRow) -> set[tuple[str, Key]]:
    """By domain, everything of the expert that could be measured."""
    own = [one for one in find_experts(session, expert.lineage_id) if one.expert.id == expert.id]
    return {
        (domain, key) for domain in find_domains(session, expert.lineage_id) for key in find_keys(session, own, domain)
    }


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

    def __mul__(self, times: int) -> "Ages":
        return Ages(self.versions * times, self.answers * times)


def keep_due(session: Session, lineage_id: UUID, domain: str, keys: Sequence[Key], ages: Ages) -> list[Key]:
    """Those of these keys that are due and not under way: the never measured first, then those to be measured again,
    the longest not measured first."""
    newest = {key_of(row): row for row in _find_newest(session, lineage_id, domain)}
    known = [newest[key] for key in keys if key in newest and newest[key].decided_at is not None]
    again = [key_of(row) for row in keep_old(session, known, ages)]
    return [key for key in keys if key not in newest] + again


def find_lapsed(session: Session, lineage_id: UUID, domain: str, ages: Ages) -> list[MeasurementRow]:
    """The verdicts that a source of this domain teaches which are too old to hold."""
    held = find_verdicts(session, MeasurementRow.lineage_id == lineage_id, MeasurementRow.domain == domain)
    teaching = [row for row in held if row.status == MeasurementStatus.TEACHES.value]
    return keep_old(session, keep_old(session, teaching, ages), ages * LAPSE)


def keep_old(session: Session, ended: Sequence[MeasurementRow], ages: Ages) -> list[MeasurementRow]:
    """Those of these measurements that ended so long ago, by when they began."""
    if not ended:
        return []
    lineage_id = ended[0].lineage_id
    num_served = policies.num_served(session, lineage_id)
    places = _find_places(session, lineage_id, {row.policy_version for row in ended})
    answered = _find_answered(session, {row.expert_id for row in ended}, ages.answers)
    old = [
        row
        for row in ended
        if row.decided_at is not None
        and (
            num_served - places.get(row.policy_version, 0) >= ages.versions
            or (row.expert_id in answered and answered[row.expert_id] > row.decided_at)
        )
    ]
    return sorted(old, key=lambda row: row.id)


def _find_newest(session: Session, lineage_id: UUID, domain: str) -> Sequence[MeasurementRow]:
    return session.scalars(
        select_newest(MeasurementRow.lineage_id == lineage_id, MeasurementRow.domain == domain)
    ).all()


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


def _find_places(session: Session, lineage_id: UUID, versions: Collection[str]) -> dict[str, int]:
    """By version, where it stands among those that served."""
    rows = session.execute(
        select(PolicyVersionRow.name, policies.place(PolicyVersionRow)).where(
            PolicyVersionRow.lineage_id == lineage_id, PolicyVersionRow.name.in_(versions)
        )
    )
    return dict(rows.all())


def find_waiting(session: Session, rows: Sequence[MeasurementRow]) -> set[UUID]:
    """Those of a lineage's measurements whose last tasks had nothing to show, and since when the policy has hardly
    moved."""
    stopped = [row for row in rows if row.reason is not None]
    if not stopped:
        return set()
    lineage_id = stopped[0].lineage_id
    places = _find_places(session, lineage_id, {row.policy_version for row in stopped})
    num_served = policies.num_served(session, lineage_id)
    return {row.id for row in stopped if num_served - places.get(row.policy_version, 0) < PATIENCE}


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
