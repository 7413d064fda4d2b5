"""Standing: what a teacher may be shown now, by the newest decided measurement of every source.

A measurement that is still under way, or was abandoned, changes nothing: the one before it holds.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.contracts.measurements import MeasurementStatus
from services.contracts.sources import ContextSource
from services.contracts.templates import Template
from services.store.loop import trust
from services.store.tables.loop import ExpertRow
from services.store.tables.teaching import MeasurementRow
from services.store.teaching.newest import IS_DECIDED, select_newest

PRESUMED: Final = frozenset(
    {ContextSource.OWN_SUCCESS, ContextSource.CORRECTION, ContextSource.PRECEDENTS, ContextSource.REFERENCE}
)
"""Sources that teach until they are measured not to. The others teach only once they are measured to."""

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
    choice, so that they have to be measured first.
    """

    verdicts: Mapping[Place, Mapping[Template, Verdict]] = field(default_factory=dict)
    choosers: frozenset[UUID] = frozenset()

    def template_for(self, expert_id: UUID, source: ContextSource, domain: str, default: Template) -> Template | None:
        """How this source of this expert is shown in this domain; None where it is not shown.

        Of the templates measured to teach, the one with the highest lower bound of the gap.
        """
        measured = self.verdicts.get((expert_id, source, domain), {})
        teaching = {template: verdict.gap_low for template, verdict in measured.items() if verdict.teaches}
        if teaching:
            return max(teaching, key=lambda template: (teaching[template], template is default))
        return default if default not in measured and self.is_presumed(expert_id, source) else None

    def teaches(self, expert_id: UUID, source: ContextSource, domain: str) -> bool:
        """Whether this source of this expert may be shown in this domain, by any template."""
        return any(self.template_for(expert_id, source, domain, template) is not None for template in Template)

    def spell(self) -> str:
        """Everything in it as one text, the same for equal standings."""
        verdicts = {
            f"{expert_id} {source} {domain}": {
                template.value: [v.teaches, repr(v.gap_low)] for template, v in own.items()
            }
            for (expert_id, source, domain), own in self.verdicts.items()
        }
        return json.dumps([verdicts, sorted(map(str, self.choosers))], sort_keys=True)

    def is_presumed(self, expert_id: UUID, source: ContextSource) -> bool:
        """Whether it teaches while it has not been measured."""
        return source in PRESUMED and not (source is ContextSource.PRECEDENTS and expert_id in self.choosers)


def read(session: Session, lineage_id: UUID) -> Standing:
    """The standing of every source of the lineage."""
    verdicts: dict[Place, dict[Template, Verdict]] = {}
    for row in session.scalars(select_newest(MeasurementRow.lineage_id == lineage_id, IS_DECIDED)):
        place = verdicts.setdefault((row.expert_id, ContextSource(row.source), row.domain), {})
        teaches = row.status == MeasurementStatus.TEACHES.value
        place[Template(row.template)] = Verdict(teaches, float("-inf") if row.gap_low is None else row.gap_low)
    return Standing(verdicts, _find_choosers(session, lineage_id))


def _find_choosers(session: Session, lineage_id: UUID) -> frozenset[UUID]:
    """Experts that are neither verifiers nor people and do not read a task's own precedents."""
    experts = session.scalars(select(ExpertRow).where(ExpertRow.lineage_id == lineage_id))
    return frozenset(
        expert.id
        for expert in experts
        if not expert.descriptor["verifier"]
        and not trust.is_people(expert)
        and ContextSource.PRECEDENTS.value not in trust.read_keys(expert)
    )
