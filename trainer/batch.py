"""From the store's lessons to typed rows: who says what about each token, and which rollouts are siblings.

Pure but for the tokenizer: no tensor, no weight, no clock. Everything here can be sent to another rank.

What the teacher is shown, first found: a person's correction of a rollout of an earlier group; the reference; another
expert's solution about this rollout; a successful sibling's answer. Sibling solutions need groups of 8 or more, which
are halved by the parity of their places: a half is shown solutions of the other half only and keeps a baseline of its
own, or the baseline would depend on the token it is subtracted for. Smaller groups have none, unless the baseline
does not come from siblings.

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
from services.errors import InvalidInput
from services.policy.modeling import decode_ids, encode_text, render_prompt
from services.store.lessons import EarlierCorrection, LessonAnswer, LessonFacts
from trainer.config import TrainerConfig
from trainer.corrections import find_departure

SUCCESS = 0.5  # a score from here on counts as solved
SMALLEST_HALVED_GROUP = 8
MAX_FEEDBACK_CHARS = 4_000  # of all experts together, in one context


@dataclass(frozen=True)
class Vocabulary:
    """What rows are checked against. max_positions: prompt and answer together."""

    size: int
    eos_token_ids: tuple[int, ...]
    max_positions: int


@dataclass(frozen=True)
class Source:
    """Where a term came from: the answers that made it, and in words."""

    answers: tuple[UUID, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Context:
    """What the teacher is shown in place of the rollout's own prompt. solution: the text shown, if any.

    from_rollout: it was computed from this very rollout, so crediting only later costs is a heuristic.
    from_sibling: it shows a sibling's answer, so the group must be halved.
    """

    prompt_ids: tuple[int, ...]
    sha256: str
    solution: str | None
    from_rollout: bool
    from_sibling: bool
    weight: float
    source: Source


@dataclass(frozen=True)
class TopKRows:
    """A remote expert's top K of every token of the rollout. Shapes: [T][K], tail_mass [T] in probability."""

    expert: str
    weight: float
    token_ids: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[float, ...], ...]
    tail_mass: tuple[float, ...]
    source: Source


@dataclass(frozen=True)
class SampleRows:
    """Next tokens a black-box expert drew, by token of the rollout. whole: every action token has some.

    probabilities: with what probability each drawn place was asked about; empty when the places were not drawn.
    """

    expert: str
    weight: float
    tokens: dict[int, tuple[int, ...]]
    probabilities: dict[int, float]
    whole: bool
    source: Source


@dataclass(frozen=True)
class LabelRow:
    """The token a person put at one place of the rollout."""

    expert: str
    weight: float
    step: int
    token_id: int
    source: Source


@dataclass(frozen=True)
class ImitationRow:
    """Tokens to learn by heart after the rollout's prompt, from `start` on; weight as an expert's."""

    expert: str
    weight: float
    token_ids: tuple[int, ...]
    start: int
    source: Source


@dataclass(frozen=True)
class Row:
    """One rollout of an update with everything that may train it.

    siblings, half: rollouts that share both have a baseline in common. credited: the future term applies.
    stopped: the policy ended its answer itself. staleness: policy versions since it was sampled, None if unknown.
    """

    lesson_id: UUID
    rollout_id: UUID
    group_id: UUID
    siblings: str
    half: int
    domain: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    action_mask: tuple[bool, ...]
    temperature: float
    sampler_logprobs: tuple[float, ...] | None
    credited: bool
    stopped: bool
    score: float | None
    staleness: int | None
    context: Context | None = None
    top_k: tuple[TopKRows, ...] = ()
    samples: tuple[SampleRows, ...] = ()
    labels: tuple[LabelRow, ...] = ()
    imitations: tuple[ImitationRow, ...] = ()

    @property
    def num_actions(self) -> int:
        """Tokens the policy chose."""
        return sum(self.action_mask)

    @property
    def covered(self) -> bool:
        """Whether an expert speaks on the whole rollout, or on places drawn from all of it."""
        return (
            self.context is not None
            or bool(self.top_k)
            or any(samples.whole or samples.probabilities for samples in self.samples)
        )

    @property
    def usable(self) -> bool:
        """Whether anything at all may train it."""
        return self.covered or bool(self.samples or self.labels or self.imitations)


