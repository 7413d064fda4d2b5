"""Where experts and policy disagreed along one rollout: the cost of each token, and the tokens experts prefer there.

Costs are those of the applied update that used the rollout's lesson; before such an update there are none. Preferred
tokens come from our own teacher, as the update kept them, and from experts that sent a distribution.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.contracts.answers import AnswerStatus, SamplesDistribution, TopKDistribution
from services.contracts.persons import Right
from services.contracts.updates import TermRecord, UpdateStatus
from services.store.ledger import distributions
from services.store.loop import rollouts, trust, vocabularies
from services.store.tables.ledger import LessonRow, TeacherChoicesRow, UpdateLessonRow, UpdateRow
from services.store.tables.loop import AnswerRow, DistributionRow, ExpertRow, RolloutRow

NUM_SHOWN = 5  # tokens of an expert's distribution
MAX_TOKENS = 1024  # a page; a longer rollout has several
NUM_LEVELS = 10  # of heat: 0 is none
HOTTEST = 4.0  # nats from which a token is as hot as can be; a token that an expert finds at 2 % costs that


@dataclass(frozen=True)
class Choice:
    """A possible token with its probability."""

    text: str
    probability: float


@dataclass(frozen=True)
class Voice:
    """The tokens one expert prefers at one place, likeliest first. name: of the expert."""

    name: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class HeatToken:
    """One token of the rollout. Nats; None where no update has charged it yet.

    probability: the sampler's, of this token; None where unknown. heat: of its cost, 0..9; heat_to_go: of its
    cost-to-go, 0..9, beside the largest of the rollout.
    """

    index: int
    text: str
    token_id: int
    is_action: bool
    probability: float | None
    cost: float | None
    cost_to_go: float | None
    heat: int
    heat_to_go: int
    voices: tuple[Voice, ...]


@dataclass(frozen=True)
class HeatMap:
    """A rollout token by token. update_number: the update whose costs are shown; None before one used the rollout.

    start, num_tokens: the first token shown, and how many the rollout has. has_texts: whether the tokens' texts are
    known; without a trainer they are shown by their ids.
    """

    tokens: tuple[HeatToken, ...]
    update_number: int | None
    total_cost: float | None
    start: int
    num_tokens: int
    has_texts: bool
    voices: tuple[str, ...]


def read(
    session: Session,
    rollout: RolloutRow,
    start: int = 0,
    limit: int = MAX_TOKENS,
    rights: frozenset[Right] = frozenset(Right),
) -> HeatMap:
    """The rollout's heat map, or a piece of it, with the voices that a person with these rights may hear."""
    if rollouts.find_hidden(session, [rollout], rights):
        return HeatMap((), None, None, 0, 0, True, ())
    texts = vocabularies.texts(session, rollout.tokenizer_hash)
    used = _find_used(session, rollout.id)
    costs: Sequence[float] | None = None
    number: int | None = None
    said: dict[str, dict[int, tuple[Choice, ...]]] = {}
    if used is not None:
        lesson, number = used
        costs = lesson.token_costs
        said |= _read_teacher(session, lesson, number, texts, rights)
    said |= _read_experts(session, rollout, texts, rights)
    to_go = None if costs is None else sum_later(costs)
    tokens = []
    for index in range(start, min(start + limit, len(rollout.token_ids))):
        token_id = rollout.token_ids[index]
        is_action = rollout.action_mask[index]
        cost = costs[index] if costs is not None and is_action else None
        logprobs = rollout.sampler_logprobs
        tokens.append(
            HeatToken(
                index=index,
                text=_spell(texts, token_id),
                token_id=token_id,
                is_action=is_action,
                probability=math.exp(logprobs[index]) if logprobs is not None and is_action else None,
                cost=cost,
                cost_to_go=to_go[index] if to_go is not None and is_action else None,
                heat=measure_heat(cost, HOTTEST),
                heat_to_go=measure_heat(to_go[index], max(to_go)) if to_go is not None and is_action else 0,
                voices=tuple(Voice(name, own[index]) for name, own in said.items() if own.get(index)),
            )
        )
    return HeatMap(
        tokens=tuple(tokens),
        update_number=number,
        total_cost=None if costs is None else math.fsum(costs),
        start=start,
        num_tokens=len(rollout.token_ids),
        has_texts=bool(texts),
        voices=tuple(said),
    )


def sum_later(costs: Sequence[float]) -> list[float]:
    """For each token the sum of the costs that come after it."""
    later, total = [], 0.0
    for cost in reversed(costs):
        later.append(total)
        total += cost
    return later[::-1]


