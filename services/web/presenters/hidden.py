"""Characters that cannot be seen and change how a text reads: those that turn the direction, and control characters.

An answer can be made to read as another one with them. Pages show each as a mark with its code; the character itself
stays where it is, so that the text, what is copied of it, and the places of tokens in it are what they were.
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
    """The text so that a browser keeps every character of it: a bare carriage return would become a line feed."""
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
    """What a hidden character is, in words."""
    return unicodedata.name(character, "control character").lower()


def tell(text: str) -> str:
    """Which hidden characters the text holds, in words; empty where it holds none."""
    counts = Counter(HIDDEN.findall(text))
    return ", ".join(
        f"{name(one)} (U+{ord(one):04X}{f', {num} times' if num > 1 else ''})" for one, num in counts.items()
    )
