"""Reads a rollout's tokens as turns: the policy's last answer, and the conversation before it.

A sampler returns an answer with the token that ends it, and an agent's whole conversation in one list, with the chat
template's marks between the turns. A judge of an answer needs neither: the marks are taken off, the last turn with
tokens the policy chose is the answer, and earlier turns become messages. The tokens stay as they were sampled.

The marks between turns are learned from the chat template itself. Loads no torch.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise, product
from typing import Final, Literal, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from services.contracts.tasks import Message
from services.policy.text.pieces import split_into_pieces
from services.policy.text.plain_text import apply_template, find_control_tokens, read_template_text

Role = Literal["system", "user", "assistant", "tool"]

SURROGATES: Final = range(0xD800, 0xE000)
"""Code points that no text holds: decoding never gives one alone."""

_SAID: Final = ("qzja", "qzjb", "qzjc", "qzjd", "qzje", "qzjf")
"""Contents of a conversation that shows the marks a template puts between turns."""
_OTHERS: Final[tuple[Role, ...]] = ("user", "tool", "system")
_BETWEEN: Final[tuple[tuple[Role, ...], ...]] = (*((one,) for one in _OTHERS), *product(_OTHERS, repeat=2))
"""Who may speak between two answers: one, or two in a row, as several tools do that were called at once."""


class PromptIncluded(ValueError):
    """The tokens begin with turns, or marks of turns, before the policy's first choice: they belong to the prompt."""


@dataclass(frozen=True)
class Answer:
    """The policy's last turn: its text, the messages before it in the rollout, the token at which it begins."""

    text: str
    turns: tuple[Message, ...]
    start: int


@dataclass(frozen=True)
class _Turn:
    """One turn of a rollout; chosen: the policy chose tokens of it."""

    role: Role
    text: str
    start: int
    chosen: bool


@dataclass(frozen=True)
class _Separator:
    """The tokens between a turn of one role and one of another."""

    text: str
    before: Role
    after: Role

    def find(self, spelled: str, start: int) -> tuple[int, int] | None:
        """Where it comes next, and how long it is there. Samplers may leave out a line break after a turn's end."""
        first, rest = self.text[0], self.text[1:].lstrip()
        found = re.compile(f"{re.escape(first)}\\s*{re.escape(rest)}").search(spelled, start)
        return None if found is None else (found.start(), found.end() - found.start())


@dataclass(frozen=True)
class _Marks:
    """Tokens that mark turns, each spelled as one character that no text holds, and the marks they form."""

    tokens: tuple[int, ...]
    separators: tuple[_Separator, ...]

    def spell(self, token_id: int) -> str:
        """The character of one of the tokens."""
        return chr(SURROGATES.start + self.tokens.index(token_id))

    def read(self, character: str) -> int | None:
        """The token that a character stands for, if it does."""
        return self.tokens[ord(character) - SURROGATES.start] if ord(character) in SURROGATES else None


def read_answer(
    tokenizer: PreTrainedTokenizerBase,
    token_ids: Sequence[int],
    action_mask: Sequence[bool],
    end_token_ids: Sequence[int],
) -> Answer:
    """The answer in a rollout's tokens. action_mask: which of them the policy chose. Raises PromptIncluded."""
    if not action_mask[0] and token_ids[0] in (*_find_marks_of(tokenizer).tokens, tokenizer.bos_token_id):
        raise PromptIncluded
    turns = list(_read_turns(tokenizer, token_ids, action_mask, end_token_ids))
    last = max((number for number, turn in enumerate(turns) if turn.chosen), default=0)
    before = tuple(Message.model_construct(role=turn.role, content=turn.text) for turn in turns[:last])
    return Answer(turns[last].text, before, turns[last].start)


