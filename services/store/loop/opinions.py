"""Opinions: scores of experts that are no verifiers, measured against the verdicts on the same rollouts.

In a domain where no verifier exists the score of a calibrated expert tells how likely an answer is right. That chance
may choose which of the policy's own answers a teacher is shown. It is no verdict: it is kept out of a rollout's score,
pass rates and rewards, since a policy that is rewarded for its own belief only grows surer.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session, aliased

from services.contracts.answers import AnswerKind, AnswerStatus, passes
from services.contracts.base import JsonObject
from services.contracts.calibrations import Calibration
from services.contracts.experts import Descriptor, ExpertStatus
from services.store.loop import answers, coverage, trust
from services.store.stats.calibration import Judged, estimate_chance, find_auc, find_brier, find_look
from services.store.tables.loop import AnswerRow, ExpertRow, RolloutRow, TaskRow

NEWEST_ANSWERS: Final = 1000
"""Of an expert in a domain, those with a verdict at the last look: older ones are about another policy."""
SCORE: Final = "score"
SIGNALS: Final = "signals"
"""The key in an answer's evidence under which an expert names further numbers from 0 to 1 that are measured too."""


_JUDGE, _JUDGING = aliased(AnswerRow), aliased(ExpertRow)
_FIRST_VERDICT: Final = (
    select(func.min(_JUDGE.created_at))
    .join(_JUDGING, _JUDGING.id == _JUDGE.expert_id)
    .where(
        _JUDGE.rollout_id == AnswerRow.rollout_id,
        _JUDGE.score.is_not(None),
        trust.counts(_JUDGE, _JUDGING),
        trust.is_judge(_JUDGING),
    )
    .correlate(AnswerRow)
    .scalar_subquery()
)
"""When the first of the verdicts on an answer's rollout was given; null without one."""


@dataclass(frozen=True)
class Opinion:
    """How likely an answer is right, as a calibrated expert's score tells; and that answer of the expert."""

    chance: float
    answer_id: UUID


@dataclass(frozen=True)
class Opinions:
    """What the experts' scores are worth: their calibrations by domain, and the answers they were made of."""

    calibrations: tuple[Calibration, ...]
    seen: Mapping[tuple[UUID, str], Sequence[Judged]]
    """By expert and domain, its judged scores; of calibrated experts alone."""

    def may_weigh(self, expert: ExpertRow, domain: str) -> bool:
        """Whether its answers may have weight in the domain: the policy's evaluation of itself only where its scores
        are known to tell right from wrong."""
        return not trust.is_self(expert) or (expert.id, domain) in self.seen


NONE: Final = Opinions((), {})


def read(session: Session, lineage_id: UUID, domains: Collection[str] | None = None) -> Opinions:
    """Of every expert that is not retired and gives scores without being a verifier, in these domains or in all. The
    cost grows with the answers that were ever judged there."""
    if domains is not None and not domains:
        return NONE
    rows = session.scalars(
        select(ExpertRow)
        .where(ExpertRow.lineage_id == lineage_id, ExpertRow.status != ExpertStatus.RETIRED.value)
        .order_by(ExpertRow.id)
    ).all()
    calibrations: list[Calibration] = []
    seen: dict[tuple[UUID, str], Sequence[Judged]] = {}
    for row in rows:
        if not gives_opinions(row):
            continue
        for found, judged in _calibrate_all(session, row.id, domains):
            calibrations.append(found)
            if found.signal == SCORE and found.is_calibrated:
                seen[row.id, found.domain] = judged
    return Opinions(tuple(calibrations), seen)


def read_of(session: Session, expert: ExpertRow) -> list[Calibration] | None:
    """Of one expert; None where it gives no opinions."""
    if not gives_opinions(expert):
        return None
    return [found for found, _ in _calibrate_all(session, expert.id, None)]


def gives_opinions(expert: ExpertRow) -> bool:
    """Whether its scores are opinions: neither a verifier's nor people's."""
    descriptor = Descriptor.model_validate(expert.descriptor)
    return AnswerKind.SCORE in descriptor.kinds and not descriptor.verifier and not trust.is_people(expert)


def _calibrate_all(
    session: Session, expert_id: UUID, domains: Collection[str] | None
) -> Iterator[tuple[Calibration, Sequence[Judged]]]:
    """Its calibrations by domain and signal as of the last look, each with what it was made of."""
    counted = (
        select(TaskRow.domain, func.count())
        .join(RolloutRow, RolloutRow.task_id == TaskRow.id)
        .join(AnswerRow, AnswerRow.rollout_id == RolloutRow.id)
        .where(_is_judged(expert_id), *(() if domains is None else (TaskRow.domain.in_(domains),)))
        .group_by(TaskRow.domain)
        .order_by(TaskRow.domain)
    )
    for domain, num_answers in session.execute(counted).all():
        num_seen, error = find_look(num_answers)
        by_signal = _read_judged(session, expert_id, domain, num_newer=num_answers - num_seen)
        for signal, judged in sorted(by_signal.items()):
            yield _calibrate(expert_id, domain, signal, judged, error), judged


