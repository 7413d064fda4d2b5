"""Remarks on an answer: converts between tokens, which are trained on, and characters, which people select."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from services.policy.text.places import Tokens
from services.web.presenters.hidden import reveal


@dataclass(frozen=True)
class Remark:
    """An expert's remark on tokens [start, end) of the answer. number: shown beside the marked text."""

    number: int
    expert: str
    text: str
    start: int
    end: int
    quote: str


@dataclass(frozen=True)
class Segment:
    """A stretch of the answer under the same remarks."""

    html: Markup
    numbers: tuple[int, ...]


def split(text: str, tokens: Tokens | None, remarks: Sequence[Remark]) -> list[Segment]:
    """The answer in stretches, each with the numbers of its remarks; a single stretch if the tokens are unknown."""
    if tokens is None or not remarks:
        return [Segment(reveal(text), ())]
    places = [(*tokens.characters(remark.start, remark.end), remark.number) for remark in remarks]
    cuts = sorted({0, len(text), *(at for start, end, _ in places for at in (start, end))})
    return [
        Segment(reveal(text[a:b]), tuple(number for start, end, number in places if start <= a and b <= end))
        for a, b in pairwise(cuts)
    ]
