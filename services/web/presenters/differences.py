"""The difference between two texts: by line, then by word within lines that changed. static/correct.js shows the same
live; this one is for pages without a script.

Unchanged lines far from any change are left out, unless they hold a character that cannot be seen.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from services.web.presenters.hidden import HIDDEN

WORD: Final = re.compile(r"\s+|\w+|[^\w\s]")
MAX_WORDS: Final = 6_000
"""Of both texts together. Comparing more would keep a reader waiting, and the two texts are shown instead."""
MIN_KEPT: Final = 0.3
"""Share of the characters of changed lines, without spaces, that both sides have in common. With less, whole lines are
marked: two unrelated lines share only commas and "the"."""
CONTEXT: Final = 2  # unchanged lines shown on either side of a change

Kind = Literal["equal", "insert", "delete", "gap"]


@dataclass(frozen=True)
class Part:
    """A stretch of a line, and whether it is what changed."""

    text: str
    is_changed: bool


@dataclass(frozen=True)
class Line:
    """A line that stayed, was added or was removed; or, as a gap, the place of unchanged lines left out."""

    kind: Kind
    parts: tuple[Part, ...]
    num_left_out: int = 0


def compare(old: str, new: str) -> list[Line] | None:
    """The lines that turn `old` into `new`, in order; None for texts too long to compare while a reader waits."""
    old, new = old.replace("\r\n", "\n"), new.replace("\r\n", "\n")
    if len(WORD.findall(old)) + len(WORD.findall(new)) > MAX_WORDS:
        return None
    was, now = (text.split("\n") if text else [] for text in (old, new))
    lines: list[Line] = []
    for tag, a, b, c, d in difflib.SequenceMatcher(None, was, now, autojunk=False).get_opcodes():
        if tag == "equal":
            lines += [Line("equal", (Part(line, False),)) for line in was[a:b]]
        else:
            lines += _mark_words(was[a:b], now[c:d])
    return list(_leave_out(lines))


def _mark_words(was: Sequence[str], now: Sequence[str]) -> list[Line]:
    """Removed lines, then added ones, with the words that differ; the whole lines, where too little is common."""
    old, new = (WORD.findall("\n".join(lines)) for lines in (was, now))
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    kept = sum(_measure(old[a : a + size]) for a, _, size in matcher.get_matching_blocks())
    removed, added = [Part("\n".join(was), True)], [Part("\n".join(now), True)]
    if kept >= MIN_KEPT * max(1, _measure(old), _measure(new)):
        codes = matcher.get_opcodes()
        removed = [Part("".join(old[a:b]), tag != "equal") for tag, a, b, _, _ in codes]
        added = [Part("".join(new[c:d]), tag != "equal") for tag, _, _, c, d in codes]
    return [Line("delete", parts) for parts in _cut(removed, len(was))] + [
        Line("insert", parts) for parts in _cut(added, len(now))
    ]


def _measure(words: Sequence[str]) -> int:
    """Characters without the spaces."""
    return sum(len(word) for word in words if not word.isspace())


def _cut(parts: Sequence[Part], num_lines: int) -> list[tuple[Part, ...]]:
    """The parts of each of so many lines."""
    lines: list[list[Part]] = [[] for _ in range(num_lines)]
    at = 0
    for part in parts:
        for index, text in enumerate(part.text.split("\n")):
            at += index > 0
            if text and num_lines:
                lines[at].append(Part(text, part.is_changed))
    return [tuple(line) for line in lines]


def _leave_out(lines: Sequence[Line]) -> Iterator[Line]:
    """The lines with a gap in place of unchanged ones that are far from any change and hide nothing."""
    changes = [index for index, line in enumerate(lines) if line.kind != "equal"]
    near = {index for change in changes for index in range(change - CONTEXT, change + CONTEXT + 1)}
    num = 0
    for index, line in enumerate(lines):
        if index in near or any(HIDDEN.search(part.text) for part in line.parts):
            if num and changes:
                yield Line("gap", (), num)
            num = 0
            yield line
        else:
            num += 1
    if num and changes:
        yield Line("gap", (), num)
