"""The spans of an update: its own, linked with every lesson it used, and one for each lesson in its group's trace."""

from services.runtime.tracing import Tracing, place_of
from trainer.loop.ledger import Claim


def trace_update(tracing: Tracing, claim: Claim, began: int, ended: int) -> None:
    """Record the update and its lessons. Times in nanoseconds since 1970."""
    update = place_of(claim.update_id, claim.update_id)
    tracing.record(
        "update",
        update,
        began=began,
        ended=ended,
        attributes={"preceptor.update": claim.number, "preceptor.lessons": len(claim.lessons)},
        links=[place_of(fact.group_id, fact.lesson_id) for fact in claim.lessons],
    )
    for fact in claim.lessons:
        tracing.record(
            "lesson",
            place_of(fact.group_id, fact.lesson_id),
            began=began,
            ended=ended,
            parent=place_of(fact.group_id, fact.rollout_id),
            attributes={
                "preceptor.lesson": str(fact.lesson_id),
                "preceptor.rollout": str(fact.rollout_id),
                "preceptor.update": claim.number,
            },
            links=[update],
        )
