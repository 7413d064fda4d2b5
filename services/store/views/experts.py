"""An expert's record: outcomes, latency, agreement with others, and its part in training.

Outcomes are exact counts. The other figures cover the newest consultations, answers or updates, and say how many.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Subquery, func, select, text
from sqlalchemy.orm import Session, aliased

from services.contracts.answers import PASS_SCORE, AnswerStatus
from services.contracts.corrections import CorrectionStatus
from services.contracts.experts import Expert
from services.contracts.measurements import say_about
from services.store.core import row_counts
from services.store.loop import trust
from services.store.stats.estimates import Interval, wilson_interval
from services.store.tables.corrections import CorrectionRow
from services.store.tables.loop import AnswerRow, AttemptRow, ConsultationRow, ExpertRow
from services.store.views import measured

NEWEST_QUESTIONS = 500
NEWEST_ANSWERS = 1000
NEWEST_UPDATES = 50


@dataclass(frozen=True)
class Latency:
    """Seconds that an expert took for its newest answers (late ones left out): median, 95th and 99th percentile."""

    num: int
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Agreement:
    """How often an expert and others gave the same verdict on the same rollout, with Wilson's interval."""

    num: int
    num_agreed: int
    interval: Interval


@dataclass(frozen=True)
class Given:
    """The part of an expert's answers in the newest updates.

    share: of the terms' parts of the loss, 0..1. cost: the mean cost of its terms to the policy, in nats per token;
    None where it has no terms.
    """

    num_updates: int
    num_lessons: int
    share: float
    cost: float | None


@dataclass(frozen=True)
class ExpertFigures:
    """Everything known about one expert. outcomes: consultations by status."""

    outcomes: dict[str, int]
    latency: Latency | None
    with_verifiers: Agreement | None
    with_people: Agreement | None
    given: Given


def outcomes(session: Session, lineage_id: UUID, expert_id: UUID | None = None) -> dict[UUID, dict[str, int]]:
    """Consultations by status, of every expert that was ever asked or of one."""
    kinds = None if expert_id is None else (str(expert_id),)
    told = row_counts.read(session, lineage_id, ("consultation",), kinds)["consultation"]
    return {UUID(expert): words for expert, words in row_counts.by_kind(told).items()}


def read(session: Session, expert: ExpertRow) -> ExpertFigures:
    """The figures of one expert."""
    return ExpertFigures(
        outcomes=outcomes(session, expert.lineage_id, expert.id).get(expert.id, {}),
        latency=latency(session, expert.id),
        with_verifiers=agreement_with_verifiers(session, expert.id),
        with_people=agreement_with_people(session, expert.id),
        given=given(session, expert.lineage_id).get(expert.id, Given(0, 0, 0.0, None)),
    )


def latency(session: Session, expert_id: UUID) -> Latency | None:
    """How long its newest answered tries took; None where there is none."""
    newest = (
        select(ConsultationRow.id)
        .where(ConsultationRow.expert_id == expert_id)
        .order_by(ConsultationRow.id.desc())
        .limit(NEWEST_QUESTIONS)
        .subquery()
    )
    seconds = func.extract("epoch", AttemptRow.ended_at - AttemptRow.started_at)
    num, p50, p95, p99 = session.execute(
        select(
            func.count(),
            *(func.percentile_cont(share).within_group(seconds) for share in (0.5, 0.95, 0.99)),
        )
        .select_from(AttemptRow)
        .join(newest, newest.c.id == AttemptRow.consultation_id)
        .where(AttemptRow.outcome == "ok")
    ).one()
    return Latency(num, float(p50), float(p95), float(p99)) if num else None


