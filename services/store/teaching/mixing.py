"""The gain of mixing an expert's distribution into the policy, from the loop's own rollouts: nothing is drawn for it.

A top K or samples along a rollout cannot be drawn from alone. What their expert would change is estimated to first
order (`sequential_test.mixing_gain`), on groups whose rollouts were scored and differ in their verdicts: on the others
the gain is 0 whatever the expert says.

The control is the policy's own distribution in the same form: as many samples of it, or its top K. Only distributions
at the temperature that the rollout was drawn at count, for the policy's log-probabilities are known at that one alone.
"""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from services.contracts.answers import (
    PASS_SCORE,
    AnswerStatus,
    Continuation,
    Distribution,
    SamplesDistribution,
    TopKDistribution,
)
from services.contracts.ids import first_id_of
from services.contracts.rollouts import Purpose
from services.store.ledger import distributions
from services.store.loop import vocabularies
from services.store.tables.loop import AnswerRow, DistributionRow, RolloutRow, TaskRow
from services.store.tables.teaching import MeasurementRow
from services.store.teaching.sequential_test import mixing_gain, samples_excess, top_k_excess

NEWEST_ANSWERS: Final = 2_000


def find_gains(session: Session, measurement: MeasurementRow, num_tasks: int) -> list[float]:
    """The gain on up to so many tasks, each by its first group that tells; fewer while there are not enough."""
    group_ids = _find_telling_groups(session, measurement)[:num_tasks]
    if len(group_ids) < num_tasks:
        return [0.0] * len(group_ids)
    rows = session.execute(
        select(RolloutRow, DistributionRow)
        .outerjoin(
            AnswerRow,
            (AnswerRow.rollout_id == RolloutRow.id)
            & (AnswerRow.expert_id == measurement.expert_id)
            & (AnswerRow.status == AnswerStatus.CURRENT.value),
        )
        .outerjoin(DistributionRow, (DistributionRow.answer_id == AnswerRow.id) & _IS_MATCHED)
        .where(RolloutRow.group_id.in_(group_ids), *_IS_SCORED)
        .order_by(RolloutRow.id)
    ).all()
    scores: dict[UUID, list[float]] = defaultdict(list)
    excesses: dict[UUID, list[list[float]]] = defaultdict(list)
    spelled = {name: vocabularies.texts(session, name) for name in {rollout.tokenizer_hash for rollout, _ in rows}}
    for rollout, packed in rows:
        found = None if packed is None else distributions.unpack(packed)
        scores[rollout.group_id].append(rollout.score or 0.0)
        excesses[rollout.group_id].append(
            [] if found is None else find_excess(rollout, found, spelled[rollout.tokenizer_hash])
        )
    return [mixing_gain(scores[group_id], excesses[group_id]) for group_id in group_ids]


def say_unmatched(session: Session, measurement: MeasurementRow) -> str | None:
    """Why the newest distribution of the expert in this domain does not count, if it does not for its temperature."""
    newest = session.execute(
        select(DistributionRow.temperature, _SAMPLED_AT, _IS_MATCHED)
        .join(AnswerRow, AnswerRow.id == DistributionRow.answer_id)
        .join(RolloutRow, RolloutRow.id == AnswerRow.rollout_id)
        .join(TaskRow, TaskRow.id == RolloutRow.task_id)
        .where(
            AnswerRow.expert_id == measurement.expert_id,
            RolloutRow.purpose == Purpose.TRAIN.value,
            TaskRow.domain == measurement.domain,
            *_IS_SCORED,
        )
        .order_by(AnswerRow.id.desc())
        .limit(1)
    ).one_or_none()
    if newest is None or newest[2]:
        return None
    drawn_at = "an unknown one" if newest[1] is None else f"{newest[1]:g}"
    return f"its distributions are at temperature {newest[0]:g}, and the rollouts were drawn at {drawn_at}"


_IS_SCORED: Final[tuple[ColumnElement[bool], ...]] = (
    RolloutRow.score.is_not(None),
    RolloutRow.sampler_logprobs.is_not(None),
    ~RolloutRow.shown,
)
_SAMPLED_AT: Final = RolloutRow.sampling["temperature"].as_float()
_IS_MATCHED: Final = func.coalesce(DistributionRow.temperature == _SAMPLED_AT, False)