@dataclass(frozen=True)
class Batch:
    """The rows of one update; invalid: lessons that mean nothing, with the reason."""

    rows: tuple[Row, ...]
    invalid: dict[UUID, str]

    def without(self, bad: dict[UUID, str]) -> "Batch":
        """The batch less the lessons in `bad`, which become invalid."""
        return Batch(tuple(row for row in self.rows if row.lesson_id not in bad), self.invalid | bad)


def hash_batch(lessons: Sequence[LessonFacts], corrections: Sequence[EarlierCorrection]) -> str:
    """The sha256 of what an update is made of: its lessons in order, their answers, and the corrections in view."""
    content = [[str(lesson.lesson_id), [str(answer.id) for answer in lesson.answers]] for lesson in lessons]
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
            row = _build_row(lesson, tokenizer, vocabulary, config, newest_version)
            context = _choose_context(lesson, siblings, corrections, tokenizer, vocabulary, config)
            rows.append(replace(row, context=context))
        except ValueError as error:
            invalid[lesson.lesson_id] = str(error)
        except InvalidInput as error:  # the chat template refuses the messages
            invalid[lesson.lesson_id] = error.detail
    return Batch(tuple(_halve(rows, lessons, config)), invalid)


def _build_row(
    lesson: LessonFacts,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
    config: TrainerConfig,
    newest_version: int,
) -> Row:
    """The row without its teacher's context. Raises ValueError where the lesson would mean nothing."""
    _check_tokens(lesson, vocabulary)
    sampling = lesson.sampling
    full_softmax = sampling is not None and sampling.top_p == 1 and sampling.top_k == 0
    labels, imitations = _read_corrections(lesson, tokenizer, vocabulary, config)
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
        temperature=1.0 if sampling is None else sampling.temperature,
        sampler_logprobs=lesson.sampler_logprobs,
        credited=lesson.sampler_logprobs is not None and full_softmax and not lesson.tokenized_at_ingest,
        stopped=lesson.finish_reason == "stop",
        score=lesson.score,
        staleness=None if lesson.policy_number is None else newest_version - lesson.policy_number,
        top_k=tuple(_read_top_k(lesson, config)),
        samples=tuple(_read_samples(lesson, tokenizer, config)),
        labels=tuple(labels),
        imitations=tuple(imitations),
    )


def _check_tokens(lesson: LessonFacts, vocabulary: Vocabulary) -> None:
    if not lesson.prompt_token_ids or not lesson.token_ids:
        raise ValueError("the rollout has no tokens")
    ids = (*lesson.prompt_token_ids, *lesson.token_ids)
    if min(ids) < 0 or max(ids) >= vocabulary.size:
        raise ValueError(f"a token id is outside the vocabulary of {vocabulary.size}")
    if len(ids) > vocabulary.max_positions:
        raise ValueError(f"prompt and answer have {len(ids)} tokens; the model reads {vocabulary.max_positions}")
    if not any(lesson.action_mask):
        raise ValueError("no token of the rollout is an action")


def _speaking(lesson: LessonFacts, config: TrainerConfig) -> list[tuple[LessonAnswer, float]]:
    """The answers that may train, with the trust in their experts."""
    weighed = [(answer, config.weight_of(answer.expert, answer.weight)) for answer in lesson.answers]
    return [(answer, weight) for answer, weight in weighed if weight > 0]


def _name(answer: LessonAnswer) -> str:
    return f"{answer.expert}@{answer.expert_version}"


def _source(*answers: LessonAnswer) -> Source:
    return Source(tuple(answer.id for answer in answers), tuple(_name(answer) for answer in answers))


# --- the teacher's context ---


@dataclass(frozen=True)
class _Shown:
    """A solution the teacher may be shown."""

    text: str
    weight: float
    source: Source
    from_rollout: bool = False
    from_sibling: bool = False


