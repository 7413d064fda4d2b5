"""What the shoot-out's tasks look like to the code that trains on them, whatever world they come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from services.contracts.tasks import Message, Split


@dataclass(frozen=True)
class Question:
    """One task. solution: what the teacher is shown; family: tasks of a kind, all in the same split."""

    key: str
    family: str
    domain: str
    messages: tuple[Message, ...]
    solution: str


class World(Protocol):
    """A set of tasks with their judge."""

    name: str
    max_new_tokens: int
    stop: list[str]

    def questions(self, split: Split) -> Sequence[Question]:
        """The tasks of a split, in a fixed order."""

    def judge(self, asked: Sequence[tuple[Question, str]]) -> list[float]:
        """The score of each answer, 1 for a right one."""
