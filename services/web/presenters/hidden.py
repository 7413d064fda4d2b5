"""Invisible characters that change how a text reads: direction marks and control characters.

They can make an answer read as another one. Pages show each as a mark with its code. The character itself stays in
place, so the text, copies of it and the positions of its tokens do not change.
"""

import re
import unicodedata
from collections import Counter
from typing import Final

from markupsafe import Markup, escape

HIDDEN: Final = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]|\r(?!\n)"  # as in correct.js
)


def exact(text: str) -> Markup:
    """The text, escaped so that a browser keeps every character: a bare carriage return would become a line feed."""
    return Markup("&#13;").join(escape(part) for part in text.split("\r"))


def reveal(text: str) -> Markup:
    """The exact text with a mark at every hidden character. Not for a textarea: it shows no marks."""
    made, seen = Markup(), 0
    for found in HIDDEN.finditer(text):
        code = f"U+{ord(found[0]):04X}"
        made += exact(text[seen : found.start()]) + Markup(
            '<bdi class="unshown" dir="ltr" data-code="{}" title="{} ({})">{}</bdi>'
        ).format(code, name(found[0]), code, exact(found[0]))
        seen = found.end()
    return made + exact(text[seen:])


def name(character: str) -> str:
    """The name of a hidden character."""
    return unicodedata.name(character, "control character").lower()


def tell(text: str) -> str:
    """The hidden characters of a text, in words; empty if there are none."""
    counts = Counter(HIDDEN.findall(text))
    return ", ".join(
        f"{name(one)} (U+{ord(one):04X}{f', {num} times' if num > 1 else ''})" for one, num in counts.items()
    )
