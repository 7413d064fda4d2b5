"""The order of the human queue: which answers are most worth a person's time.

First come answers that a person asked for, then by how far experts disagree, then by how unsure the policy was, then
the newest: correcting what the policy does now teaches most. The numbers are kept in the item's row, so that
the next item is the first entry of an index.
"""

from uuid import UUID

from sqlalchemy import Numeric, ScalarSelect, cast, exists, func, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from services.contracts.answers import AnswerStatus
from services.contracts.corrections import CorrectionStatus, Opinion
from services.contracts.persons import Right
from services.store.loop import answers, trust
from services.store.tables.corrections import CorrectionRow
from services.store.tables.loop import AnswerRow, ConsultationRow, ExpertRow, RolloutRow

INDEPENDENT_STAGE = 1
"""Experts of the second stage are shown the answers of the first; their agreement is no evidence."""


SHOWN = {"score", "feedback", "solution", "distribution_kind", "evidence"}


UNDECIDED = (CorrectionStatus.OPEN.value, CorrectionStatus.CLAIMED.value, CorrectionStatus.SKIPPED.value)


def read_disagreement(rollout_id: UUID | InstrumentedAttribute[UUID]) -> ScalarSelect[float]:
    """The highest less the lowest score that independent experts gave the rollout, 0..1; 0 with fewer than two.

    Independent are experts that were asked without seeing other answers, may train, and are neither people, who are
    asked to settle what the others disagree about, nor the policy, whose doubts are its uncertainty. Scores are exact
    decimals here, so that 0.9 and 0.9 are 0 apart in every order of arrival.
    """
    score = cast(AnswerRow.score, Numeric)
    return (
        select(cast(func.coalesce(func.max(score) - func.min(score), 0), CorrectionRow.disagreement.type))
        .select_from(AnswerRow)
        .join(ConsultationRow, ConsultationRow.id == AnswerRow.consultation_id)
        .join(ExpertRow, ExpertRow.id == AnswerRow.expert_id)
        .where(
            AnswerRow.rollout_id == rollout_id,
            AnswerRow.score.is_not(None),
            ConsultationRow.stage == INDEPENDENT_STAGE,
            trust.counts(AnswerRow, ExpertRow),
            ~trust.is_people(ExpertRow),
            ~trust.is_self(ExpertRow),
        )
        .scalar_subquery()
    )


def measure_uncertainty(rollout: RolloutRow) -> float:
    """The mean cost of the policy's own tokens, in nats per token; 0 where the sampler's logprobs are not known.

    The mean of -log p(token) over the chosen tokens: one draw's estimate of the policy's mean entropy a token, at the
    temperature it was sampled at.
    """
    if rollout.sampler_logprobs is None:
        return 0.0
    chosen = [logprob for logprob, mine in zip(rollout.sampler_logprobs, rollout.action_mask, strict=True) if mine]
    return max(0.0, -sum(chosen) / len(chosen)) if chosen else 0.0


def rank_again(session: Session, rollout_id: UUID) -> None:
    """Update the order of a rollout's undecided items after new answers about it."""
    session.execute(
        update(CorrectionRow)
        .where(CorrectionRow.rollout_id == rollout_id, CorrectionRow.status.in_(UNDECIDED))
        .values(disagreement=read_disagreement(rollout_id))
        .execution_options(synchronize_session=False)
    )


def rank_scored_by(session: Session, expert_id: UUID) -> None:
    """Bring the undecided items in line whose rollouts this expert scored: it may have gained or lost its weight."""
    scored = exists().where(
        AnswerRow.rollout_id == CorrectionRow.rollout_id,
        AnswerRow.score.is_not(None),
        AnswerRow.expert_id == ExpertRow.id,
        ExpertRow.id == expert_id,
        ~trust.is_people(ExpertRow),
    )
    session.execute(
        update(CorrectionRow)
        .where(CorrectionRow.status.in_(UNDECIDED), scored)
        .values(disagreement=read_disagreement(CorrectionRow.rollout_id))
        .execution_options(synchronize_session=False)
    )


def read_opinions(session: Session, rollout_id: UUID, rights: frozenset[Right] = frozenset(Right)) -> list[Opinion]:
    """What experts other than people said about the rollout, oldest first, with whether each score was counted; as a
    person with these rights may see it."""
    rows = session.execute(
        select(AnswerRow, ExpertRow, ConsultationRow.stage)
        .join(ConsultationRow, ConsultationRow.id == AnswerRow.consultation_id)
        .join(ExpertRow, ExpertRow.id == AnswerRow.expert_id)
        .where(
            AnswerRow.rollout_id == rollout_id,
            AnswerRow.status == AnswerStatus.CURRENT.value,
            ~trust.is_people(ExpertRow),
        )
        .order_by(AnswerRow.id)
    )
    return [
        Opinion.model_validate(
            {
                "expert": expert.name,
                "expert_version": answer.expert_version,
                "counted": answer.score is not None
                and stage == INDEPENDENT_STAGE
                and trust.counts(answer, expert)
                and not trust.is_self(expert),
                **answers.view(answer, rights).model_dump(include=SHOWN),
            }
        )
        for answer, expert, stage in rows
    ]


def explain_choice(row: CorrectionRow) -> str:
    """Why the queue put this item where it did, in a sentence for people."""
    if row.priority > 0:
        return "A correction of this answer was requested."
    if row.disagreement > 0:
        return f"Experts disagree: their scores differ by {row.disagreement:.2f} (scale 0 to 1)."
    if row.uncertainty > 0:
        return f"The policy was unsure: {row.uncertainty:.2f} nats per token on average."
    return "It is the latest answer waiting for a person."
