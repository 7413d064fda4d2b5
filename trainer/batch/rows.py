"""The rows of an update: rollouts with everything that may train them, typed and free of the store.

No tensor, no weight, no clock: everything here can be sent to another rank.
"""

from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from services.contracts.answers import passes
from services.contracts.sources import ContextSource
from services.contracts.templates import Template
from services.contracts.updates import Speaker

ROLLED_IN = 2  # in place of a half, for rollouts that the teacher drew: none of the policy's own shares it


@dataclass(frozen=True)
class Vocabulary:
    """The limits that rows must keep. max_positions: of prompt and answer together."""

    size: int
    eos_token_ids: tuple[int, ...]
    max_positions: int


@dataclass(frozen=True)
class Source:
    """Where a term came from: its answers, their experts' names, and everyone whose words are in it.

    kind: of what it was made; None for a score. template: how a teacher is shown it, where one is.
    """

    answers: tuple[UUID, ...]
    names: tuple[str, ...]
    speakers: tuple[Speaker, ...] = ()
    kind: ContextSource | None = None
    template: Template | None = None

    def drawn_after(self, drawn: "Source") -> "Source":
        """This source with everyone behind what the teacher was shown that drew the rollout, each once."""
        others = [speaker for speaker in drawn.speakers if speaker.answer_id not in self.answers]
        names = [f"{one.expert}@{one.expert_version}, shown to the teacher that drew the rollout" for one in others]
        return replace(
            self,
            answers=(*self.answers, *(one.answer_id for one in others)),
            names=(*self.names, *dict.fromkeys(names)),
            speakers=(*self.speakers, *others),
        )


NOBODY: Final = Source((), ())


@dataclass(frozen=True)
class Context:
    """The prompt that the teacher is shown in place of the rollout's own. solution: the text in it, if any.

    spans: tokens [start, end) of the rollout that it is about; none means all of them.
    from_rollout: it was computed from this very rollout, so crediting only later costs is a heuristic.
    solution_ids: the solution's tokens, to its end; empty without one, or where it is too long after the prompt.
    """

    prompt_ids: tuple[int, ...]
    sha256: str
    solution: str | None
    spans: tuple[tuple[int, int], ...]
    from_rollout: bool
    weight: float
    source: Source
    solution_ids: tuple[int, ...] = ()


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

    probabilities: with which each place was drawn; empty when the places were not drawn.
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
    """A text to imitate after the rollout's prompt, at its `learned` tokens; weight as an expert's."""

    expert: str
    weight: float
    token_ids: tuple[int, ...]
    learned: tuple[bool, ...]
    source: Source

    @property
    def num_learned(self) -> int:
        """How many tokens are learned."""
        return sum(self.learned)


@dataclass(frozen=True)
class Row:
    """One rollout of an update with everything that may train it.

    siblings, half: rollouts that share both have a baseline in common. credited: the future term applies. temperature:
    that the student is read at.
    stopped: the policy ended its answer itself. verdicts: the answers behind the score. staleness: policy versions
    since it was sampled, None if unknown. drawn_after: what the teacher was shown that drew it; nothing where the
    policy did.
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
    verdicts: Source
    staleness: int | None
    drawn_after: Source = NOBODY
    contexts: tuple[Context, ...] = ()
    top_k: tuple[TopKRows, ...] = ()
    samples: tuple[SampleRows, ...] = ()
    labels: tuple[LabelRow, ...] = ()
    imitations: tuple[ImitationRow, ...] = ()

    @property
    def late(self) -> bool:
        """Whether it comes alone, after its group was trained on."""
        return self.siblings != str(self.group_id)

    @property
    def num_actions(self) -> int:
        """Tokens the policy chose."""
        return sum(self.action_mask)

    @property
    def rolled_in(self) -> bool:
        """Whether the teacher drew it, in place of the policy."""
        return self.half == ROLLED_IN

    @property
    def followed(self) -> bool:
        """Whether our own teacher has a context for the whole rollout."""
        return any(not context.spans for context in self.contexts)

    @property
    def covered(self) -> bool:
        """Whether an expert covers the whole rollout, or places drawn from all of it."""
        return (
            self.followed or bool(self.top_k) or any(samples.whole or samples.probabilities for samples in self.samples)
        )

    @property
    def taught(self) -> bool:
        """Whether any expert has a term on the rollout, or a text in its place."""
        return self.covered or bool(self.contexts or self.samples or self.labels or self.imitations)

    @property
    def solved(self) -> bool:
        """Whether it was scored a success."""
        return passes(self.score)

    def spoken_about(self, context: Context) -> tuple[int, ...]:
        """The action tokens that a context on spans is about, by their places."""
        places = {step for start, end in context.spans for step in range(start, min(end, len(self.token_ids)))}
        return tuple(step for step in sorted(places) if self.action_mask[step])


@dataclass(frozen=True)
class Batch:
    """The rows of one update. invalid: lessons that cannot be trained on, with the reason."""

    rows: tuple[Row, ...]
    invalid: dict[UUID, str]

    def without(self, bad: dict[UUID, str]) -> "Batch":
        """The batch without the lessons in `bad`, which become invalid."""
        return Batch(tuple(row for row in self.rows if row.lesson_id not in bad), self.invalid | bad)
