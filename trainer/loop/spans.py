"""The spans of an update: its own, linked with every lesson it used, and one for each lesson in its group's trace."""

from services.runtime.tracing import Span, place_of
from trainer.loop.ledger import Claim


def trace_update(claim: Claim, began: int, ended: int) -> list[Span]:
    """The update first, then its lessons. Times in nanoseconds since 1970."""
    place = place_of(claim.update_id, claim.update_id)
    lessons = [
        Span(
            name="lesson",
            place=place_of(fact.group_id, fact.lesson_id),
            parent=place_of(fact.group_id, fact.rollout_id),
            began=began,
            ended=ended,
            attributes={"preceptor.lesson": str(fact.lesson_id), "preceptor.update": claim.number},
            links=[place],
        )
        for fact in claim.lessons
    ]
    update = Span(
        name="update",
        place=place,
        began=began,
        ended=ended,
        attributes={"preceptor.update": claim.number, "preceptor.lessons": len(lessons)},
        links=[lesson.place for lesson in lessons],
    )
    return [update, *lessons]
