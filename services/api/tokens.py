"""Rollouts as the policy's tokenizer reads them: many in two calls, with a cache of prompts.

A task never changes and a lineage has one tokenizer, so a task's prompt is tokenised once while it is in use.
"""

import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Final, TypeVar
from uuid import UUID

from sqlalchemy.orm import Session

from services.contracts.rollouts import MAX_ROLLOUT_TOKENS, RolloutCreate
from services.contracts.tasks import Message
from services.policy.client import PolicyClient, PolicyRefused, PolicyUnavailable
from services.policy.contract import MAX_TEXTS, AnswerRead, AnswerTokens, TokenizeRequest
from services.runtime.errors import InvalidInput
from services.store.loop import tasks
from services.store.loop.tasks import KnownTask

MAX_REMEMBERED_CHARS: Final = 16_000_000
"""Of prompts, which with their token ids takes some 100 MB at the worst."""
CONTEXT_SECONDS: Final = 10.0
"""How long the policy's context length is cached."""
MAX_CALL_CHARS: Final = 4_000_000
"""Roughly the largest call to the policy."""
CHARS_PER_TOKEN: Final = 6
"""About as many characters as a token id is in JSON."""

T = TypeVar("T")
R = TypeVar("R")


class RolloutTooLong(InvalidInput):
    """The rollout is more tokens than one may have, or with its prompt more than the policy can read."""

    hint = "Send a shorter rollout, or one for a task with a shorter prompt."


class PromptRepeated(InvalidInput):
    """The rollout's tokens begin with those of its task's prompt, which comes before them anyway."""

    hint = "Send only the tokens that were sampled after the prompt."


@dataclass(frozen=True)
class Tokens:
    """A rollout as the policy's tokenizer reads it: text is its answer, which begins at the token `answer_start`;
    turns come before that in the rollout."""

    prompt_token_ids: Sequence[int]
    token_ids: Sequence[int]
    text: str
    turns: Sequence[Message] = ()
    answer_start: int = 0


@dataclass(frozen=True)
class _Known:
    task: KnownTask
    num_chars: int
    prompt: "array[int] | None" = None


class Reader:
    """Reads rollouts with the policy's tokenizer; safe to share between threads."""

    def __init__(self, policy: PolicyClient) -> None:
        self._policy = policy
        self._lock = threading.Lock()
        self._known: OrderedDict[UUID, _Known] = OrderedDict()
        self._num_chars = 0
        self._context: tuple[float, int] | None = None

    def find_tasks(self, session: Session, lineage_id: UUID, ids: Collection[UUID]) -> dict[UUID, KnownTask]:
        """Those of these tasks that exist."""
        with self._lock:
            found = {i: self._known[i].task for i in ids if i in self._known}
        missing = set(ids) - set(found)
        if not missing:
            return found
        fetched = tasks.find_known(session, lineage_id, missing)
        with self._lock:
            for task in fetched.values():
                self._remember(_Known(task, sum(len(message.content) for message in task.messages)))
        return found | fetched

    def forget(self, ids: Collection[UUID]) -> None:
        """Look these tasks up afresh the next time."""
        with self._lock:
            for task_id in ids:
                self._drop(task_id)

    def read(self, wanted: Sequence[tuple[KnownTask, RolloutCreate]]) -> list[Tokens | InvalidInput | PolicyRefused]:
        """Each rollout's tokens and text with its task's prompt, or why there are none.

        Errors: PolicyUnavailable (503).
        """
        if not wanted:
            return []
        prompts = self._read_prompts({task.id: task for task, _ in wanted})
        given = [(number, rollout.text) for number, (_, rollout) in enumerate(wanted) if rollout.text is not None]
        ids_of_texts = _ask([TokenizeRequest(text=text) for _, text in given], self._policy.tokenize_batch, _weigh_text)
        ids_of = dict(zip((number for number, _ in given), ids_of_texts, strict=True))
        max_context = self._find_context()
        read: list[Tokens | InvalidInput | PolicyRefused] = []
        mute: dict[int, AnswerTokens] = {}
        for number, (task, rollout) in enumerate(wanted):
            prompt, ids = prompts[task.id], ids_of.get(number, rollout.token_ids)
            assert ids is not None, "the contract asks for text or token_ids"
            if isinstance(prompt, PolicyRefused):
                read.append(prompt)
            elif isinstance(ids, PolicyRefused):
                read.append(ids)
            elif (problem := _find_too_long(len(prompt), len(ids), max_context)) is not None:
                read.append(problem)
            elif rollout.text is None and list(ids[: len(prompt)]) == list(prompt):
                read.append(PromptRepeated(f"token_ids begins with the {len(prompt):,} tokens of its task's prompt"))
            else:
                read.append(Tokens(prompt, ids, _keepable(rollout.text or "")))
                if rollout.text is None:
                    mute[number] = AnswerTokens(token_ids=list(ids), action_mask=rollout.action_mask)
        answers = _ask(list(mute.values()), self._policy.read_answers, _weigh_rollout)
        for number, answer in zip(mute, answers, strict=True):
            tokens = read[number]
            assert isinstance(tokens, Tokens)
            read[number] = answer if isinstance(answer, PolicyRefused) else _with_answer(tokens, answer)
        return read

    def _read_prompts(self, tasks: dict[UUID, KnownTask]) -> "dict[UUID, array[int] | PolicyRefused]":
        with self._lock:
            prompts: dict[UUID, array[int] | PolicyRefused] = {
                i: known.prompt for i in tasks if (known := self._known.get(i)) is not None and known.prompt is not None
            }
            for task_id in prompts:
                self._known.move_to_end(task_id)
        missing = [task for task in tasks.values() if task.id not in prompts]
        asked = [TokenizeRequest(messages=list(task.messages)) for task in missing]
        for task, ids in zip(missing, _ask(asked, self._policy.tokenize_batch, _weigh_text), strict=True):
            if isinstance(ids, PolicyRefused):
                prompts[task.id] = ids
                continue
            prompts[task.id] = prompt = array("i", ids)
            with self._lock:
                if (known := self._known.get(task.id)) is not None:
                    self._known[task.id] = replace(known, prompt=prompt)
        return prompts

    def _find_context(self) -> int:
        now = monotonic()
        known = self._context
        if known is None or now - known[0] > CONTEXT_SECONDS:
            self._context = known = (now, self._policy.info().max_context)
        return known[1]

    def _remember(self, known: _Known) -> None:
        self._drop(known.task.id)
        self._known[known.task.id] = known
        self._num_chars += known.num_chars
        while self._num_chars > MAX_REMEMBERED_CHARS:
            self._drop(next(iter(self._known)))

    def _drop(self, task_id: UUID) -> None:
        if (known := self._known.pop(task_id, None)) is not None:
            self._num_chars -= known.num_chars


