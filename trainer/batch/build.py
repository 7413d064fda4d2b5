"""From the store's lessons to typed rows: each expert's terms, and which rollouts are siblings.

Pure but for the tokenizer: no tensor, no weight, no clock. The result can be sent to another rank.

A rollout that the teacher drew trains the local term alone: it has no sampler's log-probabilities, no score, no part in
a baseline, and is no sibling's example.

Not covered: what the teacher is shown (`contexts`), scoring (`teacher`), costs (`losses`), claiming (`ledger`).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from transformers import PreTrainedTokenizerBase

from services.contracts.sources import ContextSource
from services.runtime.errors import InvalidInput
from services.runtime.settings import Settings
from services.store.ledger.lesson_facts import LessonAnswer, LessonFacts
from trainer.batch.answers import behind, rate, raters, trusted
from trainer.batch.contexts import Contexts, Showable
from trainer.batch.corrections import find_departure, find_learned
from trainer.batch.distributions import read_samples, read_top_k
from trainer.batch.rows import ROLLED_IN, Batch, ImitationRow, LabelRow, Row, Vocabulary
from trainer.config import TrainerConfig


def hash_batch(lessons: Sequence[LessonFacts], showable: Showable) -> str:
    """The sha256 of an update's input: its lessons in order with answers, verdicts and what their teachers were shown,
    what may be shown about their tasks, and what of it teaches. Answers and material come with their weights."""
    content = [
        [
            str(lesson.lesson_id),
            [[_spell(one) for one in said] for said in (lesson.answers, raters(lesson), lesson.shown_after)],
            repr(rate(lesson)),
        ]
        for lesson in lessons
    ]
    material = [
        [
            str(task_id),
            [
                [
                    one.source,
                    str(one.expert_id),
                    repr(one.weight),
                    [str(i) for i in one.answers],
                    [precedent.model_dump(mode="json") for precedent in one.precedents],
                ]
                for one in own
            ],
        ]
        for task_id, own in sorted(showable.material.items())
    ]
    return hashlib.sha256(json.dumps([content, material, showable.standing.spell()]).encode()).hexdigest()


def _spell(answer: LessonAnswer) -> list[object]:
    """What an update has of an answer: itself, its weight, and those of its precedents that may be shown."""
    precedents = [precedent.model_dump(mode="json") for precedent in answer.precedents]
    return [str(answer.id), repr(answer.weight), precedents]


def build_batch(
    lessons: Sequence[LessonFacts],
    showable: Showable,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
    config: TrainerConfig,
    settings: Settings,
    newest_version: int,
) -> Batch:
    """Rows for claimed lessons, in their order. newest_version: number of the newest policy version. Of the settings:
    the teacher's temperature, and how many precedents it is shown."""
    contexts = Contexts(lessons, showable, tokenizer, vocabulary, config, settings.precedents)
    builder = _Builder(contexts, showable, tokenizer, vocabulary, newest_version)
    rows: list[Row] = []
    invalid: dict[UUID, str] = {}
    for lesson in lessons:
        try:
            rows.append(builder.build(lesson))
        except ValueError as error:
            invalid[lesson.lesson_id] = str(error)
        except InvalidInput as error:  # the chat template refuses the messages
            invalid[lesson.lesson_id] = error.detail
    return Batch(tuple(rows), invalid)


