"""The answers of a lesson: which may train, and everyone behind them."""

from services.contracts.sources import ContextSource
from services.contracts.templates import Template
from services.store.ledger.lesson_facts import LessonAnswer, LessonFacts
from trainer.batch.rows import Source


def trusted(lesson: LessonFacts) -> list[LessonAnswer]:
    """The answers that may train: an expert that is not active has a weight of 0."""
    return [answer for answer in lesson.answers if answer.weight > 0]


def name(answer: LessonAnswer) -> str:
    """Its expert, as the ledger names it."""
    return f"{answer.expert}@{answer.expert_version}"


def rate(lesson: LessonFacts) -> float:
    """Its verdict; without one how likely it is right, where that is known; else 0."""
    return (lesson.score or 0.0) if lesson.opinion is None else lesson.opinion.chance


def raters(lesson: LessonFacts) -> tuple[LessonAnswer, ...]:
    """The answers that its rate rests on."""
    return lesson.judges if lesson.opinion is None else (lesson.opinion.answer,)


def behind(
    *answers: LessonAnswer,
    kind: ContextSource | None = None,
    template: Template | None = None,
    label: str | None = None,
) -> Source:
    """The answers and all that their experts were shown, each once. label: a name that comes first."""
    speakers = {speaker.answer_id: speaker for answer in reversed(answers) for speaker in reversed(answer.speakers)}
    ids = dict.fromkeys(answer.id for answer in answers)
    names = dict.fromkeys([*([] if label is None else [label]), *map(name, answers)])
    for speaker in (speaker for answer in answers for speaker in answer.speakers if speaker.answer_id not in ids):
        ids[speaker.answer_id] = None
        names[f"{speaker.expert}@{speaker.expert_version}, shown to another expert"] = None
    return Source(tuple(ids), tuple(names), tuple(speakers[i] for i in ids if i in speakers), kind, template)
