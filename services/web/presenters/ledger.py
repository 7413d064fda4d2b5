"""The sources of an update, summed over its lessons."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.contracts.updates import UpdateLesson


@dataclass(frozen=True)
class SourceShare:
    """One source's contribution to an update: its number of lessons, and its share of the loss, 0..1."""

    name: str
    kind: str
    num_lessons: int
    share: float


def weigh_sources(lessons: Sequence[UpdateLesson]) -> list[SourceShare]:
    """The sources of an update's terms, the largest share first."""
    found: dict[tuple[str, str], tuple[int, float]] = {}
    for lesson in lessons:
        for term in lesson.terms:
            key = (", ".join(term.sources) or "unnamed", term.kind.value)
            num, share = found.get(key, (0, 0.0))
            found[key] = (num + 1, share + term.share)
    ordered = sorted(found.items(), key=lambda item: (-item[1][1], item[0]))
    return [SourceShare(name, kind, num, share) for (name, kind), (num, share) in ordered]
