"""The gain of mixing an expert's distribution into the policy, from the loop's own rollouts: nothing is drawn for it.

A top K or samples along a rollout cannot be drawn from alone. What their expert would change is estimated to first
order (`views.looks.mixing_gain`), on groups whose rollouts were scored and differ in their verdicts: on the others the
gain is 0 whatever the expert says.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerStatus, Continuation, Distribution, TopKDistribution
from services.contracts.ids import first_id_of
from services.contracts.rollouts import Purpose
from services.store.ledger import distributions
from services.store.loop import vocabularies
from services.store.loop.evaluations import PASS_SCORE
from services.store.tables.loop import AnswerRow, DistributionRow, RolloutRow, TaskRow
from services.store.tables.teaching import MeasurementRow
from services.store.views.looks import mixing_gain

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
        .outerjoin(DistributionRow, DistributionRow.answer_id == AnswerRow.id)
        .where(RolloutRow.group_id.in_(group_ids), *_IS_SCORED)
        .order_by(RolloutRow.id)
    ).all()
    scores: dict[UUID, list[float]] = defaultdict(list)
    ratios: dict[UUID, list[list[float]]] = defaultdict(list)
    for rollout, packed in rows:
        texts = vocabularies.texts(session, rollout.tokenizer_hash)
        found = None if packed is None else distributions.unpack(packed)
        scores[rollout.group_id].append(rollout.score or 0.0)
        ratios[rollout.group_id].append([] if found is None else log_ratios(rollout, found, texts))
    return [mixing_gain(scores[group_id], ratios[group_id]) for group_id in group_ids]


_IS_SCORED: Final[tuple[ColumnElement[bool], ...]] = (
    RolloutRow.score.is_not(None),
    RolloutRow.sampler_logprobs.is_not(None),
    ~RolloutRow.shown,
)


def _find_telling_groups(session: Session, measurement: MeasurementRow) -> list[UUID]:
    """Groups of different tasks, oldest first, with passes and failures and a distribution of the expert, answered
    since its last measurement was decided."""
    since = _decided_before(session, measurement)
    answered = (
        select(AnswerRow.rollout_id)
        .where(
            AnswerRow.expert_id == measurement.expert_id,
            AnswerRow.distribution_kind.is_not(None),
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


def log_ratios(rollout: RolloutRow, distribution: Distribution, texts: Sequence[str]) -> list[float]:
    """log expert(y_t) - log policy(y_t), in nats, at the action tokens where the expert speaks.

    A token outside its top K, or that none of its samples goes on with, has -inf. texts: of the tokenizer's tokens, for
    samples that are text; without them these are left out.
    """
    policy = rollout.sampler_logprobs or []
    found = []
    for place, logprob in _read_expert(rollout, distribution, texts):
        if rollout.action_mask[place]:
            found.append(logprob - policy[place])
    return found


def _read_expert(rollout: RolloutRow, distribution: Distribution, texts: Sequence[str]) -> list[tuple[int, float]]:
    """By place, the expert's log-probability of the rollout's own token."""
    tokens = rollout.token_ids
    if isinstance(distribution, TopKDistribution):
        rows = zip(distribution.token_ids, distribution.logprobs, strict=True)
        return [
            (place, dict(zip(ids, logprobs, strict=True)).get(tokens[place], -math.inf))
            for place, (ids, logprobs) in enumerate(rows)
        ]
    found = []
    for place, drawn in zip(distribution.prefixes, distribution.continuations, strict=True):
        goes_on = [one for each in drawn if (one := _goes_on_with(each, tokens[place], texts)) is not None]
        if goes_on:
            share = sum(goes_on) / len(goes_on)
            found.append((place, math.log(share) if share else -math.inf))
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
