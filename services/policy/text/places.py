"""Places of tokens in an answer's text: from tokens, which are trained, to characters, which people read, and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from services.policy.client import PolicyClient, PolicyRefused, PolicyUnavailable

KEPT_ANSWERS = 256  # whose tokens stay in memory; an answer is looked at several times while it is corrected


@dataclass(frozen=True)
class Tokens:
    """Where each token of an answer ends in its text. ends: in characters; start: the first token of the answer."""

    text: str
    ends: tuple[int, ...]
    start: int = 0

    def characters(self, start: int, end: int) -> tuple[int, int]:
        """The characters [from, to) of tokens [start, end), cut at the end of the answer."""
        last = len(self.ends)
        first = self.ends[min(start, last) - 1] if start else 0
        return first, self.ends[min(end, last) - 1] if end else 0

    def cover(self, start: int, end: int) -> tuple[int, int] | None:
        """The tokens of the characters [start, end), all tokens of a split character; None if there are none."""
        begins = (0, *self.ends[:-1])
        inside = [i for i, (a, b) in enumerate(zip(begins, self.ends, strict=True)) if a < b and a < end and b > start]
        if not inside:
            return None
        first = inside[0]
        while first > self.start and begins[first - 1] == self.ends[first - 1]:
            first -= 1
        return first, inside[-1] + 1

    def find(self, quote: str) -> tuple[int, int] | None:
        """The tokens of the first occurrence of these words; None if there is none."""
        start = self.text.find(quote) if quote else -1
        return None if start < 0 else self.cover(start, start + len(quote))

    def ends_in_browsers(self) -> str:
        """The ends as scripts count them, in UTF-16 units, for a data attribute."""
        units = (0, *accumulate(2 if ord(character) > 0xFFFF else 1 for character in self.text))
        return ",".join(str(units[end]) for end in self.ends)


def align(pieces: Sequence[str], text: str, start: int) -> Tokens | None:
    """Where the tokens end in the text; None if they do not spell it, as with an answer cleaned by hand.

    Tokens before `start` (earlier turns) or beyond the text (the end of the sequence) get no characters.
    """
    spelled = "".join(pieces[start:]).replace("\x00", "\ufffd")
    if not spelled.startswith(text):
        return None
    ends = accumulate(len(piece) for piece in pieces[start:])
    return Tokens(text, (*[0] * start, *(min(end, len(text)) for end in ends)), start)


def read_tokens(policy: PolicyClient, token_ids: Sequence[int], text: str, start: int) -> Tokens | None:
    """Where the tokens of an answer that begins at `start` end; None if the policy server is away, or they do not
    spell it."""
    try:
        return align(_read_pieces(policy, tuple(token_ids)), text, start)
    except (PolicyUnavailable, PolicyRefused):
        return None


@lru_cache(maxsize=KEPT_ANSWERS)
def _read_pieces(policy: PolicyClient, token_ids: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(policy.pieces(list(token_ids)))
