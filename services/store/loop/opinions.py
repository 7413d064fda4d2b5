"""Opinions: scores of experts that are no verifiers, measured against the verdicts on the same rollouts.

In a domain where no verifier exists the score of a calibrated expert tells how likely an answer is right. That chance
may choose which of the policy's own answers a teacher is shown. It is no verdict: it is kept out of a rollout's score,
pass rates and rewards, since a policy that is rewarded for its own belief only grows surer.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session, aliased

from services.contracts.answers import AnswerKind, AnswerStatus, passes
from services.contracts.base import JsonObject
from services.contracts.calibrations import Calibration
from services.contracts.experts import Descriptor, ExpertStatus
from services.contracts.ids import first_id_of
from services.store.loop import answers, coverage, trust
from services.store.stats.calibration import (
    FIRST_LOOK,
    Judged,
    estimate_chance,
    find_auc,
    find_brier,
    find_look,
    find_look_by_age,
)
from services.store.tables.loop import AnswerRow, ExpertRow, RolloutRow, TaskRow

NEWEST_ANSWERS: Final = 1000
"""Of an expert in a domain, those with a verdict at the last look: older ones are about another policy."""
NEWEST_READ: Final = FIRST_LOOK << 8
"""Of an expert in all domains, the scores that are looked through for those with a verdict."""
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
    """Of every expert that is not retired and gives scores without being a verifier, in these domains or in all."""
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
        for found, judged in _calibrate_all(session, row, domains):
            calibrations.append(found)
            if found.signal == SCORE and found.is_calibrated:
                seen[row.id, found.domain] = judged
    return Opinions(tuple(calibrations), seen)


def read_of(session: Session, expert: ExpertRow) -> list[Calibration] | None:
    """Of one expert; None where it gives no opinions."""
    if not gives_opinions(expert):
        return None
    return [found for found, _ in _calibrate_all(session, expert, None)]


def gives_opinions(expert: ExpertRow) -> bool:
    """Whether its scores are opinions: neither a verifier's nor people's."""
    descriptor = Descriptor.model_validate(expert.descriptor)
    return AnswerKind.SCORE in descriptor.kinds and not descriptor.verifier and not trust.is_people(expert)


def _calibrate_all(
    session: Session, expert: ExpertRow, domains: Collection[str] | None
) -> Iterator[tuple[Calibration, Sequence[Judged]]]:
    """Its calibrations by domain and signal as of the last look, each with what it was made of."""
    until, error = _find_last_look(session, expert)
    by_domain: dict[str, list[_Scored]] = defaultdict(list)
    for one in _read_scored(session, expert.id, domains, until):
        by_domain[one.domain].append(one)
    used = dict[str, tuple[list[_Scored], float | None]]()
    for domain, scored in by_domain.items():
        num_seen, of_count = find_look(len(scored))
        newest = scored[len(scored) - num_seen :] if until is None else scored
        used[domain] = newest[:NEWEST_ANSWERS], of_count if until is None or of_count is None else error
    verdicts = answers.verdicts(session, [one.rollout_id for newest, _ in used.values() for one in newest])
    for domain in sorted(used):
        newest, bound = used[domain]
        for signal, judged in sorted(_judge(newest, verdicts).items()):
            yield _calibrate(expert.id, domain, signal, judged, bound), judged


def _find_last_look(session: Session, expert: ExpertRow) -> tuple[datetime | None, float | None]:
    """When an expert with many scores was last looked at, and the error of that look; of one with fewer, looks go by
    their number."""
    newest = select(AnswerRow.id).where(_is_score(expert.id)).order_by(AnswerRow.id.desc()).limit(NEWEST_READ)
    num, now = session.execute(select(func.count(), func.now()).select_from(newest.subquery())).one()
    if num < NEWEST_READ:
        return None, None
    age, error = find_look_by_age((now - expert.created_at).total_seconds(), NEWEST_READ)
    return expert.created_at + timedelta(seconds=age), error


def _is_score(expert_id: UUID) -> ColumnElement[bool]:
    """A condition on its answers."""
    is_score = AnswerRow.score.is_not(None) & (AnswerRow.status == AnswerStatus.CURRENT.value)
    return (AnswerRow.expert_id == expert_id) & is_score


@dataclass(frozen=True)
class _Scored:
    """A score of a rollout that has a verdict. known_at: when both were there."""

    answer_id: UUID
    rollout_id: UUID
    task_id: UUID
    domain: str
    score: float
    signals: JsonObject | None
    known_at: datetime


def _read_scored(
    session: Session, expert_id: UUID, domains: Collection[str] | None, until: datetime | None
) -> list[_Scored]:
    """Of the newest `NEWEST_READ` scores of the expert, those that had a verdict by then, the newest first in the order
    in which score and verdict were both known. until: None for now."""
    are_read = _is_score(expert_id) if until is None else _is_score(expert_id) & (AnswerRow.id < first_id_of(until))
    newest = select(AnswerRow.id).where(are_read).order_by(AnswerRow.id.desc()).limit(NEWEST_READ)
    rows = session.execute(
        select(
            AnswerRow.id,
            AnswerRow.rollout_id,
            TaskRow.id,
            TaskRow.domain,
            AnswerRow.score,
            AnswerRow.evidence[SIGNALS],
            func.greatest(AnswerRow.created_at, _FIRST_VERDICT),
        )
        .join(RolloutRow, RolloutRow.id == AnswerRow.rollout_id)
        .join(TaskRow, TaskRow.id == RolloutRow.task_id)
        .where(
            AnswerRow.id.in_(newest),
            _FIRST_VERDICT.is_not(None),
            *(() if domains is None else (TaskRow.domain.in_(domains),)),
        )
    )
    found = [_Scored(*row) for row in rows]
    return sorted(
        (one for one in found if until is None or one.known_at <= until),
        key=lambda one: (one.known_at, one.answer_id),
        reverse=True,
    )


def _judge(scored: Sequence[_Scored], verdicts: Mapping[UUID, answers.Verdict]) -> dict[str, list[Judged]]:
    """By signal, these scores beside the verdicts as they are now."""
    judged: dict[str, list[Judged]] = defaultdict(list)
    for one in scored:
        verdict = verdicts.get(one.rollout_id)
        if verdict is None or verdict.score is None:
            continue
        for signal, value in {SCORE: one.score, **_read_signals(one.signals)}.items():
            judged[signal].append(Judged(one.task_id, value, passes(verdict.score)))
    return judged


def _read_signals(named: JsonObject | None) -> dict[str, float]:
    """The numbers from 0 to 1 among what the expert's evidence names as signals."""
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