def _is_judged(expert_id: UUID) -> ColumnElement[bool]:
    """A condition on its answers: scores of rollouts that have a verdict."""
    is_score = AnswerRow.score.is_not(None) & (AnswerRow.status == AnswerStatus.CURRENT.value)
    return (AnswerRow.expert_id == expert_id) & is_score & _FIRST_VERDICT.is_not(None)


def _read_judged(session: Session, expert_id: UUID, domain: str, *, num_newer: int) -> dict[str, list[Judged]]:
    """By signal, its newest scores in the domain before so many still newer ones, in the order in which score and
    verdict were both known."""
    known_at = func.greatest(AnswerRow.created_at, _FIRST_VERDICT)
    rows = session.execute(
        select(AnswerRow.rollout_id, AnswerRow.score, AnswerRow.evidence, TaskRow.id)
        .join(RolloutRow, RolloutRow.id == AnswerRow.rollout_id)
        .join(TaskRow, TaskRow.id == RolloutRow.task_id)
        .where(_is_judged(expert_id), TaskRow.domain == domain)
        .order_by(known_at.desc(), AnswerRow.id.desc())
        .offset(num_newer)
        .limit(NEWEST_ANSWERS)
    ).all()
    verdicts = answers.verdicts(session, [rollout_id for rollout_id, *_ in rows])
    judged: dict[str, list[Judged]] = defaultdict(list)
    for rollout_id, score, evidence, task_id in rows:
        verdict = verdicts.get(rollout_id)
        if score is None or verdict is None or verdict.score is None:
            continue
        for signal, value in {SCORE: score, **_read_signals(evidence)}.items():
            judged[signal].append(Judged(task_id, value, passes(verdict.score)))
    return judged


def _read_signals(evidence: JsonObject | None) -> dict[str, float]:
    """The numbers from 0 to 1 that the expert's evidence names as signals."""
    named = (evidence or {}).get(SIGNALS)
    if not isinstance(named, dict):
        return {}
    return {
        name: float(value)
        for name, value in named.items()
        if name != SCORE and isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    }


def _calibrate(expert_id: UUID, domain: str, signal: str, judged: Sequence[Judged], error: float | None) -> Calibration:
    auc, (brier, of_mean) = find_auc(judged, error), find_brier(judged)
    return Calibration(
        expert_id=expert_id,
        domain=domain,
        signal=signal,
        num_answers=len(judged),
        num_passed=sum(one.passed for one in judged),
        num_tasks=len({one.task_id for one in judged}),
        num_mixed_tasks=0 if auc is None else auc.num_tasks,
        auc=None if auc is None else auc.mean,
        auc_low=None if auc is None else auc.low,
        brier=brier,
        brier_of_mean=of_mean,
    )


def find_unjudged(session: Session, lineage_id: UUID, domains: Collection[str]) -> set[str]:
    """Those of these domains in which no verifier may train."""
    return set(domains) - coverage.find_judged(session, lineage_id, domains)


def find(session: Session, known: Opinions, domain_of: Mapping[UUID, str]) -> dict[UUID, Opinion]:
    """How likely each of these rollouts is right, by the best calibrated expert whose score of it counts now.

    domain_of: by rollout. A rollout without such a score has no entry.
    """
    best = {
        (one.expert_id, one.domain): one.auc_low
        for one in known.calibrations
        if one.signal == SCORE and one.is_calibrated and one.auc_low is not None
    }
    rows = session.execute(
        select(AnswerRow.rollout_id, AnswerRow.id, AnswerRow.expert_id, AnswerRow.score)
        .join(ExpertRow, ExpertRow.id == AnswerRow.expert_id)
        .where(
            AnswerRow.rollout_id.in_(domain_of),
            AnswerRow.expert_id.in_({expert_id for expert_id, _ in best}),
            AnswerRow.score.is_not(None),
            answers.stands(),
        )
        .order_by(AnswerRow.id)
    ).all()
    found: dict[UUID, tuple[float, Opinion]] = {}
    for rollout_id, answer_id, expert_id, score in rows:
        low = best.get((expert_id, domain_of[rollout_id]))
        if low is None or score is None or (rollout_id in found and found[rollout_id][0] >= low):
            continue
        chance = estimate_chance(known.seen[expert_id, domain_of[rollout_id]], score)
        found[rollout_id] = (low, Opinion(chance, answer_id))
    return {rollout_id: opinion for rollout_id, (_, opinion) in found.items()}
