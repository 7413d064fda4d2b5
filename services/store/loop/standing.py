"""Standing: what a teacher may be shown now, by the newest decided measurement of every source.

A measurement that is still under way, or was abandoned, changes nothing: the one before it holds. One that has lapsed
is as good as none.

Precedents made of right answers to other tasks help where the policy never succeeds and mislead where it does (see
`docs/what-teaches.md`). Unmeasured, they are the last resort of domains where the policy hardly ever passes: there a
teacher cannot be much worse than the policy.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.contracts.measurements import MeasurementStatus
from services.contracts.sources import ContextSource, templates_of
from services.contracts.templates import Template
from services.store.loop import pass_rates, trust
from services.store.loop.newest_measurements import find_verdicts
from services.store.tables.loop import ExpertRow
from services.store.tables.teaching import MeasurementRow

PRESUMED: Final = frozenset(
    {ContextSource.OWN_SUCCESS, ContextSource.CORRECTION, ContextSource.PRECEDENTS, ContextSource.REFERENCE}
)
"""Sources that teach until they are measured not to. The others teach only once they are measured to."""

HARDLY_EVER: Final = 0.05
"""Pass rate up to which a policy hardly ever passes."""
MIN_JUDGED: Final = 16
"""Rollouts that such a rate has to rest on."""

Place = tuple[UUID, ContextSource, str]
"""Expert, source and domain."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of the newest decided measurement of one template. gap_low: the gap's lower bound."""

    teaches: bool
    gap_low: float


@dataclass(frozen=True)
class Standing:
    """What may be shown now in one lineage.

    verdicts: by place, those of the templates that were measured. choosers: experts whose precedents are their own
    choice, so that they have to be measured first. poolers: those credited with precedents that are made of right
    answers to other tasks. unsolved: domains in which the policy hardly ever passes.
    """

    verdicts: Mapping[Place, Mapping[Template, Verdict]] = field(default_factory=dict)
    choosers: frozenset[UUID] = frozenset()
    poolers: frozenset[UUID] = frozenset()
    unsolved: frozenset[str] = frozenset()

    def template_for(self, expert_id: UUID, source: ContextSource, domain: str, default: Template) -> Template | None:
        """How this source of this expert is shown in this domain; None where it is not shown.

        Of the templates measured to teach, the one with the highest lower bound of the gap.
        """
        teaching = self._find_teaching(expert_id, source, domain)
        if teaching:
            return max(teaching, key=lambda template: (teaching[template], template is default))
        is_measured = default in self.verdicts.get((expert_id, source, domain), {})
        return default if not is_measured and self.is_presumed(expert_id, source, domain) else None

    def is_last_resort(self, expert_id: UUID, source: ContextSource, domain: str) -> bool:
        """Whether it is shown only where there is nothing else to show: unmeasured precedents of other tasks."""
        is_pooled = source is ContextSource.PRECEDENTS and expert_id in self.poolers
        return is_pooled and not self._find_teaching(expert_id, source, domain)

    def teaches(self, expert_id: UUID, source: ContextSource, domain: str) -> bool:
        """Whether this source of this expert may be shown in this domain, by any template."""
        shown_by = (self.template_for(expert_id, source, domain, template) for template in templates_of(source))
        return any(template is not None for template in shown_by)

    def spell(self) -> str:
        """Everything in it as one text, the same for equal standings."""
        verdicts = {
            f"{expert_id} {source} {domain}": {
                template.value: [v.teaches, repr(v.gap_low)] for template, v in own.items()
            }
            for (expert_id, source, domain), own in self.verdicts.items()
        }
        experts = [sorted(map(str, own)) for own in (self.choosers, self.poolers)]
        return json.dumps([verdicts, *experts, sorted(self.unsolved)], sort_keys=True)

    def is_presumed(self, expert_id: UUID, source: ContextSource, domain: str) -> bool:
        """Whether it teaches while it has not been measured."""
        if source is ContextSource.PRECEDENTS:
            return expert_id not in self.choosers and (expert_id not in self.poolers or domain in self.unsolved)
        return source in PRESUMED

    def _find_teaching(self, expert_id: UUID, source: ContextSource, domain: str) -> dict[Template, float]:
        """The templates measured to teach, with the lower bounds of their gaps."""
        measured = self.verdicts.get((expert_id, source, domain), {})
        return {template: verdict.gap_low for template, verdict in measured.items() if verdict.teaches}


def read(session: Session, lineage_id: UUID) -> Standing:
    """The standing of every source of the lineage."""
    verdicts: dict[Place, dict[Template, Verdict]] = {}
    for row in find_verdicts(session, MeasurementRow.lineage_id == lineage_id):
        place = verdicts.setdefault((row.expert_id, ContextSource(row.source), row.domain), {})
        teaches = row.status == MeasurementStatus.TEACHES.value
        place[Template(row.template)] = Verdict(teaches, float("-inf") if row.gap_low is None else row.gap_low)
    choosers, poolers = _find_precedent_makers(session, lineage_id)
    return Standing(verdicts, choosers, poolers, _find_unsolved(session, lineage_id))


def _find_precedent_makers(session: Session, lineage_id: UUID) -> tuple[frozenset[UUID], frozenset[UUID]]:
    """The experts whose precedents are their own choice, and those credited with right answers to other tasks; an
    expert that reads a task's own precedents is neither."""
    choosers, poolers = set[UUID](), set[UUID]()
    for expert in session.scalars(select(ExpertRow).where(ExpertRow.lineage_id == lineage_id)):
        read = trust.read_keys(expert)
        if ContextSource.PRECEDENTS.value in read:
            continue
        certifies = expert.descriptor["verifier"] or trust.is_people(expert) or ContextSource.REFERENCE.value in read
        (poolers if certifies else choosers).add(expert.id)
    return frozenset(choosers), frozenset(poolers)


def _find_unsolved(session: Session, lineage_id: UUID) -> frozenset[str]:
    rates = pass_rates.of_domains(session, lineage_id)
    return frozenset(rate.domain for rate in rates if rate.num_judged >= MIN_JUDGED and rate.pass_rate <= HARDLY_EVER)
