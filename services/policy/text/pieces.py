"""Which characters of a text each token wrote: the bridge between people's marks and trained tokens; light."""

from collections.abc import Callable, Sequence
from typing import Final

INCOMPLETE: Final = "\ufffd"
"""The decoding of a character's bytes while some of them are still to come."""


def split_into_pieces(token_ids: Sequence[int], decode: Callable[[list[int]], str]) -> list[str]:
    """The characters that each token adds to the text before it; joined they are `decode(token_ids)`.

    Each token is decoded after the one before it, as some write a space only then. A character whose bytes are spread
    over several tokens belongs to the last of them, also where the decoder says nothing before it is whole.
    """
    pieces: list[str] = []
    context, begun = 0, 0  # decoding starts at `context`; the text before `begun` has been reported
    for end in range(1, len(token_ids) + 1):
        told = decode(list(token_ids[context:begun]))
        text = decode(list(token_ids[context:end]))
        if end < len(token_ids) and (text.endswith(INCOMPLETE) or len(text) <= len(told)):
            pieces.append("")
            continue
        pieces.append(text[len(told) :])
        context, begun = begun, end
    return pieces