def _choose_context(
    lesson: LessonFacts,
    siblings: Sequence[LessonFacts],
    corrections: Sequence[EarlierCorrection],
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
    config: TrainerConfig,
) -> Context | None:
    """The teacher's prompt for one rollout; None where no answer gives it anything to say, or it would not fit."""
    own = [pair for pair in _speaking(lesson, config) if not pair[0].from_reference]
    remarks = [(answer, weight) for answer, weight in own if answer.feedback is not None]
    solution = _choose_solution(lesson, siblings, corrections, config)
    if solution is not None and config.template is Template.TURNS:
        remarks = []  # this template shows the solution alone, so that the whole group shares one context
    text = "\n\n".join(render_feedback(a.feedback) for a, _ in remarks if a.feedback)[:MAX_FEEDBACK_CHARS]
    if solution is None and not text.strip():
        return None
    weights = [weight for _, weight in remarks] + ([solution.weight] if solution else [])
    if config.conditioned_weight == 0:
        return None
    messages = build_teacher_messages(config.template, lesson.messages, solution.text if solution else None, text)
    prompt_ids = render_prompt(tokenizer, messages)
    if len(prompt_ids) + len(lesson.token_ids) > vocabulary.max_positions:
        return None
    said = _source(*(answer for answer, _ in remarks))
    computed = any(answer.feedback.computed_from_rollout for answer, _ in remarks if answer.feedback)
    return Context(
        prompt_ids=tuple(prompt_ids),
        sha256=hashlib.sha256(decode_ids(tokenizer, prompt_ids).encode()).hexdigest(),
        solution=strip_thinking(solution.text) if solution else None,
        from_rollout=computed or (solution is not None and solution.from_rollout),
        from_sibling=solution is not None and solution.from_sibling,
        weight=config.conditioned_weight * max(weights),
        source=Source(
            (*(solution.source.answers if solution else ()), *said.answers),
            (*(solution.source.names if solution else ()), *said.names),
        ),
    )


def _choose_solution(
    lesson: LessonFacts,
    siblings: Sequence[LessonFacts],
    corrections: Sequence[EarlierCorrection],
    config: TrainerConfig,
) -> _Shown | None:
    """The solution to show, in the order of preference; a late lesson has only what its own answer says."""
    if not lesson.late:
        for correction in reversed(corrections):
            weight = config.weight_of(correction.expert, correction.weight)
            if correction.task_id == lesson.task_id and correction.group_id < lesson.group_id and weight > 0:
                source = Source((correction.answer_id,), (f"{correction.expert}: an earlier correction",))
                return _Shown(correction.solution, weight, source)
    for answer, weight in _speaking(lesson, config):
        if answer.solution and not answer.corrected:
            if not answer.from_reference:
                return _Shown(answer.solution, weight, _source(answer), from_rollout=True)
            if config.solutions != "siblings":
                return _Shown(answer.solution, weight, _source(answer))
    if lesson.late or config.solutions == "reference":
        return None
    return _choose_sibling(lesson, siblings, config)


def _choose_sibling(lesson: LessonFacts, siblings: Sequence[LessonFacts], config: TrainerConfig) -> _Shown | None:
    halved = config.baseline == "leave_one_out"
    if halved and lesson.group_size < SMALLEST_HALVED_GROUP:
        return None
    for sibling in siblings:
        other_half = (sibling.index_in_group - lesson.index_in_group) % 2 == 1
        solved = sibling.score is not None and sibling.score >= SUCCESS
        if solved and sibling.rollout_id != lesson.rollout_id and (other_half or not halved):
            verdicts = [a for a, _ in _speaking(sibling, config) if a.score is not None and a.score >= SUCCESS]
            if not verdicts:
                continue
            source = _source(*verdicts)
            names = (f"sibling {sibling.rollout_id}", *source.names)
            return _Shown(sibling.text, 1.0, Source(source.answers, names), from_sibling=True)
    return None


def _halve(rows: Sequence[Row], lessons: Sequence[LessonFacts], config: TrainerConfig) -> list[Row]:
    """Rows of groups in which a sibling's answer is shown, numbered by their halves where the baseline needs it."""
    if config.baseline != "leave_one_out":
        return list(rows)
    index = {lesson.lesson_id: lesson.index_in_group for lesson in lessons}
    shown = {row.siblings for row in rows if row.context is not None and row.context.from_sibling}
    return [replace(row, half=index[row.lesson_id] % 2) if row.siblings in shown else row for row in rows]


