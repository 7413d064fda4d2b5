"""What the shoot-out's tasks look like to the code that trains on them, whatever world they come from."""

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol
from uuid import NAMESPACE_OID, uuid5

from services.contracts.answers import AnswerKind
from services.contracts.base import JsonObject
from services.contracts.experts import Ask, AskedRollout, AskedTask, ConsultRequest, ConsultResult
from services.contracts.ids import new_id
from services.contracts.tasks import Message, Precedent, Split
from services.experts.protocol.app import ExpertService

JUDGE_SECONDS = 120.0


@dataclass(frozen=True)
class Question:
    """One task. solution: what the teacher is shown, where its world shows solutions; family: tasks of a kind, all in
    the same split; believed: what an expert that is wrong at times takes for the solution, None where there is none.
    reference_ships, precedents: what the product has of the task without an answer key. right: the right answer of a
    task that has only one, held-out ones too; it is for measuring alone."""

    key: str
    family: str
    domain: str
    messages: tuple[Message, ...]
    solution: str
    believed: str | None = None
    reference_ships: bool = False
    precedents: tuple[Precedent, ...] = ()
    right: str | None = None


class World(Protocol):
    """A set of tasks with their judge.

    only_siblings: whether a teacher is shown right answers of siblings alone, and no task's solution. data_sha256: of
    what was read from files of the user's; empty where a world reads none.
    """

    name: str
    only_siblings: bool
    data_sha256: str
    max_new_tokens: int
    stop: list[str]

    def questions(self, split: Split) -> Sequence[Question]:
        """The tasks of a split, in a fixed order."""

    def judge(self, asked: Sequence[tuple[Question, str]]) -> list[float]:
        """The score of each answer, 1 for a right one."""


async def ask_for_score(expert: ExpertService, question: Question, metadata: JsonObject, answer: str) -> float:
    """The score that an expert of the product gives an answer, asked as the worker would ask it.

    Raises RuntimeError where it gives none: the question's file would be broken.
    """
    request = ConsultRequest(
        consultation_id=new_id(),
        deadline=datetime.now(UTC) + timedelta(seconds=JUDGE_SECONDS),
        ask=Ask(kinds=[AnswerKind.SCORE]),
        task=AskedTask(
            id=uuid5(NAMESPACE_OID, question.key),
            domain=question.domain,
            messages=list(question.messages),
            metadata=metadata,
        ),
        rollout=AskedRollout(id=new_id(), text=answer, token_ids=[], tokenizer_hash="0" * 64),
    )
    verdict = expert.consult(request)
    if isinstance(verdict, Awaitable):
        verdict = await verdict
    if not isinstance(verdict, ConsultResult) or verdict.score is None:
        raise RuntimeError(f"{question.key}: no verdict")
    return verdict.score
