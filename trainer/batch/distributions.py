"""Experts' own distributions about a rollout: a top K over all of it, or samples at some of its places.

They count while their source, `distribution`, teaches (`services.store.loop.standing`).
"""

from transformers import PreTrainedTokenizerBase

from services.contracts.answers import SamplesDistribution, TopKDistribution
from services.contracts.sources import ContextSource
from services.policy.model.modeling import decode_ids, encode_text
from services.store.ledger.lesson_facts import LessonAnswer, LessonFacts
from services.store.loop.standing import Standing
from trainer.batch.answers import behind, name, trusted
from trainer.batch.rows import SampleRows, TopKRows, Vocabulary


def _teaching(lesson: LessonFacts, standing: Standing) -> list[LessonAnswer]:
    return [
        answer
        for answer in trusted(lesson)
        if standing.teaches(answer.expert_id, ContextSource.DISTRIBUTION, lesson.domain)
    ]


def read_top_k(lesson: LessonFacts, standing: Standing) -> list[TopKRows]:
    """Each remote expert's top K over the rollout. Raises ValueError for one about another rollout."""
    found = []
    for answer in _teaching(lesson, standing):
        distribution = answer.distribution
        if isinstance(distribution, TopKDistribution):
            if len(distribution.token_ids) != len(lesson.token_ids):
                raise ValueError(f"{name(answer)} has {len(distribution.token_ids)} rows for another rollout")
            found.append(
                TopKRows(
                    expert=answer.expert,
                    weight=answer.weight,
                    token_ids=tuple(tuple(ids) for ids in distribution.token_ids),
                    logprobs=tuple(tuple(logprobs) for logprobs in distribution.logprobs),
                    tail_mass=tuple(distribution.tail_mass),
                    source=behind(answer, kind=ContextSource.DISTRIBUTION),
                )
            )
    return found


def read_samples(
    lesson: LessonFacts, standing: Standing, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary
) -> list[SampleRows]:
    """A black box's samples. Its continuations count as long as they are samples at the rollout's own states; the rest
    of them is text about states the policy did not visit, and is dropped."""
    found = []
    for answer in _teaching(lesson, standing):
        distribution = answer.distribution
        if not isinstance(distribution, SamplesDistribution):
            continue
        asked_at_random = distribution.probabilities is not None
        tokens = _read_continuations(lesson, distribution, tokenizer, vocabulary, follow=not asked_at_random)
        if not tokens:
            continue
        # a drawn place without tokens would count as if it cost nothing: then places have no probabilities
        drawn = asked_at_random and all(place in tokens for place in distribution.prefixes)
        probabilities = dict(zip(distribution.prefixes, distribution.probabilities or (), strict=asked_at_random))
        whole = not asked_at_random and all(step in tokens for step, action in enumerate(lesson.action_mask) if action)
        found.append(
            SampleRows(
                expert=answer.expert,
                weight=answer.weight,
                tokens={step: tuple(ids) for step, ids in sorted(tokens.items())},
                probabilities={step: probabilities[step] for step in sorted(tokens)} if drawn else {},
                whole=whole,
                source=behind(answer, kind=ContextSource.DISTRIBUTION),
            )
        )
    return found


def _read_continuations(
    lesson: LessonFacts,
    distribution: SamplesDistribution,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
    follow: bool,
) -> dict[int, list[int]]:
    """Next tokens by place: the first of each continuation, and, with `follow`, later ones while they agree with the
    rollout. Text counts only where tokenising it keeps the ids of its prefix, and ends the answer if empty. Raises
    ValueError for an unknown id."""
    tokens: dict[int, list[int]] = {}
    for prefix, continuations in zip(distribution.prefixes, distribution.continuations, strict=True):
        kept = list(lesson.token_ids[:prefix])
        for continuation in continuations:
            ids = continuation.token_ids
            if ids is None:
                whole = encode_text(tokenizer, decode_ids(tokenizer, kept) + (continuation.text or ""))
                if whole[:prefix] != kept:
                    continue
                ids = whole[prefix:] or [vocabulary.eos_token_ids[0]]
            if unknown := [token_id for token_id in ids if not 0 <= token_id < vocabulary.size]:
                raise ValueError(f"token id {unknown[0]} of a sample is outside the vocabulary of {vocabulary.size}")
            for step, token_id in zip(range(prefix, len(lesson.token_ids)), ids, strict=False):
                if not lesson.action_mask[step]:
                    break
                tokens.setdefault(step, []).append(token_id)
                if not follow or token_id != lesson.token_ids[step]:
                    break
    return tokens
