"""How policy versions did: on the train tasks they were sampled on, in evaluations, and before against after."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from services.contracts.answers import PASS_SCORE
from services.contracts.evaluations import EvaluationDetail, EvaluationStatus
from services.contracts.tasks import Split
from services.contracts.updates import Update, UpdateStatus
from services.store.core import row_counts
from services.store.ledger import fallbacks, updates
from services.store.loop import evaluations
from services.store.stats.estimates import Change, Interval, by_temperature, choose_best, headline, wilson_interval
from services.store.tables.ledger import PolicyVersionRow, UpdateRow
from services.store.tables.loop import EvaluationRow, RolloutRow

MAX_UPDATES: Final = 50  # of a version, in its list
MAX_EVALUATIONS: Final = 100  # looked through for one to compare with, the newest
MAX_ANSWERS: Final = 2_000  # to a task, counted; the newest


@dataclass(frozen=True)
class Practice:
    """The verdicts on a version's train rollouts. interval: Wilson's, of the share of rollouts that passed."""

    num_judged: int
    num_passed: int
    interval: Interval | None


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of one split with the same settings, the one of an earlier version first.

    headline: each at its own best temperature. changes: both at equal temperatures.
    """

    split: str
    before_id: UUID
    after_id: UUID
    before_version: str
    after_version: str
    headline: tuple[Change, ...]
    changes: tuple[Change, ...]


def practice(session: Session, lineage_id: UUID, versions: Collection[str]) -> dict[str, Practice]:
    """By the names of these versions, exactly; rollouts of no version of ours are under the empty name."""
    told = row_counts.read(session, lineage_id, ("verdict",), versions)["verdict"]
    found = {}
    for version, words in row_counts.by_kind(told).items():
        passed, failed = words.get("passed", 0), words.get("failed", 0)
        found[version] = Practice(passed + failed, passed, wilson_interval(passed, passed + failed))
    return found


@dataclass(frozen=True)
class TaskAnswers:
    """One version's answers to a task, for one purpose."""

    policy_version: str
    purpose: str
    num_answers: int
    num_judged: int
    num_passed: int


def answers_to_task(session: Session, task_id: UUID) -> list[TaskAnswers]:
    """How each version itself answered a task, the latest answers first; counts the newest `MAX_ANSWERS` answers."""
    newest = (
        select(RolloutRow.policy_version, RolloutRow.purpose, RolloutRow.score, RolloutRow.created_at)
        .where(RolloutRow.task_id == task_id, RolloutRow.policy_version.is_not(None), ~RolloutRow.shown)
        .order_by(RolloutRow.id.desc())
        .limit(MAX_ANSWERS)
        .subquery()
    )
    rows = session.execute(
        select(
            newest.c.policy_version,
            newest.c.purpose,
            func.count(),
            func.count(newest.c.score),
            func.count().filter(newest.c.score > PASS_SCORE),
        )
        .group_by(newest.c.policy_version, newest.c.purpose)
        .order_by(func.max(newest.c.created_at).desc(), newest.c.purpose)
    )
    return [TaskAnswers(*row) for row in rows]


def evaluations_of(session: Session, lineage_id: UUID, version: str, limit: int = 20) -> Sequence[EvaluationRow]:
    """A version's evaluations, newest first."""
    return session.scalars(
        select(EvaluationRow)
        .where(EvaluationRow.lineage_id == lineage_id, EvaluationRow.policy_version == version)
        .order_by(EvaluationRow.id.desc())
        .limit(limit)
    ).all()


def detail(session: Session, row: EvaluationRow) -> EvaluationDetail:
    """An evaluation with its results by task and temperature, and the best temperatures once it is done."""
    view, split = evaluations.view(session, row), Split(row.split)
    results = evaluations.results(session, row.id, split)
    beside = None if split is Split.VALIDATION else evaluations.results(session, row.id, Split.VALIDATION)
    return EvaluationDetail(
        **view.model_dump(),
        results=results,
        validation_results=beside or [],
        best=choose_best(results, beside) if view.status is EvaluationStatus.DONE else [],
    )


