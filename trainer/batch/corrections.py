"""Where a person departed from a rollout, in the rollout's own tokens.

The two texts are compared as bytes, because a token may end inside a character; the departure is then moved back to a
token boundary of the rollout. The kept prefix keeps the rollout's own ids and is never tokenised again.

A person corrects the last turn of the policy; earlier turns stay as they are. Where a tool's output stands inside that
turn, without a mark of the chat template, the policy must not learn it: the corrected text is aligned with the rollout,
and tokens in the place of the tool's are not learned, changed or not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from transformers import PreTrainedTokenizerBase

from services.policy.model.modeling import decode_ids, encode_text

_INCOMPLETE = "\ufffd"  # a decoder's mark for a character whose bytes are not complete


@dataclass(frozen=True)
class Departure:
    """A corrected rollout. num_kept: tokens of the rollout the person left as they were.

    token_ids: the corrected answer: the kept ids, then the person's, and the end where the rollout had ended. ends: the
    person cut the tail, so that the token at `num_kept` is the end of the answer. label: the token that belongs at
    `num_kept` in place of the rollout's; None where the rollout has no token there.
    """

    num_kept: int
    token_ids: tuple[int, ...]
    ends: bool
    label: int | None


def find_departure(
    tokenizer: PreTrainedTokenizerBase,
    token_ids: Sequence[int],
    corrected: str,
    eos_token_ids: Sequence[int],
    start: int = 0,
) -> Departure | None:
    """The person's change to the turn that begins at `start`; None where the texts are the same.

    The token that ends the turn is not text, and tokens after it are not part of the turn.

    Raises ValueError if the tokenizer cannot spell the corrected text after the kept ids.
    """
    end = next((place for place in range(start, len(token_ids)) if token_ids[place] in eos_token_ids), None)
    spoken = list(token_ids[start:end])
    if decode_ids(tokenizer, spoken) == corrected:
        return None
    kept = _count_kept(tokenizer, spoken, corrected)
    rest = _encode_rest(tokenizer, spoken[:kept], corrected)
    while rest and kept < len(spoken) and rest[0] == spoken[kept]:  # the same first bytes of another character
        kept += 1
        rest = rest[1:]
    ends = not rest
    if end is not None:
        rest = [*rest, token_ids[end]]
    elif ends:
        rest = [eos_token_ids[0]]
    inside = kept < len(spoken) or end is not None
    return Departure(start + kept, (*token_ids[: start + kept], *rest), ends, rest[0] if inside else None)


def find_learned(token_ids: Sequence[int], action_mask: Sequence[bool], departure: Departure) -> tuple[bool, ...]:
    """Which of the departure's tokens the policy is to learn: none it kept, none that stands where a tool spoke."""
    kept = departure.num_kept
    learned = [False] * len(departure.token_ids)
    beside = SequenceMatcher(None, token_ids[kept:], departure.token_ids[kept:], autojunk=False)
    for change, begin, end, own_begin, own_end in beside.get_opcodes():
        spoken = action_mask[kept + begin : kept + end]
        if change == "insert":  # the policy's own, unless it is put into the middle of a tool turn
            around = action_mask[max(kept + begin - 1, 0) : kept + begin + 1]
            spoken = [len(around) < 2 or any(around)]
        if change == "equal":
            learned[kept + own_begin : kept + own_end] = spoken
        else:
            learned[kept + own_begin : kept + own_end] = [all(spoken)] * (own_end - own_begin)
    return tuple(learned)


def _encode_rest(tokenizer: PreTrainedTokenizerBase, kept: Sequence[int], corrected: str) -> list[int]:
    """The person's own tokens: of the whole text where tokenising it keeps the kept ids, else of the rest."""
    whole = encode_text(tokenizer, corrected)
    if whole[: len(kept)] == list(kept):
        return whole[len(kept) :]
    rest = encode_text(tokenizer, corrected[len(decode_ids(tokenizer, kept)) :])
    if decode_ids(tokenizer, [*kept, *rest]) != corrected:
        raise ValueError("the corrected text cannot be spelled after the tokens that were kept")
    return rest


def _count_kept(tokenizer: PreTrainedTokenizerBase, spoken: Sequence[int], corrected: str) -> int:
    """The largest number of leading tokens that end between two characters and spell a prefix of the text."""
    low, high = 0, len(spoken)
    while low < high:  # a longer prefix of tokens spells a longer text: once it departs it stays departed
        middle = (low + high + 1) // 2
        if corrected.startswith(decode_ids(tokenizer, spoken[:middle]).rstrip(_INCOMPLETE)):
            low = middle
        else:
            high = middle - 1
    while low and not corrected.startswith(decode_ids(tokenizer, spoken[:low])):
        low -= 1
    return low
