"""Published data sets as worlds of the shoot-out: read from a folder of yours, judged by the product's own expert.

The files are as their authors published them, `.jsonl` or `.jsonl.gz`, none of them comes with the project:

gsm8k      gsm8k-train, gsm8k-test: `question`, and `answer` with the number after `####` (openai/grade-school-math)
physics    sciknoweval-physics-train, sciknoweval-physics-test: `prompt`, and `answer`, a letter (SciKnowEval, as split
           by lasgroup/SDPO)

A question's family is its text without its numbers and its options' values: in both sets some questions are others with
other numbers. The test file is held out; train questions of its families are left out.
"""

import asyncio
import gzip
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.shootout.questions import Question, ask_for_score
from services.contracts.base import Json
from services.contracts.strict_json import parse_json
from services.contracts.tasks import Message, Split
from services.experts.own.scorers import ExactMatchExpert
from services.policy.artifacts import hash_file

NUM_VALIDATION: Final = 100
"""So many tasks from the end of the train file settings are chosen on, by whole families; a tenth of a shorter file."""

NUMBER: Final = re.compile(r"[-+−]?\d+(?:[.,]\d+)*(?:[eE][-+−]?\d+)?")
OPTION: Final = re.compile(r"^([A-D]):.*$", re.MULTILINE)


class DataUnusable(ValueError):
    """A file is missing or not what its authors published; says which, and where it comes from."""


@dataclass(frozen=True)
class Source:
    """A data set. stem: what its files' names begin with; fields: those of a line; solve: what the teacher is shown,
    and the value an answer must come to, given a line's answer (ValueError where it has none). only_siblings: that the
    teacher is shown no solution, but right answers of siblings."""

    name: str
    about: str
    stem: str
    fields: tuple[str, str]
    domain: str
    instruction: str
    max_new_tokens: int
    solve: Callable[[str], tuple[str, str]]
    only_siblings: bool = False


def _solve_gsm8k(answer: str) -> tuple[str, str]:
    reasoning, mark, number = answer.rpartition("####")
    if not mark or not number.strip():
        raise ValueError("there is no number after ####")
    shown = re.sub(r"<<[^<>]*>>", "", reasoning).strip()
    return f"{shown}\nAnswer: {number.strip()}", number.strip()


def _solve_choice(answer: str) -> tuple[str, str]:
    letter = answer.strip()
    if letter not in ("A", "B", "C", "D"):
        raise ValueError("the answer is none of the letters A to D")
    return f"Answer: {letter}", letter


SOURCES: Mapping[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="gsm8k",
            about=(
                "GSM8K: word problems; the teacher is shown the published solution. Problems that differ in their "
                "numbers alone are a family."
            ),
            stem="gsm8k",
            fields=("question", "answer"),
            domain="math/gsm8k",
            instruction='Solve the problem step by step. End with a line "Answer: " and the number.',
            max_new_tokens=320,
            solve=_solve_gsm8k,
        ),
        Source(
            name="physics",
            about=(
                "SciKnowEval physics: four choices. The published answer is a bare letter, and a teacher that was "
                "shown it would teach to answer without reasoning: teachers are shown right answers of siblings "
                "alone, from the other half of a rollout's group, and nothing where there is none. `sft` imitates the "
                "very same, so it comes near `rft`. Questions that differ in their numbers or options alone are a "
                "family; train questions of the test file's families are left out."
            ),
            stem="sciknoweval-physics",
            fields=("prompt", "answer"),
            domain="science/mcq",
            instruction='Choose one of the four options. Think first, then end with a line "Answer: " and its letter.',
            max_new_tokens=512,
            solve=_solve_choice,
            only_siblings=True,
        ),
    )
}


class Published:
    """One data set, from the files in `folder`. Raises DataUnusable."""

    stop: list[str] = []

    def __init__(self, source: Source, folder: Path) -> None:
        self.name, self.max_new_tokens = source.name, source.max_new_tokens
        self.only_siblings = source.only_siblings
        self._expert, self._expected = ExactMatchExpert(), dict[str, str]()
        paths = [find_file(folder, f"{source.stem}-{part}") for part in ("train", "test")]
        train, heldout = (list(self._read(source, *file)) for file in zip(("train", "test"), paths, strict=True))
        self.data_sha256 = hashlib.sha256("\n".join(hash_file(path) for path in paths).encode()).hexdigest()
        families = {question.family for question in heldout}
        others = [question for question in train if question.family not in families]
        chosen = _choose_families(others, min(NUM_VALIDATION, len(others) // 10))
        if not chosen:
            raise DataUnusable(
                f"{source.stem}-train has {len(others)} questions of families that {source.stem}-test has not, "
                "too few to choose settings on"
            )
        self._questions = {
            Split.TRAIN: [question for question in others if question.family not in chosen],
            Split.VALIDATION: [question for question in others if question.family in chosen],
            Split.HELDOUT: heldout,
        }

    def questions(self, split: Split) -> Sequence[Question]:
        """In the file's order; validation has families from the train file's end, the test file is held out."""
        return self._questions[split]

    def judge(self, asked: Sequence[tuple[Question, str]]) -> list[float]:
        """By the final answer's value."""
        return asyncio.run(self._judge(asked))

    async def _judge(self, asked: Sequence[tuple[Question, str]]) -> list[float]:
        return [
            await ask_for_score(self._expert, question, {"answer": self._expected[question.key]}, answer)
            for question, answer in asked
        ]

    def _read(self, source: Source, part: str, path: Path) -> Iterator[Question]:
        for number, line in enumerate(_lines(path), 1):
            key = f"{source.name}/{part}/{number}"
            try:
                asked, answer = _read_fields(parse_json(line), source.fields)
                solution, self._expected[key] = source.solve(answer)
            except ValueError as error:
                raise DataUnusable(f"{path}, line {number}: {error}") from None
            messages = (
                Message(role="system", content=source.instruction),
                Message(role="user", content=asked),
            )
            yield Question(key, find_family(asked), source.domain, messages, solution)


def find_family(asked: str) -> str:
    """The question without its numbers and its options' values: the same for those that differ in them alone."""
    return " ".join(NUMBER.sub("#", OPTION.sub(r"\1:", asked)).split())


def _choose_families(questions: Sequence[Question], room: int) -> set[str]:
    """Families from the end on, each taken whole if it still has room; `room` is a number of questions."""
    sizes, chosen = Counter(question.family for question in questions), set[str]()
    for question in reversed(questions):
        if question.family not in chosen and sizes[question.family] <= room:
            chosen.add(question.family)
            room -= sizes[question.family]
    return chosen


def find_file(folder: Path, stem: str) -> Path:
    """The file of this name, packed or not. Raises DataUnusable if there is none."""
    names = [f"{stem}.jsonl", f"{stem}.jsonl.gz"]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataUnusable(f"neither {' nor '.join(names)} is in {folder}: name their folder with --data")


def _lines(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataUnusable(f"{path} cannot be read: {error}") from None
    return [line for line in text.split("\n") if line.strip()]


def _read_fields(row: Json, names: tuple[str, str]) -> tuple[str, str]:
    values = [row.get(name) if isinstance(row, dict) else None for name in names]
    found = [value for value in values if isinstance(value, str) and value.strip()]
    if len(found) < len(names):
        raise ValueError(f"no text in {' and '.join(names)}")
    return found[0], found[1]
