"""What the teacher is shown about each rollout, and which siblings share a baseline because of it.

The sources are gone through in their order (`SOURCE_ORDER`, or the setting `sources`), and the first is shown that has
something that teaches: own successes, corrections, other experts' solutions for this rollout, precedents, references,
feedback. Unmeasured precedents of other tasks come last, whatever the order. What is known about the task comes with
the claim (`Showable`); siblings' answers and what experts said about this very rollout come from the lessons. The
rollout itself is never shown.

A sibling's success may be shown to the other half of its group only: each half then has a baseline of its own, as the
baseline would else depend on the token that it is subtracted for. Groups of less than 8 are not halved.

Not covered: whether a source teaches (`services.store.loop.standing`), and scoring (`trainer.step.teacher`).
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from transformers import PreTrainedTokenizerBase

from services.contracts.answers import passes
from services.contracts.sources import ContextSource
from services.contracts.tasks import Precedent
from services.contracts.templates import Template, build_teacher_messages, render_feedback, strip_thinking
from services.policy.model.modeling import decode_ids, encode_text, render_prompt
from services.store.ledger.lesson_facts import LessonAnswer, LessonFacts
from services.store.loop.standing import Standing
from services.store.teaching.material import Material
from trainer.batch.answers import behind, rate, raters, trusted
from trainer.batch.rows import Context, Source, Vocabulary
from trainer.config import TrainerConfig

SMALLEST_HALVED_GROUP = 8
MAX_FEEDBACK_CHARS = 4_000  # of all experts together, in one context


@dataclass(frozen=True)
class Showable:
    """What may be shown about the tasks of an update: what there is, fixed given the prompt, and what of it teaches."""

    material: Mapping[UUID, Sequence[Material]] = field(default_factory=dict)
    standing: Standing = field(default_factory=Standing)

    def find(self, lesson: LessonFacts, source: ContextSource, config: TrainerConfig) -> Iterator["Piece"]:
        """What there is from this source and teaches, whatever the group answered."""
        for one in self.material.get(lesson.task_id, ()):
            if one.source is source and one.weight > 0:
                template = self.template(one.expert_id, source, lesson.domain, config)
                if template is not None:
                    own = Source(one.answers, one.names, one.speakers, source, template)
                    is_last = self.standing.is_last_resort(one.expert_id, source, lesson.domain)
                    yield Piece(own, one.weight, one.solution, one.precedents, is_last_resort=is_last)

    def template(self, expert_id: UUID, source: ContextSource, domain: str, config: TrainerConfig) -> Template | None:
        """How what this expert has from this source is shown; None where it does not teach."""
        return self.standing.template_for(expert_id, source, domain, config.template_of(source))


@dataclass(frozen=True)
class Piece:
    """Something to show. source: everyone behind it, where it came from, and the template. from_rollout: it was made
    for this very rollout. is_last_resort: it is shown only where there is nothing else."""

    source: Source
    weight: float
    solution: str | None = None
    precedents: tuple[Precedent, ...] = ()
    remarks: tuple[LessonAnswer, ...] = ()
    from_rollout: bool = False
    is_last_resort: bool = False

    @property
    def is_from_rollout(self) -> bool:
        """Whether it, or a remark in it, was computed from this very rollout."""
        return self.from_rollout or any(
            remark.feedback is not None and remark.feedback.computed_from_rollout for remark in self.remarks
        )

    def beside(self, remarks: Sequence[LessonAnswer]) -> "Piece":
        """The piece with feedback in the same prompt. It has the weight of the most trusted who speak in it."""
        said = behind(*remarks)
        source = replace(
            self.source,
            answers=(*self.source.answers, *said.answers),
            names=(*self.source.names, *said.names),
            speakers=(*self.source.speakers, *said.speakers),
        )
        weight = max(self.weight, *(remark.weight for remark in remarks))
        return replace(self, source=source, weight=weight, remarks=tuple(remarks))


class Contexts:
    """The teacher's contexts of an update."""

    def __init__(
        self,
        lessons: Sequence[LessonFacts],
        showable: Showable,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: Vocabulary,
        config: TrainerConfig,
        num_precedents: int,
    ) -> None:
        """lessons: all of the update. num_precedents: of those that an expert returns, how many are shown."""
        self._showable, self._config, self._num_precedents = showable, config, num_precedents
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._groups: dict[UUID, list[LessonFacts]] = {}
        for lesson in lessons:
            if not lesson.late:
                self._groups.setdefault(lesson.group_id, []).append(lesson)
        self._halved = {group_id for group_id, group in self._groups.items() if self._is_halved(group)}

    def half(self, lesson: LessonFacts) -> int:
        """The half of its group that the rollout belongs to; 0 for all of a group that is not halved."""
        return lesson.index_in_group % 2 if not lesson.late and lesson.group_id in self._halved else 0

    def choose(self, lesson: LessonFacts) -> tuple[Context, ...]:
        """The teacher's prompts for one rollout: one of what is shown first, or that and one of every remark. None
        where there is nothing to show, or where nothing would fit.

        Raises InvalidInput where the chat template refuses the messages.
        """
        remarks = self._find_remarks(lesson)
        apart = self._config.contexts == "per_expert"
        first = next(self._fit(lesson, remarks, apart=apart), None)
        made = [first] if first is not None else []
        if apart:
            alone = (self._make(lesson, self._say([remark])) for remark in remarks)
            made += [context for context in alone if context is not None]
        return tuple(made)

    def _is_halved(self, group: Sequence[LessonFacts]) -> bool:
        """Whether siblings' answers may be shown in this group.

        It depends on who scores the group and on what is fixed given the prompt, never on its answers: if it depended
        on a sibling's success, so would the baseline, and through it on the token it is subtracted for.
        """
        lesson = group[0]
        if lesson.group_size < SMALLEST_HALVED_GROUP:
            return False
        for source in self._config.order_of(lesson.domain):
            is_fixed = any(
                not piece.is_last_resort for piece in self._showable.find(lesson, source, self._config)
            ) or any(
                not (piece.from_rollout or piece.is_last_resort)
                for one in group
                for answer in trusted(one)
                for piece in self._quote(one, answer, source)
            )
            if source is ContextSource.OWN_SUCCESS and not is_fixed:
                experts = {answer.expert_id for one in group for answer in raters(one)}
                return any(
                    self._showable.template(one, source, lesson.domain, self._config) is not None for one in experts
                )
            if is_fixed or source is ContextSource.NOTHING:
                return False
        return False

    # --- what there is to show ---

    def _fit(self, lesson: LessonFacts, remarks: Sequence[LessonAnswer], *, apart: bool) -> Iterator[Context]:
        """What is shown first, and what would be in its place if there were no such thing, as far as it fits."""
        for piece in self._in_order(lesson, remarks, apart=apart):
            if piece.source.template is Template.REPROMPT and piece.source.kind is not ContextSource.FEEDBACK:
                piece = piece.beside(remarks) if remarks and not apart else piece
            if (context := self._make(lesson, piece)) is not None:
                yield context

    def _in_order(self, lesson: LessonFacts, remarks: Sequence[LessonAnswer], *, apart: bool) -> Iterable[Piece]:
        """Everything there is to show, what is shown first at the front; nothing comes after the plain prompt."""
        pieces = list[Piece]()
        for source in self._config.order_of(lesson.domain):
            if source is ContextSource.NOTHING:
                plain = Source((), ("nothing",), (), source)
                return [*sorted(pieces, key=lambda piece: piece.is_last_resort), Piece(plain, 1.0)]
            if source is not ContextSource.FEEDBACK:
                pieces += self._find(lesson, source)
            elif remarks and not apart:
                pieces.append(self._say(remarks))
        return sorted(pieces, key=lambda piece: piece.is_last_resort)

    def _find(self, lesson: LessonFacts, source: ContextSource) -> Iterator[Piece]:
        """What there is from this source; for a late lesson, only what its own answer says."""
        if not lesson.late:
            yield from self._showable.find(lesson, source, self._config)
            if source is ContextSource.OWN_SUCCESS and lesson.group_id in self._halved:
                yield from self._find_siblings(lesson)
        for answer in trusted(lesson):
            yield from self._quote(lesson, answer, source)

    def _find_siblings(self, lesson: LessonFacts) -> Iterator[Piece]:
        """Successes of the policy's own in the other half, the likeliest first, then the first of those alike; credited
        to the first of their verifiers, by their ids, whose own successes teach."""
        others = [one for one in self._groups[lesson.group_id] if (one.index_in_group - lesson.index_in_group) % 2 == 1]
        for sibling in sorted(others, key=rate, reverse=True):
            text, kind = strip_thinking(sibling.text), ContextSource.OWN_SUCCESS
            if sibling.shown or not passes(rate(sibling)) or not text:
                continue
            by = sorted(raters(sibling), key=lambda answer: (answer.expert_id, answer.id))
            for credited in by:
                template = self._showable.template(credited.expert_id, kind, lesson.domain, self._config)
                if template is not None:
                    label = f"sibling {sibling.rollout_id}"
                    yield Piece(behind(credited, *by, kind=kind, template=template, label=label), credited.weight, text)
                    break

    def _quote(self, lesson: LessonFacts, answer: LessonAnswer, source: ContextSource) -> Iterator[Piece]:
        """What an answer about this rollout offers from this source."""
        template = self._showable.template(answer.expert_id, source, lesson.domain, self._config)
        if template is None:
            return
        own = behind(answer, kind=source, template=template)
        if source is ContextSource.PRECEDENTS and answer.precedents:
            told = answer.precedents[: self._num_precedents]
            is_last = self._showable.standing.is_last_resort(answer.expert_id, source, lesson.domain)
            made_here = not answer.from_precedents
            yield Piece(own, answer.weight, precedents=told, from_rollout=made_here, is_last_resort=is_last)
        solution = "" if answer.solution is None or answer.corrected else strip_thinking(answer.solution)
        wanted = ContextSource.REFERENCE if answer.from_reference else ContextSource.SOLUTION
        if solution and source is wanted:
            yield Piece(own, answer.weight, solution, from_rollout=not answer.from_reference)

    def _find_remarks(self, lesson: LessonFacts) -> list[LessonAnswer]:
        """Feedback that may be shown, alone or beside something else."""
        kind = ContextSource.FEEDBACK
        if kind not in self._config.order_of(lesson.domain):
            return []
        return [
            answer
            for answer in trusted(lesson)
            if answer.feedback is not None
            and not answer.from_reference
            and render_feedback(answer.feedback).strip()
            and self._showable.template(answer.expert_id, kind, lesson.domain, self._config) is not None
        ]

    def _say(self, remarks: Sequence[LessonAnswer]) -> Piece:
        source = behind(*remarks, kind=ContextSource.FEEDBACK, template=Template.REPROMPT)
        return Piece(source, max(remark.weight for remark in remarks), remarks=tuple(remarks))

    # --- the teacher's prompt ---

    def _make(self, lesson: LessonFacts, piece: Piece) -> Context | None:
        """The context, unless it is too long to be followed by the rollout."""
        prompt_ids = self._render(lesson, piece)
        if len(prompt_ids) + len(lesson.token_ids) > self._vocabulary.max_positions:
            return None
        said = [remark.feedback for remark in piece.remarks if remark.feedback is not None]
        alone = piece.source.kind is ContextSource.FEEDBACK
        on_spans = alone and not any(feedback.text.strip() for feedback in said)
        return Context(
            prompt_ids=prompt_ids,
            sha256=hashlib.sha256(decode_ids(self._tokenizer, prompt_ids).encode()).hexdigest(),
            solution=piece.solution,
            spans=tuple((span.start, span.end) for feedback in said for span in feedback.spans) if on_spans else (),
            from_rollout=piece.is_from_rollout,
            weight=piece.weight,
            source=piece.source,
            solution_ids=() if piece.solution is None else self._encode(lesson, piece.solution),
        )

    def _render(self, lesson: LessonFacts, piece: Piece) -> tuple[int, ...]:
        if piece.source.template is None:
            return lesson.prompt_token_ids
        said = [remark.feedback for remark in piece.remarks if remark.feedback is not None]
        text = "\n\n".join(map(render_feedback, said))[:MAX_FEEDBACK_CHARS]
        messages = build_teacher_messages(
            piece.source.template, lesson.messages, piece.solution, text, piece.precedents
        )
        return tuple(render_prompt(self._tokenizer, messages))

    def _encode(self, lesson: LessonFacts, text: str) -> tuple[int, ...]:
        """The solution as an answer to the rollout's own prompt, with the token that ends it; empty if it is too
        long."""
        ids = (*encode_text(self._tokenizer, text), self._vocabulary.eos_token_ids[0])
        return ids if len(lesson.prompt_token_ids) + len(ids) <= self._vocabulary.max_positions else ()
