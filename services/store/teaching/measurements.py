"""Measurements: rounds of tasks drawn by student, teacher and control at one temperature, until a look decides.

A round of a domain draws its tasks from the student once, for every measurement of the domain that needs tasks; the
experts to be measured are asked about half of these answers. When all that is settled, each measurement that has
something to show about a task draws the task twice more: after it, and after its control. When all of those are judged,
measurements with enough tasks look at them (`sequential_test`). One version of the policy draws all three arms of a
task. A verdict that a source teaches lapses when no new measurement has decided for too long.

The sweep takes one step at a time. What is drawn is bounded by a share of all rollouts, and by tokens for each
measurement; measurements that a person asked for are for a time bounded by their tokens alone.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import func
from sqlalchemy.orm import Session

from services.contracts.base import check_change
from services.contracts.experts import ExpertStatus
from services.contracts.measurements import MEASUREMENT_CHANGES, Measurement, MeasurementCreate, MeasurementStatus
from services.contracts.sources import ContextSource
from services.runtime.errors import InvalidInput, NotFound
from services.store.tables.loop import ExpertRow
from services.store.tables.teaching import MeasurementRow
from services.store.teaching import candidates, consequences, looks, rounds
from services.store.teaching.candidates import Ages
from services.store.teaching.rounds import Rules

MOST_UNDER_WAY: Final = 2
"""Measurements of one domain at once that the sweep begins: they share the student's answers."""


class NothingToMeasure(InvalidInput):
    """No source could be measured."""

    hint = "A domain needs train tasks, an active verifier, and an expert that gives more than scores."


class MeasurementNotFound(NotFound):
    """No measurement with this id."""


def advance(session: Session, lineage_id: UUID, rules: Rules, *, is_sampling: bool, may_draw: bool) -> None:
    """One step of every domain. is_sampling: the loop draws; may_draw: no disk is nearly full."""
    experts = candidates.find_experts(session, lineage_id)
    for domain in candidates.find_domains(session, lineage_id):
        measuring = [row for row in candidates.under_way(session, lineage_id, domain) if not _is_gone(session, row)]
        waiting = candidates.find_waiting(session, measuring)
        changed = [row for row in measuring if looks.look(session, row, rules.max_tokens)]
        measuring = [row for row in measuring if row not in changed]
        changed += _let_lapse(session, lineage_id, domain, rules.ages)
        if may_draw:
            rounds.plan_arms(session, lineage_id, measuring, rules)
            changed += rounds.begin(session, lineage_id, domain, measuring, rules, is_sampling)
            if is_sampling:
                _begin_due(session, lineage_id, domain, experts, rules)
        new = candidates.find_waiting(session, measuring) - waiting
        changed += [row for row in measuring if row.id in new]
        if changed:
            consequences.apply(session, {row.expert_id for row in changed}, promote=rules.promote)


def ask(session: Session, lineage_id: UUID, rules: Rules, wanted: MeasurementCreate) -> list[MeasurementRow]:
    """Measure these sources now, whether or not they are due; those already under way go on as if asked for.

    Errors: NothingToMeasure (422).
    """
    found: list[MeasurementRow] = []
    experts = candidates.find_experts(session, lineage_id)
    for domain in candidates.find_domains(session, lineage_id):
        if wanted.domain not in (None, domain):
            continue
        keys = [
            key
            for key in candidates.find_keys(session, experts, domain)
            if wanted.expert_id in (None, key.expert_id)
            and wanted.source in (None, key.source)
            and wanted.template in (None, key.template)
        ]
        begun = {candidates.key_of(row): row for row in candidates.under_way(session, lineage_id, domain)}
        asked = [begun[key] for key in keys if key in begun]
        new = [key for key in keys if key not in begun]
        asked += candidates.begin(session, lineage_id, domain, new, rules.sampling.temperature)
        for row in asked:
            row.asked_until, row.reason = func.now() + timedelta(minutes=wanted.minutes), None
        found += asked
    if not found:
        raise NothingToMeasure("nothing of the kind can be measured")
    session.flush()
    return found


def stop(session: Session, measurement_id: UUID) -> MeasurementRow:
    """End it without a verdict, so that what was decided before holds; the loop begins it again once it is due.

    Errors: MeasurementNotFound, IllegalStatusChange when it has ended.
    """
    row = session.get(MeasurementRow, measurement_id, with_for_update=True, populate_existing=True)
    if row is None:
        raise MeasurementNotFound(f"no measurement {measurement_id}")
    check_change(MEASUREMENT_CHANGES, MeasurementStatus(row.status), MeasurementStatus.ABANDONED)
    looks.end(row, MeasurementStatus.ABANDONED, "stopped by hand")
    session.flush()
    session.refresh(row)
    return row


def view(row: MeasurementRow) -> Measurement:
    """The contract of a row."""
    return Measurement.model_validate(row)


def _is_gone(session: Session, row: MeasurementRow) -> bool:
    """Whether its expert has retired, which abandons it."""
    expert = session.get_one(ExpertRow, row.expert_id)
    if expert.status != ExpertStatus.RETIRED.value:
        return False
    looks.end(row, MeasurementStatus.ABANDONED, "the expert has retired")
    return True


def _let_lapse(session: Session, lineage_id: UUID, domain: str, ages: Ages) -> list[MeasurementRow]:
    """Let verdicts lapse that are too old; these."""
    found = candidates.find_lapsed(session, lineage_id, domain, ages)
    far = ages * candidates.LAPSE
    for row in found:
        row.status = MeasurementStatus.LAPSED.value
        row.reason = f"not decided again within {far.versions:,} versions of the policy and {far.answers:,} answers"
    session.flush()
    return found


def _begin_due(
    session: Session, lineage_id: UUID, domain: str, experts: Sequence[candidates.Candidate], rules: Rules
) -> None:
    """Begin measurements that are due: all that draw nothing, and as many others as there is room for."""
    measuring = candidates.under_way(session, lineage_id, domain)
    waiting = candidates.find_waiting(session, measuring)
    room = MOST_UNDER_WAY - sum(rounds.draws(row) and row.id not in waiting for row in measuring)
    keys = candidates.find_keys(session, experts, domain)
    due = candidates.keep_due(session, lineage_id, domain, keys, rules.ages)
    drawing = [key for key in due if key.source is not ContextSource.DISTRIBUTION]
    chosen = [key for key in due if key not in drawing] + drawing[: max(0, room)]
    candidates.begin(session, lineage_id, domain, chosen, rules.sampling.temperature)