def find_turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that the chat template puts right after an answer; None where it puts none there."""
    marks = _find_marks_of(tokenizer)
    ends = {marks.read(one.text[0]) for one in marks.separators if one.before == "assistant"}
    return ends.pop() if len(ends) == 1 else None


def _read_turns(
    tokenizer: PreTrainedTokenizerBase,
    token_ids: Sequence[int],
    action_mask: Sequence[bool],
    end_token_ids: Sequence[int],
) -> Iterator[_Turn]:
    learned = _find_marks_of(tokenizer)
    marks = _Marks(tuple(dict.fromkeys((*learned.tokens, *end_token_ids))), learned.separators)
    pieces = _spell(tokenizer, token_ids, marks)
    spelled, reach = "".join(pieces), list(accumulate(len(piece) for piece in pieces))
    ends = [marks.spell(token_id) for token_id in end_token_ids]
    role: Role | None = "assistant"
    start = 0
    while start <= len(spelled):
        stop, following, after = _find_next(spelled, start, role, marks.separators, ends)
        first, behind = _find_token(reach, start), _find_token(reach, stop) + 1
        chosen = any(action_mask[first:behind])
        words = spelled[start:stop]
        if role is None:  # the template knows no such turn
            if any(action_mask[first : first + 1]):  # a sampler that went on after the end
                words = ""
            elif chosen:
                first += list(action_mask[first:behind]).index(True)
                words = spelled[reach[first - 1] : stop]
            else:
                words = words[
                    max((n for n, one in enumerate(words, start=1) if marks.read(one) is not None), default=0) :
                ].strip()
        own = chosen if role is None else role == "assistant"
        said = any(not one.isspace() and marks.read(one) is None for one in words)
        if start == 0 or said or (role == "assistant" and chosen):  # an answer may be empty
            yield _Turn(role or ("assistant" if own else "tool"), _name(tokenizer, words, marks), first, own and chosen)
        role, start = following, after


def _find_token(reach: Sequence[int], start: int) -> int:
    """The token that writes the character at `start`, or the first of several that do."""
    token = bisect_left(reach, start)
    return token + 1 if start and token < len(reach) and reach[token] == start else token


def _find_next(
    spelled: str, start: int, role: Role | None, separators: Sequence[_Separator], ends: Sequence[str]
) -> tuple[int, Role | None, int]:
    """Where the turn that begins at `start` stops, who speaks next, and where they begin: after the end of all, the
    place behind it."""
    found: list[tuple[int, int, Role | None]] = [(len(spelled), 1, None)]
    for one in separators:
        if role in (None, one.before) and (place := one.find(spelled, start)) is not None:
            found.append((*place, one.after))
    found += [(spelled.find(end, start), 1, None) for end in ends]
    stop, length, following = min((one for one in found if one[0] >= 0), key=lambda one: (one[0], -one[1]))
    return stop, following, stop + length


def _find_marks_of(tokenizer: PreTrainedTokenizerBase) -> _Marks:
    return _find_marks(tokenizer, cast(str | None, tokenizer.chat_template))


@lru_cache(maxsize=4)
def _find_marks(tokenizer: PreTrainedTokenizerBase, template: str | None) -> _Marks:
    """The template's marks between an answer and others' turns, between those, and back. An answer ends only at a mark
    that begins with a control token, another's turn only at one that contains one: plain words may be their own."""
    control = find_control_tokens(tokenizer).turns
    read = [one for roles in _BETWEEN if template is not None for one in _read_between(tokenizer, roles, control)]
    between = list(dict.fromkeys(read))
    tokens = tuple(sorted({i for ids, _, _ in between for i in ids if i in control}))
    marks = _Marks(tokens, ())
    return _Marks(tokens, tuple(_Separator("".join(_spell(tokenizer, ids, marks)), *roles) for ids, *roles in between))


def _read_between(
    tokenizer: PreTrainedTokenizerBase, others: Sequence[Role], control: frozenset[int]
) -> Iterator[tuple[tuple[int, ...], Role, Role]]:
    roles: tuple[Role, ...] = ("user", "assistant", *others, "assistant", "user")  # some rewrite a last answer
    turns = [{"role": role, "content": said} for role, said in zip(roles, _SAID, strict=False)]
    try:
        text = apply_template(tokenizer, turns, answer=False)
    except (TemplateError, ValueError):  # it knows no such role
        return
    places = [text.find(said) for said in _SAID[: len(roles)]]
    if -1 in places or places != sorted(places):
        return
    for number, (before, after) in enumerate(pairwise(roles[1:-1]), start=1):
        ids = tuple(read_template_text(tokenizer, text[places[number] + len(_SAID[number]) : places[number + 1]]))
        marks = ids[:1] if before == "assistant" else ids
        if ids and (after == "assistant" or control.intersection(marks)):
            yield ids, before, after


def _name(tokenizer: PreTrainedTokenizerBase, words: str, marks: _Marks) -> str:
    """Words with the tokens among them as they are written."""
    tokens = ((one, marks.read(one)) for one in words)
    return "".join(one if token is None else cast(str, tokenizer.decode([token])) for one, token in tokens)


def _spell(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], marks: _Marks) -> list[str]:
    """The characters of each token; a token that marks a turn is one character."""
    decode = cast(Callable[..., str], tokenizer.decode)
    known = set(marks.tokens)
    pieces: list[str] = []
    run: list[int] = []

    def write_run() -> None:
        pieces.extend(
            split_into_pieces(
                run, lambda ids: decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            )
        )
        run.clear()

    for token_id in token_ids:
        if token_id in known:
            write_run()
            pieces.append(marks.spell(token_id))
        else:
            run.append(token_id)
    write_run()
    return pieces