def agreement_with_verifiers(session: Session, expert_id: UUID) -> Agreement | None:
    """Its newest scores against those of other verifiers that count, on the same rollouts; None where there is none."""
    own = _newest_scores(expert_id)
    other = aliased(AnswerRow)
    same = (other.score > PASS_SCORE) == (own.c.score > PASS_SCORE)
    num, agreed = session.execute(
        select(func.count(), func.count().filter(same))
        .select_from(own)
        .join(other, other.rollout_id == own.c.rollout_id)
        .join(ExpertRow, ExpertRow.id == other.expert_id)
        .where(
            other.expert_id != expert_id,
            other.score.is_not(None),
            trust.counts(other, ExpertRow),
            ExpertRow.descriptor["verifier"].as_boolean(),
        )
    ).one()
    return _agreement(num, agreed)


def agreement_with_people(session: Session, expert_id: UUID) -> Agreement | None:
    """Its newest scores against people's decisions about the same rollouts; None where there is none."""
    own = _newest_scores(expert_id)
    decided = aliased(AnswerRow)
    same = (decided.score > PASS_SCORE) == (own.c.score > PASS_SCORE)
    num, agreed = session.execute(
        select(func.count(), func.count().filter(same))
        .select_from(own)
        .join(decided, decided.rollout_id == own.c.rollout_id)
        .join(CorrectionRow, CorrectionRow.consultation_id == decided.consultation_id)
        .where(
            decided.expert_id != expert_id,
            decided.status == AnswerStatus.CURRENT.value,
            CorrectionRow.status == CorrectionStatus.SUBMITTED.value,
        )
    ).one()
    return _agreement(num, agreed)


def _newest_scores(expert_id: UUID) -> Subquery:
    return (
        select(AnswerRow.rollout_id, AnswerRow.score)
        .where(
            AnswerRow.expert_id == expert_id,
            AnswerRow.status == AnswerStatus.CURRENT.value,
            AnswerRow.score.is_not(None),
        )
        .order_by(AnswerRow.id.desc())
        .limit(NEWEST_ANSWERS)
        .subquery()
    )


def _agreement(num: int, num_agreed: int) -> Agreement | None:
    interval = wilson_interval(num_agreed, num)
    return None if interval is None else Agreement(num, num_agreed, interval)


_GIVEN = text(
    """
    WITH newest AS (
        SELECT id FROM "update" WHERE lineage_id = :lineage_id AND status = 'applied' ORDER BY number DESC LIMIT :num
    ), terms AS (
        SELECT used.update_id, used.lesson_id, answer.expert_id, term.value AS term,
               jsonb_array_length(term.value -> 'answers') AS num_answers
        FROM newest JOIN update_lesson AS used ON used.update_id = newest.id AND used.status = 'applied'
        CROSS JOIN LATERAL jsonb_array_elements(used.terms) AS term
        CROSS JOIN LATERAL jsonb_array_elements_text(term.value -> 'answers') AS told
        JOIN answer ON answer.id = told.value::uuid
    )
    SELECT expert_id, count(DISTINCT update_id), count(DISTINCT lesson_id),
           sum((term ->> 'share')::float8 / num_answers) / (SELECT count(*) FROM newest),
           avg((term ->> 'cost')::float8)
    FROM terms GROUP BY expert_id
    """
)


def given(session: Session, lineage_id: UUID) -> dict[UUID, Given]:
    """The part of each expert's answers in the newest updates; a term counts in equal parts for its answers."""
    rows = session.execute(_GIVEN, {"lineage_id": lineage_id, "num": NEWEST_UPDATES})
    return {
        expert_id: Given(int(num_updates), int(num_lessons), float(share), None if cost is None else float(cost))
        for expert_id, num_updates, num_lessons, share, cost in rows
    }


def add_worth(session: Session, lineage_id: UUID, found: Sequence[Expert]) -> list[Expert]:
    """These experts with their share of the newest updates' loss, and what they were measured to teach."""
    gave = given(session, lineage_id)
    newest = measured.newest(session, lineage_id, [expert.id for expert in found])
    return [
        expert.model_copy(
            update={
                "share": gave[expert.id].share if expert.id in gave else 0.0,
                "measured": [say_about(one) for one in newest.get(expert.id, ())],
            }
        )
        for expert in found
    ]