def _find_telling_groups(session: Session, measurement: MeasurementRow) -> list[UUID]:
    """Groups of different tasks, oldest first, with passes and failures and a distribution of the expert, answered
    since its last measurement was decided."""
    since = _decided_before(session, measurement)
    answered = (
        select(AnswerRow.rollout_id)
        .join(DistributionRow, DistributionRow.answer_id == AnswerRow.id)
        .join(RolloutRow, RolloutRow.id == AnswerRow.rollout_id)
        .where(
            _IS_MATCHED,
            AnswerRow.expert_id == measurement.expert_id,
            AnswerRow.status == AnswerStatus.CURRENT.value,
            *(() if since is None else (AnswerRow.id > first_id_of(since),)),
        )
        .order_by(AnswerRow.id.desc())
        .limit(NEWEST_ANSWERS)
        .subquery()
    )
    passed = RolloutRow.score > PASS_SCORE
    telling = (
        select(RolloutRow.group_id)
        .where(
            RolloutRow.group_id.in_(
                select(RolloutRow.group_id)
                .join(answered, answered.c.rollout_id == RolloutRow.id)
                .join(TaskRow, TaskRow.id == RolloutRow.task_id)
                .where(RolloutRow.purpose == Purpose.TRAIN.value, TaskRow.domain == measurement.domain, *_IS_SCORED)
            ),
            *_IS_SCORED,
        )
        .group_by(RolloutRow.group_id)
        .having(func.bool_or(passed) & ~func.bool_and(passed))
    )
    rows = session.execute(
        select(RolloutRow.task_id, RolloutRow.group_id)
        .where(RolloutRow.group_id.in_(telling))
        .distinct()
        .order_by(RolloutRow.group_id)
    )
    first: dict[UUID, UUID] = {}
    for task_id, group_id in rows:
        first.setdefault(task_id, group_id)
    return list(first.values())


def _decided_before(session: Session, measurement: MeasurementRow) -> datetime | None:
    return session.scalar(
        select(func.max(MeasurementRow.decided_at)).where(
            MeasurementRow.expert_id == measurement.expert_id,
            MeasurementRow.source == measurement.source,
            MeasurementRow.domain == measurement.domain,
        )
    )


def find_excess(rollout: RolloutRow, distribution: Distribution, texts: Sequence[str]) -> list[float]:
    """By how much the expert finds the rollout's own tokens likelier than the control does, in parts of the policy's
    probability, at the action tokens where it speaks (`sequential_test.top_k_excess`, `samples_excess`).

    Places drawn at random stand for all places: each counts 1/p times, p being the probability that it was chosen.
    texts: of the tokenizer's tokens, for samples that are text; without them these are left out.
    """
    places = (
        _read_top_k(rollout, distribution)
        if isinstance(distribution, TopKDistribution)
        else _read_samples(rollout, distribution, texts)
    )
    return [excess for place, excess in places if rollout.action_mask[place]]


def _read_top_k(rollout: RolloutRow, distribution: TopKDistribution) -> list[tuple[int, float]]:
    """By place, the excess at the rollout's own token."""
    policy = rollout.sampler_logprobs or []
    rows = zip(distribution.token_ids, distribution.logprobs, distribution.tail_mass, strict=True)
    return [
        (place, top_k_excess(dict(zip(ids, logprobs, strict=True)).get(rollout.token_ids[place]), tail, policy[place]))
        for place, (ids, logprobs, tail) in enumerate(rows)
    ]


def _read_samples(
    rollout: RolloutRow, distribution: SamplesDistribution, texts: Sequence[str]
) -> list[tuple[int, float]]:
    """By place, the excess at the rollout's own token, over the probability of the place where it was drawn."""
    policy, tokens = rollout.sampler_logprobs or [], rollout.token_ids
    chances = distribution.probabilities or [1.0] * len(distribution.prefixes)
    found = []
    for place, drawn, chance in zip(distribution.prefixes, distribution.continuations, chances, strict=True):
        goes_on = [one for each in drawn if (one := _goes_on_with(each, tokens[place], texts)) is not None]
        if goes_on:
            found.append((place, samples_excess(sum(goes_on), len(goes_on), policy[place]) / chance))
    return found


def _goes_on_with(continuation: Continuation, token: int, texts: Sequence[str]) -> bool | None:
    """Whether an expert's continuation begins with this token; None where that cannot be told. A text begins with a
    token whose text it begins with, and ends where the token is one without text."""
    if continuation.token_ids is not None:
        return continuation.token_ids[0] == token
    if token >= len(texts):
        return None
    text, spelled = continuation.text or "", texts[token]
    is_end = spelled == "" or (spelled.startswith("<|") and spelled.endswith("|>"))
    return text == "" if is_end else text.startswith(spelled)
