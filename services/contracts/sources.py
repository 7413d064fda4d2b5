"""What a teacher may be shown: where it came from, and the context a draw was made after."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Final, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.contracts.base import Contract, Float
from services.contracts.tasks import Message
from services.contracts.templates import Template


class ContextSource(StrEnum):
    """Where what teaches came from: the material of a teacher's context, or an expert's own distribution.

    `own_success`: an answer of the policy to this task that a verifier certified. `correction`: a person's. `solution`:
    an expert's for this very rollout. `precedents`: questions and right answers of other tasks. `reference`: the task's
    own. `feedback`: text about the rollout. `distribution`: an expert's top K or samples, which no context shows;
    `nothing`: the plain prompt, which teaches sharpness alone.
    """

    OWN_SUCCESS = "own_success"
    CORRECTION = "correction"
    SOLUTION = "solution"
    PRECEDENTS = "precedents"
    REFERENCE = "reference"
    FEEDBACK = "feedback"
    DISTRIBUTION = "distribution"
    NOTHING = "nothing"


SOURCE_ORDER: Final = (
    ContextSource.OWN_SUCCESS,
    ContextSource.CORRECTION,
    ContextSource.SOLUTION,
    ContextSource.PRECEDENTS,
    ContextSource.REFERENCE,
    ContextSource.FEEDBACK,
)
"""The order in which a context is looked for; the first source that has material and teaches is shown."""


ONLY_TEMPLATE: Final = {
    ContextSource.PRECEDENTS: Template.TURNS,
    ContextSource.FEEDBACK: Template.REPROMPT,
    ContextSource.DISTRIBUTION: Template.TURNS,
}
"""The template of sources that only one can show; a distribution is not shown at all, and has one in name."""


def templates_of(source: ContextSource) -> Sequence[Template]:
    """The templates that the source is shown by, each measured by itself."""
    return [ONLY_TEMPLATE[source]] if source in ONLY_TEMPLATE else list(Template)


class ContextSettings(BaseModel):
    """How contexts are chosen, for the trainer's rows and for teachers that draw alike."""

    model_config = ConfigDict(frozen=True)

    sources: dict[str, tuple[ContextSource, ...]] = {}
    """In which order a teacher's context is looked for, by domain, `*` for all others:
    PRECEPTOR_TRAINER_SOURCES='{"tool-call": ["own_success", "precedents"], "*": ["reference"]}'. Sources left out are
    not shown; `nothing` is the plain prompt. By default: own successes, corrections, other experts' solutions,
    precedents, the reference, feedback. Workers read it too, for teachers that draw."""
    template: Template = Template.TURNS
    """How the teacher's prompt is built where no measurement has chosen: the solution as an earlier turn, or all of it
    inside the question. Workers read it too."""

    @model_validator(mode="after")
    def _sources_are_shown_once(self) -> Self:
        for domain, order in self.sources.items():
            if len(set(order)) < len(order) or ContextSource.DISTRIBUTION in order:
                raise ValueError(f"sources: {domain} names one twice, or `distribution`, which no context shows")
        return self

    def order_of(self, domain: str) -> Sequence[ContextSource]:
        """The order in which contexts are looked for in this domain."""
        return self.sources.get(domain, self.sources.get("*", SOURCE_ORDER))

    def template_of(self, source: ContextSource) -> Template:
        """How a source is shown where no measurement has chosen."""
        return ONLY_TEMPLATE.get(source, self.template)


class Arm(StrEnum):
    """Who draws: the `student` after the plain prompt, the `teacher` after a context, or the `control` after the same
    thing from another task."""

    STUDENT = "student"
    TEACHER = "teacher"
    CONTROL = "control"


class ShownContext(Contract):
    """The messages that a draw follows in place of its task's own, and what they were made of.

    messages: empty after an answer behind them was withdrawn. answers: those behind what is shown. quotes: the metadata
    keys of tasks that the messages may quote. temperature: of these draws; none: that of the group's own.
    measurement_id: the measurement that the draw belongs to, and `arm` its part in it; none for a roll-in.
    """

    source: ContextSource
    template: Template
    messages: list[Message]
    answers: list[UUID] = []
    quotes: list[str] = []
    temperature: Annotated[Float, Field(gt=0, le=10)] | None = None
    measurement_id: UUID | None = None
    arm: Arm = Arm.TEACHER
