"""Worlds small enough for hundreds of runs, and the policy that is pre-trained on them.

`rules`: each letter of a question stands for a number, the first letter's to be added to the first two digits, the
second's to the last two, without carrying; an answer says the number before the two sums. The policy can add but is
unsure of the letters. A shown solution tells what they mean, and that can be learned: a family is a pair of letters, so
a new family is a new pair of known letters.

`fork`: a question has two ways to be answered, and the policy takes either equally often. After `a` the digits
reversed are right, which it can do. After `b` a code is right that nothing in the question tells; the shown solution
does. A teacher that has seen it can go either way, so token by token nothing says that `a` is the better beginning:
this is the two-step decision problem for which credit for later disagreement was made.

`unheard` and `doubted`: one decision. The letter of a question names a code, which is the right answer; the policy is
sure of another one and has the right one at mass .001 or .15. Here experts also differ in what they give: whole
distributions, single samples, or a wrong code for 30 % of the tasks.

Questions look like `?ab3142=` and answers like `142264`, one token a character.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from benchmarks.shootout.questions import Question
from services.contracts.tasks import Message, Split

CODE_LETTERS = "ghijklmn"
LETTERS = "abcdef"  # a adds 1, b adds 2, and so on
SURE = 0.45  # how often the untrained policy has the right meaning of a letter
TRUST = 0.97  # how often it then follows a shown solution
MISTAKEN = 0.3  # how often an expert that is wrong at times is wrong about a task
NUM_TRAIN = 192
NUM_MEASURED = 32  # held-out tasks, and as many validation tasks


class Turn(NamedTuple):
    """A question and an answer to it. is_learned: whether the policy is taught to give the answer, or only reads it."""

    question: str
    answer: str
    is_learned: bool = True


class Synthetic(ABC):
    """A world whose questions are made up, as many of each family of a split, and the same each time."""

    name: str
    about: str
    only_siblings = False
    data_sha256 = ""
    max_new_tokens: int
    stop: list[str] = []
    families: Mapping[Split, Sequence[str]]

    def questions(self, split: Split) -> Sequence[Question]:
        """The tasks of a split, family by family."""
        families = self.families[split]
        count = (NUM_TRAIN if split is Split.TRAIN else NUM_MEASURED) // len(families)
        return [question for family in families for question in self._ask(family, count)]

    def _ask(self, family: str, count: int) -> Iterator[Question]:
        numbers, title = random.Random(f"{self.name} {family}"), f"{self.name}/{family}"
        for index in range(count):
            text, solution = self._draw(family, numbers)
            messages = (Message(role="user", content=text),)
            yield Question(f"{title}/{index}", title, self.name, messages, solution)

    @abstractmethod
    def _draw(self, family: str, numbers: random.Random) -> tuple[str, str]:
        """A question of the family and the solution that is shown."""

    @abstractmethod
    def judge(self, asked: Sequence[tuple[Question, str]]) -> list[float]:
        """1 for a right answer, 0 for a wrong one."""

    @abstractmethod
    def lessons(self, numbers: random.Random) -> Iterator[list[Turn]]:
        """What the policy is pre-trained on, for ever: a question by itself, or again after a solution."""


def _deal_letters() -> Mapping[Split, Sequence[str]]:
    pairs = [first + second for first in LETTERS for second in LETTERS]
    random.Random(0).shuffle(pairs)
    return {Split.HELDOUT: pairs[:8], Split.VALIDATION: pairs[8:12], Split.TRAIN: pairs[12:]}


class Rules(Synthetic):
    """Letters whose meaning feedback reveals."""

    name = "rules"
    about = (
        "Synthetic: the policy is unsure what letters mean, and a shown solution tells. A held-out family is a pair of "
        "letters that no train task has; each letter alone is in many, and the policy was pre-trained on all pairs, "
        "with guesses as answers."
    )
    max_new_tokens = 8
    families = _deal_letters()

    def judge(self, asked: Sequence[tuple[Question, str]]) -> list[float]:
        return [float(answer == question.solution) for question, answer in asked]

    def lessons(self, numbers: random.Random) -> Iterator[list[Turn]]:
        while True:
            question = "".join(numbers.choices(LETTERS, k=2)) + _draw_digits(numbers, 4)
            shown = self._guess(question, numbers)
            again = shown if numbers.random() < TRUST else self._guess(question, numbers)
            yield [Turn(question, shown), Turn(question, again)]

    def _draw(self, family: str, numbers: random.Random) -> tuple[str, str]:
        text = family + _draw_digits(numbers, 4)
        return text, apply_rules(text)

    def _guess(self, question: str, numbers: random.Random) -> str:
        """An answer as of somebody who has every letter right SURE of the time."""
        believed = [
            letter if numbers.random() < SURE else numbers.choice(LETTERS.replace(letter, ""))
            for letter in question[:2]
        ]
        return apply_rules("".join(believed) + question[2:])


class Fork(Synthetic):
    """Two ways to answer, one of which needs what only the teacher is shown."""

    name = "fork"
    about = (
        "Synthetic, and built for the future term: an answer may go one of two ways, and only one of them can be "
        "followed without seeing the solution, which always shows the other. So `sft`, which imitates what it cannot "
        "know, has to fail here, and objectives that look at one token at a time have nothing to go by. The control "
        "differs little from `distil`: what a solution reveals of its own task cannot be learned anyway."
    )
    max_new_tokens = 6
    families = {Split.TRAIN: "012345", Split.VALIDATION: "67", Split.HELDOUT: "89"}

    def judge(self, asked: Sequence[tuple[Question, str]]) -> list[float]:
        return [float(text in (q.solution, _short_way(q.messages[0].content))) for q, text in asked]

    def lessons(self, numbers: random.Random) -> Iterator[list[Turn]]:
        while True:
            question, code = _draw_digits(numbers, 3), "b" + _draw_code(numbers)
            short = _short_way(question)
            yield [Turn(question, numbers.choice([short, code])), Turn(question, numbers.choice([short, code]))]

    def _draw(self, family: str, numbers: random.Random) -> tuple[str, str]:
        return family + _draw_digits(numbers, 2), "b" + _draw_code(numbers)


class Decision(Synthetic):
    """One token to choose. mass: how often the pre-training has the right choice, else one that is wrong."""

    mass: float
    max_new_tokens = 2
    families = {Split.TRAIN: "012345", Split.VALIDATION: "67", Split.HELDOUT: "89"}

    def judge(self, asked: Sequence[tuple[Question, str]]) -> list[float]:
        return [float(answer == question.solution) for question, answer in asked]

    def lessons(self, numbers: random.Random) -> Iterator[list[Turn]]:
        while True:
            question = numbers.choice(LETTERS) + _draw_digits(numbers, 3)
            shown = numbers.choice(CODE_LETTERS)
            again = shown if numbers.random() < TRUST else self._guess(question, numbers)
            alone = [Turn(question, self._guess(question, numbers))]
            yield numbers.choice([alone, [Turn(question, shown, is_learned=False), Turn(question, again)]])

    def _ask(self, family: str, count: int) -> Iterator[Question]:
        mistakes = random.Random(f"{self.name} mistakes {family}")
        for question in super()._ask(family, count):
            wrong = mistakes.choice(CODE_LETTERS.replace(question.solution, ""))
            believed = wrong if mistakes.random() < MISTAKEN else question.solution
            yield replace(question, believed=believed, right=question.solution)

    def _draw(self, family: str, numbers: random.Random) -> tuple[str, str]:
        text = numbers.choice(LETTERS) + family + _draw_digits(numbers, 2)
        return text, _find_code(text)

    def _guess(self, question: str, numbers: random.Random) -> str:
        right = _find_code(question)
        favourite = CODE_LETTERS[(CODE_LETTERS.index(right) + 1) % len(CODE_LETTERS)]
        return right if numbers.random() < self.mass else favourite


class Unheard(Decision):
    """The right choice at mass .001: it is hardly ever drawn, so scores tell next to nothing."""

    name = "unheard"
    mass = 3e-3  # of which the policy keeps about .001
    about = (
        "Synthetic: one decision, whose right choice the untrained policy has at mass .001. No arm finds it by itself; "
        "forward cross-entropy leaves a mass m in about log 1/m steps, losses weighted with the policy's own "
        "probabilities in about 1/m."
    )


class Doubted(Decision):
    """The right choice at mass .15: it is drawn now and then."""

    name = "doubted"
    mass = 0.15
    about = (
        "Synthetic: the same decision as in `unheard`, with the right choice at mass .15, so that scores tell it too."
    )


def _find_code(question: str) -> str:
    """The right choice: each letter has a code of its own."""
    return CODE_LETTERS[LETTERS.index(question[0])]


def apply_rules(question: str) -> str:
    """The right answer: for each letter its number, and the sums of it and the letter's two digits."""
    answer = ""
    for letter, pair in ((question[0], question[2:4]), (question[1], question[4:6])):
        added = LETTERS.index(letter) + 1
        answer += str(added) + "".join(str((int(digit) + added) % 10) for digit in pair)
    return answer


def _short_way(question: str) -> str:
    return "a" + question[::-1]


def _draw_digits(numbers: random.Random, count: int) -> str:
    return "".join(numbers.choices("0123456789", k=count))


def _draw_code(numbers: random.Random) -> str:
    return "".join(numbers.choices(CODE_LETTERS, k=3))
