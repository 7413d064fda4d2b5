"""Keeps text text: a control token that is spelled out in a text never becomes that token.

A chat template marks turns with control tokens. `<|im_end|>` inside a question, a correction or a tool's output is
eleven characters; read as the token it would end a turn, and another speaker's would begin. Only the template writes
control tokens. Works on any tokenizer of transformers, with a compiled backend or without. Loads no torch.

Control tokens are:

- in every text: special tokens, and added tokens that the chat template writes around turns;
- in texts that are not the policy's own, also the added tokens that the template names anywhere. A policy does write
  some of those itself (`<think>`, `<tool_call>`): in its own answers, and in corrections of them, they stay tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from services.contracts.tasks import Message
from services.runtime.errors import InvalidInput

PRIVATE_USE: Final = range(0xF0000, 0xFFFFE)
"""Characters without a meaning of their own, of which two mark text on its way through a chat template."""

_PROBES: Final = (
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user"),
    ("user", "assistant", "tool", "assistant", "user"),
)
"""Conversations that show the marks a template writes around turns. They end with a question: some templates add an
empty `<think>` block to a last answer, which is the policy's own to write."""


@dataclass(frozen=True)
class ControlTokens:
    """Ids of control tokens: `turns` in anyone's words, `foreign` in words that are not the policy's own."""

    turns: frozenset[int]
    foreign: frozenset[int]


@dataclass(frozen=True)
class _Marks:
    """Two characters that stand around words to be read as text; none of the conversation's own."""

    begin: str
    end: str


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of text as the policy itself would write it, without any token that marks a turn.

    Raises InvalidInput if the tokenizer cannot spell it so.
    """
    return _encode(tokenizer, text, find_control_tokens(tokenizer).turns)


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of chat messages up to where the policy would answer; all control tokens are the template's.

    Raises InvalidInput if the template refuses the messages.
    """
    control = find_control_tokens(tokenizer)
    marks = _choose_marks(messages)
    turns = [
        {"role": one.role, "content": _mark(tokenizer, one.content, _control_in(one, control), marks)}
        for one in messages
    ]
    try:
        text = apply_template(tokenizer, turns, answer=True)
    except (TemplateError, ValueError) as error:
        raise InvalidInput(f"the chat template refuses these messages: {error}") from error
    ids: list[int] = []
    for number, part in enumerate(text.split(marks.begin)):
        words, ended, rest = part.rpartition(marks.end) if number else ("", "", part)
        if number and not ended:  # a template that cuts words apart lost the closing mark
            words, rest = rest, ""
        ids += _encode_inside(tokenizer, words.replace(marks.end, ""), control.foreign)
        rest = rest.replace(marks.end, "")
        ids += _encode_inside(tokenizer, rest, frozenset()) if ids else _plain(tokenizer, rest)
    return ids


def apply_template(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], *, answer: bool) -> str:
    """The text that the chat template makes of turns, up to where the policy would answer or to the last one's end.

    Raises TemplateError or ValueError if it refuses them.
    """
    return cast(str, tokenizer.apply_chat_template(turns, add_generation_prompt=answer, tokenize=False))


def read_template_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of text that a chat template wrote inside a conversation: its control tokens are tokens."""
    return _encode_inside(tokenizer, text, frozenset())


def find_control_tokens(tokenizer: PreTrainedTokenizerBase) -> ControlTokens:
    """The tokens that mark turns in this tokenizer's chat template."""
    return _find_control_tokens(tokenizer, cast(str | None, tokenizer.chat_template))


