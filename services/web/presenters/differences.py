"""The difference between two texts word by word, for pages without a script; static/correct.js shows it live."""

import difflib
import re
from dataclasses import dataclass
from typing import Final, Literal

WORD: Final = re.compile(r"\s+|\w+|[^\w\s]")
MAX_WORDS: Final = 6_000
"""Of both texts together; beyond it a comparison would keep a person waiting, and the two texts are shown instead."""

Kind = Literal["equal", "insert", "delete"]


@dataclass(frozen=True)
class Change:
    """A stretch of text that stayed, was added or was left out."""

    kind: Kind
    text: str


def compare(old: str, new: str) -> list[Change] | None:
    """The changes that make `new` of `old`, in order; None where the texts are too long to compare while one waits."""
    was, now = (WORD.findall(text.replace("\r\n", "\n")) for text in (old, new))
    if len(was) + len(now) > MAX_WORDS:
        return None
    changes: list[Change] = []
    for tag, a, b, c, d in difflib.SequenceMatcher(None, was, now, autojunk=False).get_opcodes():
        if tag == "equal":
            changes.append(Change("equal", "".join(was[a:b])))
            continue
        if a < b:
            changes.append(Change("delete", "".join(was[a:b])))
        if c < d:
            changes.append(Change("insert", "".join(now[c:d])))
    return changes
