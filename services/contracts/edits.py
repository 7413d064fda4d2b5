"""A person's changes to a text, without those that their editor or browser made in passing.

A text comes back with other line ends, a final newline, a byte order mark, no-break blanks, curly quotes, characters
composed otherwise, blanks cut off at the ends of lines. Wherever that is all the difference, the text is as it was.
"""

import re
import unicodedata
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Final

BLANKS: Final = str.maketrans(dict.fromkeys("\u00a0\u2007\u202f", " "))
QUOTES: Final = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})
MAX_COMPARED: Final = 4_000
"""In characters: a changed stretch longer than this is taken as it was sent."""

_LINE: Final = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")


def keep_unmeant(original: str, sent: str) -> str:
    """The sent text, with unintended changes undone."""
    if not original.startswith("\ufeff"):
        sent = sent.removeprefix("\ufeff")
    before, after = _LINE.findall(original), _LINE.findall(sent.rstrip() + original[len(original.rstrip()) :])
    match = SequenceMatcher(
        None, [_fold(line) for line in before], [_fold_sent(line) for line in after], autojunk=False
    )
    parts: list[str] = []
    for change, a, b, c, d in match.get_opcodes():
        if change == "equal":
            parts += before[a:b]
        elif b - a == d - c:  # line by line, so that blanks which an editor cut off at their ends come back
            pairs = zip(before[a:b], after[c:d], strict=True)
            parts += [_keep_characters(was, _end_as(was, now), _line_end(before)) for was, now in pairs]
        else:
            parts.append(_keep_characters("".join(before[a:b]), "".join(after[c:d]), _line_end(before)))
    return "".join(parts)


def _end_as(line: str, sent: str) -> str:
    """The line as it was sent, with the blanks that the other has at its end where it was sent with none."""
    words = sent.rstrip("\r\n")
    return sent if words != words.rstrip() else words + line[len(line.rstrip()) :]


def _keep_characters(original: str, sent: str, line_end: str) -> str:
    """The same inside lines that changed; line ends that were typed are those of the text."""
    was, now = _split(original), _split(sent)
    if len(original) > MAX_COMPARED or len(sent) > MAX_COMPARED:
        return "".join(line_end if one in ("\r\n", "\r") else one for one in now)
    match = SequenceMatcher(None, [_fold(one) for one in was], [_fold_sent(one) for one in now], autojunk=False)
    parts: list[str] = []
    for change, a, b, c, d in match.get_opcodes():
        if change == "equal":
            parts += was[a:b]
        else:
            parts += [line_end if one in ("\r\n", "\r", "\n") else one for one in now[c:d]]
    return "".join(parts)


def _split(text: str) -> list[str]:
    """A text in characters, each with the marks that combine with it; a line end is one."""
    parts: list[str] = []
    for character in text:
        joins = parts and (unicodedata.combining(character) or (parts[-1] == "\r" and character == "\n"))
        if joins:
            parts[-1] += character
        else:
            parts.append(character)
    return parts


def _fold(text: str) -> str:
    """A form of the text in which unintended differences vanish."""
    if text in ("\r\n", "\r", "\n"):
        return "\n"
    folded = unicodedata.normalize("NFC", text.translate(BLANKS))
    return folded.rstrip() + "\n" if text[-1] in "\r\n" else folded


def _fold_sent(text: str) -> str:
    """The same for the sent text: editors turn straight quotes into curly ones, never the other way."""
    return _fold(text.translate(QUOTES))


def _line_end(lines: Sequence[str]) -> str:
    """The line end of a text, by its first line."""
    return next((end for line in lines if (end := line[len(line.rstrip("\r\n")) :])), "\n")