@lru_cache(maxsize=4)
def _find_control_tokens(tokenizer: PreTrainedTokenizerBase, template: str | None) -> ControlTokens:
    added = {
        i: token
        for i, token in tokenizer.added_tokens_decoder.items()
        if token.special or not (token.content.isspace() or token.content.isalnum())  # words of a language
    }
    turns = {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    if template is not None:
        turns |= {i for text in _render_probes(tokenizer) for i in _plain(tokenizer, text) if i in added}
    named = {i for i, token in added.items() if template is not None and token.content in template}
    unknown = set(_plain(tokenizer, chr(PRIVATE_USE.start)))  # the unknown token: text may hold it
    return ControlTokens(frozenset(turns - unknown), frozenset((turns | named) - unknown))


def _render_probes(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    for roles in _PROBES:
        try:
            yield apply_template(tokenizer, [{"role": role, "content": "a"} for role in roles], answer=False)
        except (TemplateError, ValueError):  # the template knows no such role, or another order
            continue


def _control_in(message: Message, control: ControlTokens) -> frozenset[int]:
    return control.turns if message.role == "assistant" else control.foreign


def _choose_marks(messages: Sequence[Message]) -> _Marks:
    used = {character for message in messages for character in message.content if ord(character) >= PRIVATE_USE.start}
    free = (chr(code) for code in PRIVATE_USE if chr(code) not in used)
    return _Marks(next(free), next(free))


def _mark(tokenizer: PreTrainedTokenizerBase, text: str, control: frozenset[int], marks: _Marks) -> str:
    """The text with marks around each control token that it spells."""
    parts, done = [], 0
    for start, end in _find_spelled(tokenizer, text, control):
        parts += [text[done:start], marks.begin, text[start:end], marks.end]
        done = end
    return "".join([*parts, text[done:]])


def _find_spelled(tokenizer: PreTrainedTokenizerBase, text: str, control: frozenset[int]) -> list[tuple[int, int]]:
    """Where the tokenizer would read control tokens in a text, as [start, end) in characters."""
    if control.isdisjoint(_plain(tokenizer, text)):
        return []
    if tokenizer.is_fast:
        read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        pairs = zip(read["input_ids"], read["offset_mapping"], strict=True)
        return [(start, end) for token_id, (start, end) in pairs if token_id in control]
    names = [tokenizer.added_tokens_decoder[i].content for i in control if i in tokenizer.added_tokens_decoder]
    found: list[tuple[int, int]] = []
    start = 0
    while start < len(text):
        longest = max((len(name) for name in names if text.startswith(name, start)), default=0)
        if longest:
            found.append((start, start + longest))
        start += max(longest, 1)
    return found


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, control: frozenset[int]) -> list[int]:
    """Token ids of a whole text, none of them in `control`."""
    ids = _plain(tokenizer, text)
    if control.isdisjoint(ids):
        return ids
    ids = _plain(tokenizer, text, split_special=True)
    if control.isdisjoint(ids) and tokenizer.is_fast:  # without a backend this also splits text that is not control
        return ids
    ids, done = [], 0
    for start, end in _find_spelled(tokenizer, text, control):
        between = text[done:start]
        ids += _encode_inside(tokenizer, between, control) if ids else _plain(tokenizer, between)
        ids += _spell_out(tokenizer, text[start:end], control, first=start == 0)
        done = end
    return ids + _encode_inside(tokenizer, text[done:], control)


def _encode_inside(tokenizer: PreTrainedTokenizerBase, text: str, control: frozenset[int]) -> list[int]:
    """Token ids of text that follows other text, none of them in `control`."""
    if not text:
        return []
    ids = _after_newline(tokenizer, text)
    return ids if control.isdisjoint(ids) else _spell_out(tokenizer, text, control, first=False)


def _spell_out(tokenizer: PreTrainedTokenizerBase, text: str, control: frozenset[int], *, first: bool) -> list[int]:
    """Token ids of the characters of control tokens: as the tokenizer splits them, or else character by character.

    Raises InvalidInput if neither is without control tokens.
    """
    read = _plain if first else _after_newline
    ids = read(tokenizer, text, split_special=True)
    if not control.isdisjoint(ids):
        ids = [i for n, one in enumerate(text) for i in (read if n == 0 else _after_newline)(tokenizer, one)]
    if not control.isdisjoint(ids):
        raise InvalidInput(f"the tokenizer has no other way to write {text!r} than as a control token")
    return ids


def _after_newline(tokenizer: PreTrainedTokenizerBase, text: str, *, split_special: bool = False) -> list[int]:
    """Token ids of text in the middle of a text: some tokenizers put a space before the first word of one."""
    newline = _plain(tokenizer, "\n")
    ids = _plain(tokenizer, "\n" + text, split_special=split_special)
    if ids[: len(newline)] == newline:
        return ids[len(newline) :]
    return _plain(tokenizer, text, split_special=split_special)


def _plain(tokenizer: PreTrainedTokenizerBase, text: str, *, split_special: bool = False) -> list[int]:
    read = tokenizer(text, add_special_tokens=False, split_special_tokens=split_special)
    return cast(list[int], read["input_ids"])
