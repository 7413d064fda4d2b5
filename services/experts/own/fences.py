"""Fenced blocks of an answer, read line by line as Markdown does."""

import re
from dataclasses import dataclass
from typing import Final

_OPENING: Final = re.compile(r"^```([A-Za-z0-9_+-]*)[ \t]*$")
_CLOSING: Final = re.compile(r"^```[ \t]*$")


@dataclass(frozen=True, slots=True)
class Block:
    """One block: its tag in lower case, what is between the fences, and whether the second fence is there."""

    tag: str
    content: str
    closed: bool


def find_blocks(text: str) -> list[Block]:
    """The blocks of a text in their order; only the last can be unclosed."""
    blocks: list[Block] = []
    tag: str | None = None
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        bare = line.rstrip("\r\n")
        if tag is None:
            if (opening := _OPENING.match(bare)) is not None:
                tag, lines = opening[1].lower(), []
        elif _CLOSING.match(bare):
            blocks.append(Block(tag, "".join(lines), closed=True))
            tag = None
        else:
            lines.append(line)
    if tag is not None:
        blocks.append(Block(tag, "".join(lines), closed=False))
    return blocks