def _find_too_long(num_prompt_tokens: int, num_tokens: int, max_context: int) -> RolloutTooLong | None:
    """Why the policy cannot read the prompt and the rollout at once."""
    if num_tokens > MAX_ROLLOUT_TOKENS:
        return RolloutTooLong(f"the text is {num_tokens:,} tokens; a rollout has at most {MAX_ROLLOUT_TOKENS:,}")
    if num_prompt_tokens + num_tokens > max_context:
        return RolloutTooLong(
            f"the prompt's {num_prompt_tokens:,} tokens and the rollout's {num_tokens:,} are more than the policy's "
            f"context of {max_context:,}"
        )
    return None


def _keepable(text: str) -> str:
    """The text without NUL, which Postgres cannot hold; the token ids are the truth."""
    return text.replace("\0", "\ufffd")


def _weigh_text(request: TokenizeRequest) -> int:
    return len(request.text or "") + sum(len(message.content) for message in request.messages or [])


def _weigh_rollout(rollout: AnswerTokens) -> int:
    return 2 * CHARS_PER_TOKEN * len(rollout.token_ids)


def _with_answer(tokens: Tokens, answer: AnswerRead) -> Tokens:
    turns = [turn.model_copy(update={"content": _keepable(turn.content)}) for turn in answer.turns]
    return replace(tokens, text=_keepable(answer.text), turns=turns, answer_start=answer.start)


def _ask(items: list[T], call: Callable[[list[T]], Sequence[R]], weigh: Callable[[T], int]) -> list[R | PolicyRefused]:
    """The policy's answer to each item; where it refuses a call, each item of it by itself.

    Errors: PolicyUnavailable (503), also when the policy does not accept this api's key.
    """
    answers: list[R | PolicyRefused] = []
    for part in _split(items, weigh):
        try:
            answers += call(part)
        except PolicyRefused as refusal:
            if refusal.status_code in (401, 403):  # our key, not the caller's
                raise PolicyUnavailable("the policy process does not accept this api's key") from None
            if len(part) == 1:
                answers.append(refusal)
            else:
                for item in part:
                    answers += _ask([item], call, weigh)
    return answers


def _split(items: list[T], weigh: Callable[[T], int]) -> Iterator[list[T]]:
    """The items in order, in parts that one call may bring."""
    part: list[T] = []
    weight = 0
    for item in items:
        more = weigh(item)
        if part and (len(part) == MAX_TEXTS or weight + more > MAX_CALL_CHARS):
            yield part
            part, weight = [], 0
        part.append(item)
        weight += more
    if part:
        yield part