@dataclass(frozen=True)
class _Builder:
    """What rows are built with."""

    contexts: Contexts
    showable: Showable
    tokenizer: PreTrainedTokenizerBase
    vocabulary: Vocabulary
    newest_version: int

    def build(self, lesson: LessonFacts) -> Row:
        """The row. Raises ValueError for a lesson that cannot be trained on, InvalidInput where the chat template
        refuses its messages."""
        _check_rollout(lesson, self.vocabulary)
        sampling = lesson.sampling
        full_softmax = sampling is not None and sampling.temperature > 0 and sampling.top_p == 1 and sampling.top_k == 0
        known = lesson.sampler_logprobs is not None and full_softmax and not lesson.tokenized_at_ingest
        labels, imitations = _read_corrections(lesson, self.tokenizer, self.vocabulary)
        return Row(
            lesson_id=lesson.lesson_id,
            rollout_id=lesson.rollout_id,
            group_id=lesson.group_id,
            siblings=str(lesson.lesson_id if lesson.late else lesson.group_id),
            half=ROLLED_IN if lesson.shown else self.contexts.half(lesson),
            domain=lesson.domain,
            prompt_ids=lesson.prompt_token_ids,
            token_ids=lesson.token_ids,
            action_mask=lesson.action_mask,
            temperature=(sampling.temperature if sampling is not None else 0) or 1.0,  # greedy: logprobs are those at 1
            sampler_logprobs=lesson.sampler_logprobs,
            credited=known,
            stopped=lesson.finish_reason == "stop",
            score=lesson.score,
            verdicts=behind(*lesson.judges),
            drawn_after=behind(*lesson.shown_after),
            staleness=None if lesson.policy_number is None else self.newest_version - lesson.policy_number,
            contexts=self.contexts.choose(lesson),
            top_k=tuple(read_top_k(lesson, self.showable.standing)),
            samples=tuple(read_samples(lesson, self.showable.standing, self.tokenizer, self.vocabulary)),
            labels=tuple(labels),
            imitations=tuple(imitations),
        )


def _check_rollout(lesson: LessonFacts, vocabulary: Vocabulary) -> None:
    if not lesson.prompt_token_ids or not lesson.token_ids:
        raise ValueError("the rollout has no tokens")
    ids = (*lesson.prompt_token_ids, *lesson.token_ids)
    if min(ids) < 0 or max(ids) >= vocabulary.size:
        raise ValueError(f"a token id is outside the vocabulary of {vocabulary.size}")
    if len(ids) > vocabulary.max_positions:
        raise ValueError(f"prompt and answer have {len(ids)} tokens; the model reads {vocabulary.max_positions}")
    if len(lesson.action_mask) != len(lesson.token_ids):
        raise ValueError(f"the action mask has {len(lesson.action_mask)} entries for {len(lesson.token_ids)} tokens")
    if not any(lesson.action_mask):
        raise ValueError("no token of the rollout is an action")
    if lesson.sampler_logprobs is not None and len(lesson.sampler_logprobs) != len(lesson.token_ids):
        raise ValueError(f"{len(lesson.sampler_logprobs)} sampler logprobs for {len(lesson.token_ids)} tokens")
    if any(answer.weight == 0 for answer in lesson.shown_after):
        raise ValueError("what its teacher was shown does not count any more")
    if lesson.score is not None and not 0 <= lesson.score <= 1:
        raise ValueError(f"its score {lesson.score} lies outside 0..1")


def _read_corrections(
    lesson: LessonFacts, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary
) -> tuple[list[LabelRow], list[ImitationRow]]:
    """A person's text in place of this rollout: a label where they departed, and the rest of it to imitate."""
    labels: list[LabelRow] = []
    imitations: list[ImitationRow] = []
    for answer in trusted(lesson):
        if not answer.corrected or not answer.solution:
            continue
        departure = find_departure(
            tokenizer, lesson.token_ids, answer.solution, vocabulary.eos_token_ids, lesson.answer_start
        )
        if departure is None:
            continue
        if len(lesson.prompt_token_ids) + len(departure.token_ids) > vocabulary.max_positions:
            raise ValueError("the corrected answer is longer than the model reads")
        place = departure.num_kept
        source = behind(answer, kind=ContextSource.CORRECTION)
        learned = find_learned(lesson.token_ids, lesson.action_mask, departure)
        if departure.label is not None and lesson.action_mask[place]:
            labels.append(LabelRow(answer.expert, answer.weight, place, departure.label, source))
            learned = (*learned[:place], False, *learned[place + 1 :])
        if any(learned):
            imitations.append(ImitationRow(answer.expert, answer.weight, departure.token_ids, learned, source))
    return labels, imitations