# --- distributions and corrections ---


def _read_top_k(lesson: LessonFacts, config: TrainerConfig) -> list[TopKRows]:
    found = []
    for answer, weight in _speaking(lesson, config):
        distribution = answer.distribution
        if isinstance(distribution, TopKDistribution):
            if len(distribution.token_ids) != len(lesson.token_ids):
                raise ValueError(f"{_name(answer)} has {len(distribution.token_ids)} rows for another rollout")
            found.append(
                TopKRows(
                    expert=answer.expert,
                    weight=weight,
                    token_ids=tuple(tuple(ids) for ids in distribution.token_ids),
                    logprobs=tuple(tuple(logprobs) for logprobs in distribution.logprobs),
                    tail_mass=tuple(distribution.tail_mass),
                    source=_source(answer),
                )
            )
    return found


def _read_samples(lesson: LessonFacts, tokenizer: PreTrainedTokenizerBase, config: TrainerConfig) -> list[SampleRows]:
    found = []
    for answer, weight in _speaking(lesson, config):
        distribution = answer.distribution
        if not isinstance(distribution, SamplesDistribution):
            continue
        drawn = distribution.probabilities is not None
        tokens = _read_continuations(lesson, distribution, tokenizer, follow=not drawn)
        if not tokens:
            continue
        probabilities = dict(zip(distribution.prefixes, distribution.probabilities or (), strict=drawn))
        whole = not drawn and all(step in tokens for step, action in enumerate(lesson.action_mask) if action)
        found.append(
            SampleRows(
                expert=answer.expert,
                weight=weight,
                tokens=tokens,
                probabilities={step: probabilities[step] for step in tokens} if drawn else {},
                whole=whole,
                source=_source(answer),
            )
        )
    return found


def _read_continuations(
    lesson: LessonFacts, distribution: SamplesDistribution, tokenizer: PreTrainedTokenizerBase, follow: bool
) -> dict[int, tuple[int, ...]]:
    """Next tokens by place: the first of each continuation, and, to `follow`, later ones while they agree with the
    rollout. Text counts only where tokenising it keeps the ids of its prefix."""
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
            for step, token_id in enumerate(ids, start=prefix):
                if step >= len(lesson.token_ids) or not lesson.action_mask[step]:
                    break
                tokens.setdefault(step, []).append(token_id)
                if not follow or token_id != lesson.token_ids[step]:
                    break
    return {step: tuple(ids) for step, ids in sorted(tokens.items())}


def _read_corrections(
    lesson: LessonFacts, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, config: TrainerConfig
) -> tuple[list[LabelRow], list[ImitationRow]]:
    """A person's text in place of this rollout: a label where they departed, and the rest of it to imitate."""
    labels: list[LabelRow] = []
    imitations: list[ImitationRow] = []
    for answer, weight in _speaking(lesson, config):
        if not answer.corrected or not answer.solution:
            continue
        departure = find_departure(tokenizer, lesson.token_ids, answer.solution, vocabulary.eos_token_ids)
        if departure is None:
            continue
        if len(lesson.prompt_token_ids) + len(departure.token_ids) > vocabulary.max_positions:
            raise ValueError("the corrected answer is longer than the model reads")
        start = departure.num_kept
        if departure.label is not None and lesson.action_mask[start]:
            labels.append(LabelRow(answer.expert, weight, start, departure.label, _source(answer)))
            start += 1
        if start < len(departure.token_ids):
            imitations.append(ImitationRow(answer.expert, weight, departure.token_ids, start, _source(answer)))
    return labels, imitations


def solution_target(row: Row, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary) -> ImitationRow | None:
    """What `sft` learns in a row's place: the solution its teacher would be shown, to its end."""
    context = row.context
    if context is None or context.solution is None:
        return None
    ids = (*encode_text(tokenizer, context.solution), vocabulary.eos_token_ids[0])
    if len(row.prompt_ids) + len(ids) > vocabulary.max_positions:
        return None
    return ImitationRow("solution", context.weight, ids, 0, context.source)
