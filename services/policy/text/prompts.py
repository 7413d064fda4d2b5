"""An engine's handling of requests before any weights see them: token ids of messages, and refusals."""

import threading
from collections.abc import Sequence

from services.contracts.tasks import MAX_PROMPT_CHARS, Message
from services.policy.contract import AnswerRead, AnswerTokens, SampleRequest, ScoreRequest
from services.policy.engines.base import PromptRefused
from services.policy.model.modeling import LoadedPolicy, decode_ids, encode_text, render_prompt
from services.policy.text import turns


class PromptReader:
    """Reads prompts with the policy's own tokenizer. Safe from any thread. max_context: tokens, answer included."""

    def __init__(self, policy: LoadedPolicy, max_context: int) -> None:
        self._tokenizer = policy.tokenizer
        self._vocab_size = policy.vocab_size
        self._end_token_ids = policy.eos_token_ids
        self._max_context = max_context
        self._lock = threading.Lock()

    def tokenize(self, messages: Sequence[Message] | None, text: str | None) -> list[int]:
        """Token ids of messages, up to where the policy would answer, or else of text."""
        with self._lock:
            if messages is not None:
                return render_prompt(self._tokenizer, messages)
            return encode_text(self._tokenizer, text or "")

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Text of token ids. Raises PromptRefused for ids outside the vocabulary."""
        self._require_known_ids(token_ids, "token_ids")
        with self._lock:
            return decode_ids(self._tokenizer, token_ids)

    def read_answer(self, rollout: AnswerTokens) -> AnswerRead:
        """The answer in a rollout. Raises PromptRefused for ids outside the vocabulary, and for a prompt among them."""
        self._require_known_ids(rollout.token_ids, "token_ids")
        chosen = rollout.action_mask or [True] * len(rollout.token_ids)
        try:
            with self._lock:
                answer = turns.read_answer(self._tokenizer, rollout.token_ids, chosen, self._end_token_ids)
        except turns.PromptIncluded:
            raise PromptRefused(
                "token_ids begins with marks of turns that the policy did not choose; send what was sampled after the "
                "prompt, without the prompt and its last mark"
            ) from None
        before = [turn.model_copy(update={"content": turn.content[:MAX_PROMPT_CHARS]}) for turn in answer.turns]
        return AnswerRead(text=answer.text, turns=before, start=answer.start)

    def read_prompts(self, request: SampleRequest) -> list[list[int]]:
        """The token ids of each prompt. Raises PromptRefused if one is too long or has unknown ids."""
        return [self._read(p.messages, p.token_ids, request.max_new_tokens) for p in request.prompts]

    def read_items(self, request: ScoreRequest) -> list[list[int]]:
        """The token ids of each item's prompt. Raises PromptRefused if an item is too long or has unknown ids."""
        if request.top_k >= self._vocab_size:
            raise PromptRefused(f"top_k must be below the vocabulary of {self._vocab_size}")
        prompts = []
        for index, item in enumerate(request.items):
            self._require_known_ids(item.response_token_ids, f"response {index}")
            prompts.append(self._read(item.messages, item.prompt_token_ids, len(item.response_token_ids)))
        return prompts

    def _read(self, messages: Sequence[Message] | None, token_ids: list[int] | None, num_more_tokens: int) -> list[int]:
        if messages is not None:
            ids = self.tokenize(messages, None)
        else:
            ids = list(token_ids or [])
            self._require_known_ids(ids, "the prompt")
        if len(ids) + num_more_tokens > self._max_context:
            raise PromptRefused(
                f"a prompt of {len(ids)} tokens and {num_more_tokens} more exceed the context of {self._max_context}"
            )
        return ids

    def _require_known_ids(self, token_ids: Sequence[int], what: str) -> None:
        largest = max(token_ids, default=0)
        if largest >= self._vocab_size:
            raise PromptRefused(f"{what} holds the token id {largest}, outside the vocabulary of {self._vocab_size}")