def measure_heat(cost: float | None, hottest: float) -> int:
    """How hot a token is, 0 to 9: by the square root of its cost, so that small disagreements are still seen."""
    if cost is None or cost <= 0:
        return 0
    return round((NUM_LEVELS - 1) * math.sqrt(min(cost, hottest) / hottest))


def _find_used(session: Session, rollout_id: UUID) -> tuple[UpdateLessonRow, int] | None:
    """The rollout's first lesson that an applied update charged token by token, and that update's number."""
    row = session.execute(
        select(UpdateLessonRow, UpdateRow.number)
        .join(LessonRow, LessonRow.id == UpdateLessonRow.lesson_id)
        .join(UpdateRow, UpdateRow.id == UpdateLessonRow.update_id)
        .where(
            LessonRow.rollout_id == rollout_id,
            UpdateLessonRow.status == UpdateStatus.APPLIED.value,
            UpdateLessonRow.token_costs.is_not(None),
        )
        .order_by(LessonRow.ordinal)
        .limit(1)
    ).one_or_none()
    return None if row is None else (row[0], row[1])


def _read_teacher(
    session: Session, lesson: UpdateLessonRow, number: int, texts: Sequence[str], rights: frozenset[Right]
) -> dict[str, dict[int, tuple[Choice, ...]]]:
    row = session.get(TeacherChoicesRow, (lesson.update_id, lesson.lesson_id))
    if row is None:
        return {}
    told = {answer_id for term in lesson.terms for answer_id in TermRecord.model_validate(term).answers}
    if not all(
        trust.may_see(rights, said) for said in session.scalars(select(AnswerRow).where(AnswerRow.id.in_(told)))
    ):
        return {}
    top = distributions.unpack_top_k(row.packed, row.num_rows, row.width)
    own = {
        index: tuple(_spell_all(texts, ids.tolist(), logprobs.tolist()))
        for index, (ids, logprobs, tail) in enumerate(zip(top.token_ids, top.logprobs, top.tail_mass, strict=True))
        if tail < 1
    }
    return {f"our teacher, in update {number}": own}


def _read_experts(
    session: Session, rollout: RolloutRow, texts: Sequence[str], rights: frozenset[Right]
) -> dict[str, dict[int, tuple[Choice, ...]]]:
    rows = session.execute(
        select(DistributionRow, ExpertRow, AnswerRow)
        .join(AnswerRow, AnswerRow.id == DistributionRow.answer_id)
        .join(ExpertRow, ExpertRow.id == AnswerRow.expert_id)
        .where(AnswerRow.rollout_id == rollout.id, AnswerRow.status == AnswerStatus.CURRENT.value)
        .order_by(AnswerRow.id)
    ).all()
    num_namesakes = Counter(expert.name for _, expert, _ in rows)
    said: dict[str, dict[int, tuple[Choice, ...]]] = {}
    for row, expert, answer in rows:
        if not trust.may_see(rights, answer):
            continue
        name = expert.name if num_namesakes[expert.name] == 1 else f"{expert.name} ({str(expert.id)[-8:]})"
        told = distributions.unpack(row)
        if isinstance(told, TopKDistribution):
            said[name] = {
                index: tuple(_spell_all(texts, ids, logprobs))
                for index, (ids, logprobs) in enumerate(zip(told.token_ids, told.logprobs, strict=True))
            }
        else:
            said[name] = _count_samples(told, texts)
    return said


def _spell_all(texts: Sequence[str], ids: Sequence[int], logprobs: Sequence[float]) -> Iterator[Choice]:
    likeliest = sorted(zip(logprobs, ids, strict=True), reverse=True)[:NUM_SHOWN]
    return (Choice(_spell(texts, token_id), math.exp(min(0.0, logprob))) for logprob, token_id in likeliest)


def _count_samples(told: SamplesDistribution, texts: Sequence[str]) -> dict[int, tuple[Choice, ...]]:
    """How each place's continuations begin, by how many of them do."""
    said = {}
    for prefix, continuations in zip(told.prefixes, told.continuations, strict=True):
        counts: dict[str, int] = {}
        for one in continuations:
            start = _spell(texts, one.token_ids[0]) if one.token_ids else (one.text or "")[:24]
            counts[start] = counts.get(start, 0) + 1
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:NUM_SHOWN]
        said[prefix] = tuple(Choice(start, count / len(continuations)) for start, count in ordered)
    return said


def _spell(texts: Sequence[str], token_id: int) -> str:
    return texts[token_id] if token_id < len(texts) else f"#{token_id}"
