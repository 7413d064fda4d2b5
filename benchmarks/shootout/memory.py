"""What the product knows about a task without an answer key, kept here in memory in place of its database.

The same things in the same order as `services.store.teaching.material` finds them: an own success of an earlier group,
precedents that the task carries, those made of right answers to other tasks, and the few references that ship.
"""

from collections.abc import Sequence
from statistics import fmean
from uuid import NAMESPACE_OID, UUID, uuid5

from benchmarks.shootout.questions import Question
from services.contracts.ids import new_id
from services.contracts.sources import ContextSource
from services.contracts.tasks import Precedent
from services.contracts.templates import strip_thinking
from services.store.loop.pass_rates import NEWEST_OF_ALL
from services.store.loop.standing import HARDLY_EVER, MIN_JUDGED
from services.store.teaching import similar
from services.store.teaching.material import Material

VERIFIER, REFERENCE, PRECEDENTS = "verifier", "reference", "precedents"


def expert_id(name: str) -> UUID:
    """The id of an expert of the shoot-out."""
    return uuid5(NAMESPACE_OID, f"expert {name}")


class Memory:
    """What was seen so far in one run. questions: the train tasks, of one domain."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self._questions = {question.key: question for question in questions}
        self._passed: dict[str, list[bool]] = {}
        self._all: list[bool] = []
        self._successes: dict[str, tuple[UUID, str]] = {}

    def note(self, question: Question, passed: Sequence[bool], success: tuple[UUID, str] | None) -> None:
        """A group was drawn. passed: its answers by the policy; success: the verdict on one that is right, and that
        answer, None without any."""
        self._passed.setdefault(question.key, []).extend(passed)
        self._all += passed
        if success is not None and strip_thinking(success[1]):
            self._successes[question.key] = success

    def pass_rate(self, question: Question) -> float:
        """The policy's on this task, on all of them where it was not tried yet, 1 before anything was drawn."""
        passed = self._passed.get(question.key) or self._all
        return fmean(passed) if passed else 1.0

    def hardly_ever_passes(self) -> bool:
        """Whether the policy's newest answers are hardly ever right, as the product counts it."""
        newest = self._all[-NEWEST_OF_ALL:]
        return len(newest) >= MIN_JUDGED and fmean(newest) <= HARDLY_EVER

    def find(self, question: Question) -> list[Material]:
        """What may be shown about a task now, whatever its next answers are."""
        found = []
        if question.key in self._successes:
            answer_id, text = self._successes[question.key]
            found.append(_make(ContextSource.OWN_SUCCESS, VERIFIER, answer_id, solution=strip_thinking(text)))
        if question.precedents:
            precedents = tuple(question.precedents[:1])
            found.append(_make(ContextSource.PRECEDENTS, PRECEDENTS, new_id(), precedents=precedents))
        found += self._find_alike(question)
        if question.reference_ships:
            found.append(_make(ContextSource.REFERENCE, REFERENCE, new_id(), solution=question.solution))
        return found

    def _find_alike(self, question: Question) -> list[Material]:
        """The most alike right answer to another task of each expert that is credited with one, those of the question's
        own family first."""
        others = [self._questions[key] for key in reversed(self._passed) if key != question.key]
        order = similar.rank(_words(question), [_words(other) for other in others])
        nearest = sorted((others[place] for place in order), key=lambda other: other.family != question.family)
        credited = dict[str, Material]()
        for other in nearest:
            for expert, answer_id, text in self._right_answers(other)[:1]:
                precedent = Precedent(messages=list(other.messages), answer=text)
                made = _make(ContextSource.PRECEDENTS, expert, answer_id, precedents=(precedent,))
                credited.setdefault(expert, made)
        return list(credited.values())

    def _right_answers(self, question: Question) -> list[tuple[str, UUID, str]]:
        found = []
        if question.key in self._successes:
            found.append((VERIFIER, *self._successes[question.key]))
        if question.reference_ships:
            found.append((REFERENCE, new_id(), question.solution))
        return found


def _words(question: Question) -> str:
    return " ".join(message.content for message in question.messages if message.role != "system")


def _make(
    source: ContextSource,
    expert: str,
    answer_id: UUID,
    *,
    solution: str | None = None,
    precedents: tuple[Precedent, ...] = (),
) -> Material:
    return Material(
        source=source,
        expert_id=expert_id(expert),
        weight=1.0,
        answers=(answer_id,),
        names=(expert,),
        speakers=(),
        solution=solution,
        precedents=precedents,
    )
