"""From the store's lessons to typed rows: each expert's terms, and which rollouts are siblings.

Pure but for the tokenizer: no tensor, no weight, no clock. The result can be sent to another rank.

The teacher is shown the first of these there is: a person's correction of a rollout of an earlier group; the reference;
another expert's solution for this rollout; a successful sibling's answer. Sibling solutions need groups of 8 or more.
Where one may be shown, the group is halved by the parity of places: each half is shown solutions of the other half only
and has a baseline of its own; otherwise the baseline would depend on the token it is subtracted for.

Not covered: scoring (`teacher`), costs (`losses`), claiming (`ledger`).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from transformers import PreTrainedTokenizerBase

from services.contracts.answers import SamplesDistribution, TopKDistribution
from services.contracts.templates import Template, build_teacher_messages, render_feedback, strip_thinking
from services.policy.model.modeling import decode_ids, encode_text, render_prompt
from services.runtime.errors import InvalidInput
from services.store.ledger.lessons import EarlierCorrection, LessonAnswer, LessonFacts
from trainer.batch.corrections import find_departure, find_learned
from trainer.batch.rows import (
    SUCCESS,
    Batch,
    Context,
    ImitationRow,
    LabelRow,
    Row,
    SampleRows,
    Source,
    TopKRows,
    Vocabulary,
)
from trainer.config import TrainerConfig

SMALLEST_HALVED_GROUP = 8
MAX_FEEDBACK_CHARS = 4_000  # of all experts together, in one context


def hash_batch(lessons: Sequence[LessonFacts], corrections: Sequence[EarlierCorrection]) -> str:
    """The sha256 of an update's input: its lessons in order with answers and verdicts, and the corrections they may be
    shown."""
    content = [
        [str(lesson.lesson_id), [str(answer.id) for answer in (*lesson.answers, *lesson.judges)], _rate(lesson)]
        for lesson in lessons
    ]
    shown = [str(correction.answer_id) for correction in corrections]
    return hashlib.sha256(json.dumps([content, shown]).encode()).hexdigest()


def build_batch(
    lessons: Sequence[LessonFacts],
    corrections: Sequence[EarlierCorrection],
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
    config: TrainerConfig,
    newest_version: int,
) -> Batch:
    """Rows for claimed lessons, in their order. newest_version: number of the newest policy version."""
    rows: list[Row] = []
    invalid: dict[UUID, str] = {}
    for lesson in lessons:
        siblings = [other for other in lessons if other.group_id == lesson.group_id and not other.late]
        try:
            row = _build_row(lesson, tokenizer, vocabulary, newest_version)
            contexts = _choose_contexts(lesson, siblings, corrections, tokenizer, vocabulary, config)
            rows.append(replace(row, contexts=tuple(contexts)))
        except ValueError as error:
            invalid[lesson.lesson_id] = str(error)
        except InvalidInput as error:  # the chat template refuses the messages
            invalid[lesson.lesson_id] = error.detail
    return Batch(tuple(_halve(rows, lessons, corrections, config)), invalid)


def _build_row(
    lesson: LessonFacts,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
    newest_version: int,
) -> Row:
    """The row without its teacher's contexts. Raises ValueError for a lesson that cannot be trained on."""
    _check_rollout(lesson, vocabulary)
    sampling = lesson.sampling
    full_softmax = sampling is not None and sampling.temperature > 0 and sampling.top_p == 1 and sampling.top_k == 0
    labels, imitations = _read_corrections(lesson, tokenizer, vocabulary)
    return Row(
        lesson_id=lesson.lesson_id,
        rollout_id=lesson.rollout_id,
        group_id=lesson.group_id,
        siblings=str(lesson.lesson_id if lesson.late else lesson.group_id),
        half=0,
        domain=lesson.domain,
        prompt_ids=lesson.prompt_token_ids,
        token_ids=lesson.token_ids,
        action_mask=lesson.action_mask,
        temperature=(sampling.temperature if sampling is not None else 0) or 1.0,  # greedy: its logprobs are those at 1
        sampler_logprobs=lesson.sampler_logprobs,
        credited=lesson.sampler_logprobs is not None and full_softmax and not lesson.tokenized_at_ingest,
        stopped=lesson.finish_reason == "stop",
        score=lesson.score,
        verdicts=_source(*lesson.judges),
        staleness=None if lesson.policy_number is None else newest_version - lesson.policy_number,
        top_k=tuple(_read_top_k(lesson)),
        samples=tuple(_read_samples(lesson, tokenizer, vocabulary)),
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
    if lesson.score is not None and not 0 <= lesson.score <= 1:
        raise ValueError(f"its score {lesson.score} lies outside 0..1")


def _trusted(lesson: LessonFacts) -> list[LessonAnswer]:
    """The answers that may train: an expert that is not active has a weight of 0."""
    return [answer for answer in lesson.answers if answer.weight > 0]


def _name(answer: LessonAnswer) -> str:
    return f"{answer.expert}@{answer.expert_version}"


def _source(*answers: LessonAnswer) -> Source:
    """The answers and all that their experts were shown, each once."""
    speakers = {speaker.answer_id: speaker for answer in reversed(answers) for speaker in reversed(answer.speakers)}
    ids = dict.fromkeys(answer.id for answer in answers)
    names = dict.fromkeys(_name(answer) for answer in answers)
    for speaker in (speaker for answer in answers for speaker in answer.speakers if speaker.answer_id not in ids):
        ids[speaker.answer_id] = None
        names[f"{speaker.expert}@{speaker.expert_version}, shown to another expert"] = None
    return Source(tuple(ids), tuple(names), tuple(speakers[i] for i in ids if i in speakers))


# --- the teacher's context ---


@dataclass(frozen=True)
class _Shown:
    """A solution the teacher may be shown."""

    text: str
    weight: float
    source: Source
    from_rollout: bool = False


def _choose_contexts(
    lesson: LessonFacts,
    siblings: Sequence[LessonFacts],
    corrections: Sequence[EarlierCorrection],
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
    config: TrainerConfig,
) -> list[Context]:
    """The teacher's prompts for one rollout: one of everything that was said, or one an answer. None where no answer
    gives it anything to say, or where it would not fit."""
    remarks = [answer for answer in _trusted(lesson) if answer.feedback is not None and not answer.from_reference]
    solution = _choose_solution(lesson, siblings, corrections, config)
    shown: list[tuple[_Shown | None, list[LessonAnswer]]]
    if config.contexts == "per_expert":
        shown = [(solution, [])] if solution is not None else []
        shown += [(None, [remark]) for remark in remarks]
    elif solution is not None and config.template is Template.TURNS:
        shown = [(solution, [])]  # this template shows the solution alone, so that the whole group shares one context
    else:
        shown = [(solution, remarks)]
    found = (_make_context(lesson, *one, tokenizer, vocabulary, config) for one in shown)
    return [context for context in found if context is not None]


def _make_context(
    lesson: LessonFacts,
    solution: _Shown | None,
    remarks: Sequence[LessonAnswer],
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
    config: TrainerConfig,
) -> Context | None:
    given = [answer.feedback for answer in remarks if answer.feedback is not None]
    text = "\n\n".join(map(render_feedback, given))[:MAX_FEEDBACK_CHARS]
    if solution is None and not text.strip():
        return None
    messages = build_teacher_messages(config.template, lesson.messages, solution.text if solution else None, text)
    prompt_ids = render_prompt(tokenizer, messages)
    if len(prompt_ids) + len(lesson.token_ids) > vocabulary.max_positions:
        return None
    on_spans = solution is None and not any(feedback.text.strip() for feedback in given)
    weights = [answer.weight for answer in remarks] + ([solution.weight] if solution else [])
    source = _source(*remarks)
    computed = any(feedback.computed_from_rollout for feedback in given)
    text_shown = strip_thinking(solution.text) if solution else None
    return Context(
        prompt_ids=tuple(prompt_ids),
        sha256=hashlib.sha256(decode_ids(tokenizer, prompt_ids).encode()).hexdigest(),
        solution=text_shown,
        solution_ids=() if text_shown is None else _encode_solution(lesson, text_shown, tokenizer, vocabulary),
        spans=tuple((span.start, span.end) for feedback in given for span in feedback.spans) if on_spans else (),
        from_rollout=computed or (solution is not None and solution.from_rollout),
        weight=max(weights),
        source=Source(
            (*(solution.source.answers if solution else ()), *source.answers),
            (*(solution.source.names if solution else ()), *source.names),
            (*(solution.source.speakers if solution else ()), *source.speakers),
        ),
    )


def _encode_solution(
    lesson: LessonFacts, text: str, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary
) -> tuple[int, ...]:
    """The solution as an answer to the rollout's own prompt, with the token that ends it; empty if it is too long."""
    ids = (*encode_text(tokenizer, text), vocabulary.eos_token_ids[0])
    return ids if len(lesson.prompt_token_ids) + len(ids) <= vocabulary.max_positions else ()


def _choose_solution(
    lesson: LessonFacts,
    siblings: Sequence[LessonFacts],
    corrections: Sequence[EarlierCorrection],
    config: TrainerConfig,
) -> _Shown | None:
    """The solution to show, in the order of preference; for a late lesson, only one from its own answer."""
    if not lesson.late and (shown := _find_correction(lesson, corrections)):
        return shown
    for answer in _trusted(lesson):
        if answer.solution and not answer.corrected:
            if not answer.from_reference:
                return _Shown(answer.solution, answer.weight, _source(answer), from_rollout=True)
            if config.solutions != "siblings":
                return _Shown(answer.solution, answer.weight, _source(answer))
    return _choose_sibling(lesson, siblings) if _may_show_siblings(lesson, config) else None


def _find_correction(lesson: LessonFacts, corrections: Sequence[EarlierCorrection]) -> _Shown | None:
    """A person's correction of a rollout of the same task in an earlier group."""
    for correction in reversed(corrections):
        is_earlier = correction.task_id == lesson.task_id and correction.group_id < lesson.group_id
        if is_earlier and correction.weight > 0:
            speakers = () if correction.speaker is None else (correction.speaker,)
            source = Source((correction.answer_id,), (f"{correction.expert}: an earlier correction",), speakers)
            return _Shown(correction.solution, correction.weight, source)
    return None


def _may_show_siblings(lesson: LessonFacts, config: TrainerConfig) -> bool:
    """Whether a sibling's success is shown where no better solution exists."""
    return not lesson.late and config.solutions != "reference" and lesson.group_size >= SMALLEST_HALVED_GROUP


def _choose_sibling(lesson: LessonFacts, siblings: Sequence[LessonFacts]) -> _Shown | None:
    """The likeliest success of the other half, the first of those alike."""
    others = [one for one in siblings if (one.index_in_group - lesson.index_in_group) % 2 == 1]
    best = max(others, key=_rate, default=None)
    if best is None or _rate(best) < SUCCESS:
        return None
    chosen_by = best.judges if best.opinion is None else (best.opinion.answer,)
    source = _source(*chosen_by)
    return _Shown(best.text, 1.0, replace(source, names=(f"sibling {best.rollout_id}", *source.names)))


def _rate(lesson: LessonFacts) -> float:
    """Its verdict; without one how likely it is right, where that is known; else 0."""
    return (lesson.score or 0.0) if lesson.opinion is None else lesson.opinion.chance


def _halve(
    rows: Sequence[Row],
    lessons: Sequence[LessonFacts],
    corrections: Sequence[EarlierCorrection],
    config: TrainerConfig,
) -> list[Row]:
    """Rows of groups that may be shown siblings' answers, numbered by their halves where the baseline needs it.

    The decision depends on whether the group is scored and has no solution from elsewhere, never on its answers: if it
    depended on a sibling's success, so would the baseline, which would then depend on the token it is subtracted for.
    """
    of_row = {lesson.lesson_id: lesson for lesson in lessons}
    scored = {row.siblings for row in rows if row.score is not None or of_row[row.lesson_id].opinion is not None}
    open_to = {
        row.siblings
        for row in rows
        if row.siblings in scored
        and _may_show_siblings(of_row[row.lesson_id], config)
        and not _has_fixed_solution(of_row[row.lesson_id], corrections, config)
    }
    return [
        replace(row, half=of_row[row.lesson_id].index_in_group % 2) if row.siblings in open_to else row for row in rows
    ]


def _has_fixed_solution(lesson: LessonFacts, corrections: Sequence[EarlierCorrection], config: TrainerConfig) -> bool:
    """Whether it is shown an earlier correction or the reference, whatever its siblings answered."""
    referred = any(answer.from_reference and answer.solution for answer in _trusted(lesson))
    return (referred and config.solutions != "siblings") or _find_correction(lesson, corrections) is not None


# --- distributions and corrections ---


def _read_top_k(lesson: LessonFacts) -> list[TopKRows]:
    found = []
    for answer in _trusted(lesson):
        distribution = answer.distribution
        if isinstance(distribution, TopKDistribution):
            if len(distribution.token_ids) != len(lesson.token_ids):
                raise ValueError(f"{_name(answer)} has {len(distribution.token_ids)} rows for another rollout")
            found.append(
                TopKRows(
                    expert=answer.expert,
                    weight=answer.weight,
                    token_ids=tuple(tuple(ids) for ids in distribution.token_ids),
                    logprobs=tuple(tuple(logprobs) for logprobs in distribution.logprobs),
                    tail_mass=tuple(distribution.tail_mass),
                    source=_source(answer),
                )
            )
    return found


def _read_samples(lesson: LessonFacts, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary) -> list[SampleRows]:
    """A black box's samples. Its continuations count as long as they are samples at the rollout's own states; the rest
    of them is text about states the policy did not visit, and is dropped."""
    found = []
    for answer in _trusted(lesson):
        distribution = answer.distribution
        if not isinstance(distribution, SamplesDistribution):
            continue
        drawn = distribution.probabilities is not None
        tokens = _read_continuations(lesson, distribution, tokenizer, vocabulary, follow=not drawn)
        if not tokens:
            continue
        probabilities = dict(zip(distribution.prefixes, distribution.probabilities or (), strict=drawn))
        whole = not drawn and all(step in tokens for step, action in enumerate(lesson.action_mask) if action)
        found.append(
            SampleRows(
                expert=answer.expert,
                weight=answer.weight,
                tokens={step: tuple(ids) for step, ids in sorted(tokens.items())},
                probabilities={step: probabilities[step] for step in sorted(tokens)} if drawn else {},
                whole=whole,
                source=_source(answer),
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
    rollout. Text counts only where tokenising it keeps the ids of its prefix. Raises ValueError for an unknown id."""
    tokens: dict[int, list[int]] = {}
    for prefix, continuations in zip(distribution.prefixes, distribution.continuations, strict=True):
        kept = list(lesson.token_ids[:prefix])
        for continuation in continuations:
            ids = continuation.token_ids
            if ids is None:
                whole = encode_text(tokenizer, decode_ids(tokenizer, kept) + (continuation.text or ""))
                if whole[:prefix] != kept or len(whole) == prefix:
                    continue
                ids = whole[prefix:]
            if unknown := [token_id for token_id in ids if not 0 <= token_id < vocabulary.size]:
                raise ValueError(f"token id {unknown[0]} of a sample is outside the vocabulary of {vocabulary.size}")
            for step, token_id in zip(range(prefix, len(lesson.token_ids)), ids, strict=False):
                if not lesson.action_mask[step]:
                    break
                tokens.setdefault(step, []).append(token_id)
                if not follow or token_id != lesson.token_ids[step]:
                    break
    return tokens


def _read_corrections(
    lesson: LessonFacts, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary
) -> tuple[list[LabelRow], list[ImitationRow]]:
    """A person's text in place of this rollout: a label where they departed, and the rest of it to imitate."""
    labels: list[LabelRow] = []
    imitations: list[ImitationRow] = []
    for answer in _trusted(lesson):
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
        learned = find_learned(lesson.token_ids, lesson.action_mask, departure)
        if departure.label is not None and lesson.action_mask[place]:
            labels.append(LabelRow(answer.expert, answer.weight, place, departure.label, _source(answer)))
            learned = (*learned[:place], False, *learned[place + 1 :])
        if any(learned):
            imitations.append(ImitationRow(answer.expert, answer.weight, departure.token_ids, learned, _source(answer)))
    return labels, imitations
