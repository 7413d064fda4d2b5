"""The pages in the order people read them, each with the right it needs."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from services.acts.callers import Caller
from services.contracts.persons import Right


@dataclass(frozen=True)
class Link:
    """One entry of the navigation."""

    path: str
    label: str
    right: Right


NAVIGATION: Final = (
    Link("/", "Overview", Right.READ),
    Link("/correct", "Correct", Right.CORRECT),
    Link("/tasks", "Tasks", Right.READ),
    Link("/rollouts", "Rollouts", Right.READ),
    Link("/experts", "Experts", Right.READ),
    Link("/policies", "Policies", Right.READ),
    Link("/evaluations", "Evaluations", Right.READ),
    Link("/updates", "Updates", Right.READ),
    Link("/dead", "Dead letters", Right.READ),
    Link("/persons", "People", Right.ADMINISTER),
    Link("/audit", "Audit", Right.OPERATE),
)


def links_of(served: Collection[str], caller: Caller | None) -> tuple[Link, ...]:
    """The pages of this process that the caller may open."""
    if caller is None:
        return ()
    return tuple(link for link in NAVIGATION if link.path in served and caller.may(link.right))
