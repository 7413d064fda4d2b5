"""Tasks without a judge: no active verifier covers their domain, or they lack the metadata that it needs."""

from collections.abc import Iterable, Iterator
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.contracts.experts import Descriptor
from services.store.loop import trust
from services.store.tables.loop import ExpertRow

HINT = "Their rollouts get no score until a verifier does (docs/bring-an-expert.md)."


def explain_tasks(session: Session, lineage_id: UUID, tasks: Iterable[tuple[str, frozenset[str]]]) -> list[str]:
    """Sentences about domains with tasks that no verifier can judge. tasks: domain and metadata keys of each."""
    verifiers = _find_verifiers(session, lineage_id)
    found = []
    for domain, keys in sorted(set(tasks), key=lambda one: (one[0], sorted(one[1]))):
        reasons = list(_explain(verifiers, domain, keys))
        if None not in reasons:
            why = " and ".join(filter(None, reasons)) or "no active verifier covers it"
            found.append(f"tasks of the domain {domain} cannot be judged: {why}. {HINT}")
    return list(dict.fromkeys(found))


def find_judged(session: Session, lineage_id: UUID, domains: Iterable[str]) -> set[str]:
    """Those of these domains that an active verifier covers."""
    verifiers = _find_verifiers(session, lineage_id)
    return {domain for domain in domains if any(descriptor.matches(domain) for descriptor, _ in verifiers)}


def explain_domains(session: Session, lineage_id: UUID, domains: Iterable[str]) -> list[str]:
    """A sentence for each of these domains that no active verifier covers."""
    named = set(domains)
    uncovered = named - find_judged(session, lineage_id, named)
    return [f"no active verifier covers the domain {domain}. {HINT}" for domain in sorted(uncovered)]


def _find_verifiers(session: Session, lineage_id: UUID) -> list[tuple[Descriptor, frozenset[str]]]:
    """Active verifiers, and the metadata keys each was granted."""
    rows = session.scalars(select(ExpertRow).where(ExpertRow.lineage_id == lineage_id, trust.may_train(ExpertRow)))
    read = ((Descriptor.model_validate(row.descriptor), frozenset(row.granted)) for row in rows.all())
    return [(descriptor, granted) for descriptor, granted in read if descriptor.verifier]


def _explain(
    verifiers: list[tuple[Descriptor, frozenset[str]]], domain: str, keys: frozenset[str]
) -> Iterator[str | None]:
    """Why each verifier of the domain cannot judge such a task; None for one that can."""
    for descriptor, granted in verifiers:
        if not descriptor.matches(domain):
            continue
        needed = set(descriptor.metadata_keys)
        if needed - granted:
            yield f"the verifier {descriptor.name} was not granted {', '.join(sorted(needed - granted))}"
        elif needed - keys:
            yield f"the verifier {descriptor.name} needs the metadata {', '.join(sorted(needed - keys))}"
        else:
            yield None