def compare(session: Session, version: PolicyVersionRow, other: str | None = None) -> list[Comparison]:
    """The version's finished evaluations against those of the version named `other` with the same settings.

    Without a name: of the latest earlier version that was measured, the base among them.
    """
    is_other = PolicyVersionRow.number < version.number if other is None else PolicyVersionRow.name == other
    found: dict[str, Comparison] = {}
    for after in evaluations_of(session, version.lineage_id, version.name):
        if after.status != EvaluationStatus.DONE.value or after.split in found:
            continue
        before = _find_before(session, after, is_other)
        if before is not None:
            found[after.split] = compare_two(session, before, after)
    return [found[split] for split in sorted(found)]


def find_base_of(session: Session, after: EvaluationRow) -> EvaluationRow | None:
    """The base's evaluation with the settings of a finished evaluation of a later version."""
    if after.status != EvaluationStatus.DONE.value:
        return None
    before = _find_before(session, after, PolicyVersionRow.number == 0)
    return None if before is None or before.policy_version == after.policy_version else before


def newest_beside_base(session: Session, lineage_id: UUID) -> tuple[EvaluationRow, EvaluationRow] | None:
    """The newest finished held-out evaluation of a later version, after the base's with the same settings."""
    newest = session.scalars(
        select(EvaluationRow)
        .where(
            EvaluationRow.lineage_id == lineage_id,
            EvaluationRow.split == Split.HELDOUT.value,
            EvaluationRow.status == EvaluationStatus.DONE.value,
        )
        .order_by(EvaluationRow.id.desc())
        .limit(MAX_EVALUATIONS)
    ).all()
    pairs = ((find_base_of(session, after), after) for after in newest)
    return next(((before, after) for before, after in pairs if before is not None), None)


def _find_before(session: Session, after: EvaluationRow, is_other: ColumnElement[bool]) -> EvaluationRow | None:
    """The newest finished evaluation of such a version with the settings of `after`."""
    own = {key: value for key, value in after.settings.items() if key != "policy_version"}
    rows = session.scalars(
        select(EvaluationRow)
        .join(
            PolicyVersionRow,
            (PolicyVersionRow.name == EvaluationRow.policy_version)
            & (PolicyVersionRow.lineage_id == EvaluationRow.lineage_id),
        )
        .where(
            EvaluationRow.lineage_id == after.lineage_id,
            EvaluationRow.split == after.split,
            EvaluationRow.status == EvaluationStatus.DONE.value,
            is_other,
        )
        .order_by(PolicyVersionRow.number.desc(), EvaluationRow.id.desc())
        .limit(MAX_EVALUATIONS)
    )
    for row in rows:
        if {key: value for key, value in row.settings.items() if key != "policy_version"} == own:
            return row
    return None


def compare_two(session: Session, before: EvaluationRow, after: EvaluationRow) -> Comparison:
    """Two evaluations side by side."""
    old, new = detail(session, before), detail(session, after)
    return Comparison(
        split=after.split,
        before_id=before.id,
        after_id=after.id,
        before_version=before.policy_version,
        after_version=after.policy_version,
        headline=tuple(headline(old, new)),
        changes=tuple(by_temperature(old.results, new.results)),
    )


def updates_of(session: Session, version: PolicyVersionRow, limit: int = MAX_UPDATES) -> list[Update]:
    """The updates that made this version of its parent, newest first."""
    first = 0
    if version.parent_id is not None:
        first = session.get_one(PolicyVersionRow, version.parent_id).update_number
    rows = session.scalars(
        select(UpdateRow)
        .where(
            UpdateRow.lineage_id == version.lineage_id,
            UpdateRow.status == UpdateStatus.APPLIED.value,
            UpdateRow.number > first,
            fallbacks.carries(version.update_number, UpdateRow.number, version.lineage_id),
        )
        .order_by(UpdateRow.number.desc())
        .limit(limit)
    )
    return [updates.view(row) for row in rows]
