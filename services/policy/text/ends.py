"""When an answer ends, by the contract's rules, for every engine. Loads no torch."""

import re
from collections.abc import Callable
from typing import Final

from services.policy.contract import CLOSING_FENCE, FinishReason, Sample

_CLOSED_FENCE: Final = re.compile(r"(?:\A|\n)[ \t]*```.*?\n```", re.DOTALL)


class StopFinder:
    """Tells when an answer ends: by an end-of-sequence token, by a stop string, at its limit."""

    def __init__(self, eos_token_ids: tuple[int, ...], detokenize: Callable[[list[int]], str]) -> None:
        self._eos_token_ids = eos_token_ids
        self._detokenize = detokenize
        self._pieces: dict[int, str] = {}

    def find(self, ids: list[int], stop: list[str], max_new_tokens: int) -> FinishReason | None:
        """Why an answer is finished with its latest token; None if it is not."""
        latest = ids[-1]
        if latest in self._eos_token_ids:
            return FinishReason.STOP
        if stop and self._may_complete(latest, stop):
            text = self._detokenize(ids)
            if any(has_stopped(text, one) for one in stop):
                return FinishReason.STOP
        return FinishReason.LENGTH if len(ids) >= max_new_tokens else None

    def make_sample(self, ids: list[int], logprobs: list[float], reason: FinishReason) -> Sample:
        """The finished answer; its text is without the end-of-sequence token."""
        ended = ids[-1] in self._eos_token_ids
        text = self._detokenize(ids[:-1] if ended else ids)
        return Sample(token_ids=ids, logprobs=logprobs, text=text, finish_reason=reason)

    def _may_complete(self, token_id: int, stops: list[str]) -> bool:
        """Whether a token can be the last of a stop string: a cheap look before the whole answer is decoded."""
        if token_id not in self._pieces:
            self._pieces[token_id] = self._detokenize([token_id])
        piece = self._pieces[token_id]
        # A piece of a character decodes to the replacement character; spaces may vanish in a token decoded alone.
        return "\ufffd" in piece or any(stop[-1] in piece or stop[-1].isspace() for stop in stops)


def has_stopped(text: str, stop: str) -> bool:
    """Whether the answer so far contains the stop string; a closing fence counts only after an opening one."""
    if stop == CLOSING_FENCE:
        return _CLOSED_FENCE.search(text) is not None
    return stop in text
