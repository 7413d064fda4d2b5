"""What each expert gave to a run: its share of the loss by kind of task and source, beside what it was measured to
teach. A share is no merit: the worst teacher may have the largest."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from uuid import UUID

from services.contracts.updates import TermRecord, UpdateDetail


@dataclass(frozen=True)
class Taught:
    """One expert's part in one domain. share: of the domain's loss; how: the source it was shown as, or the kind of
    its distribution."""

    domain: str
    how: str
    share: float
    num_lessons: int


@dataclass(frozen=True)
class ExpertWorth:
    """One expert. share: of the loss of all domains, 0..1; measured: what its sources were measured to teach."""

    name: str
    share: float
    taught: tuple[Taught, ...]
    measured: tuple[str, ...]


def weigh(
    experts: Sequence[tuple[UUID, str, Sequence[str]]], updates: Sequence[UpdateDetail], domains: Mapping[UUID, str]
) -> list[ExpertWorth]:
    """Every expert's part in these updates, the largest first; a term counts in equal parts for its speakers.

    experts: id, name, and what its sources were measured to teach. domains: by rollout.
    """
    shares: dict[tuple[UUID, str, str], list[float]] = defaultdict(list)
    lessons: dict[tuple[UUID, str, str], set[UUID]] = defaultdict(set)
    totals: dict[str, list[float]] = defaultdict(list)
    for update in updates:
        for lesson in update.lessons:
            domain = domains.get(lesson.rollout_id, "other")
            for term in lesson.terms:
                totals[domain].append(term.share)
                for expert_id, part in _speakers(term):
                    key = (expert_id, domain, _how(term))
                    shares[key].append(part)
                    lessons[key].add(lesson.lesson_id)
    whole = fsum(share for of_domain in totals.values() for share in of_domain)
    found = []
    for own_id, name, measured in experts:
        taught = [
            Taught(domain, how, fsum(parts) / (fsum(totals[domain]) or 1.0), len(lessons[expert_id, domain, how]))
            for (expert_id, domain, how), parts in sorted(shares.items(), key=lambda one: (one[0][1], -fsum(one[1])))
            if expert_id == own_id
        ]
        own = fsum(part for (expert_id, _, _), parts in shares.items() if expert_id == own_id for part in parts)
        found.append(ExpertWorth(name, own / (whole or 1.0), tuple(taught), tuple(measured)))
    return sorted(found, key=lambda one: (-one.share, one.name))


def _speakers(term: TermRecord) -> Iterator[tuple[UUID, float]]:
    """Each expert behind a term with its part of the term's share."""
    for speaker in term.speakers:
        yield speaker.expert_id, term.share / len(term.speakers)


def _how(term: TermRecord) -> str:
    return (term.kind.value if term.source is None else term.source.value).replace("_", " ")


def lines(found: Sequence[ExpertWorth]) -> Iterator[str]:
    """The same as text."""
    for one in found:
        yield f"{one.name}: {one.share:.0%} of |loss|" + ("" if one.measured else ", not measured")
        for part in one.taught:
            yield (
                f"  taught {part.domain} by {part.how}: {part.share:.0%} of its |loss|, "
                f"{part.num_lessons} lesson{'' if part.num_lessons == 1 else 's'}"
            )
        for line in one.measured:
            yield f"  {line}"
