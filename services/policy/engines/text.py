"""The part that all engines have in common: they read and write text with the policy's own tokenizer, and describe the
policy that they serve."""

from collections.abc import Sequence
from typing import Any

from services.contracts.tasks import Message
from services.policy.contract import AnswerRead, AnswerTokens, Counters, PolicyInfo
from services.policy.engines.versions import VersionTable
from services.policy.model.modeling import LoadedPolicy
from services.policy.text.prompts import PromptReader


class TextEngine:
    """Base of an engine. Its `__init__` sets what is declared here."""

    _name: str
    _policy: LoadedPolicy
    _max_context: int
    _reader: PromptReader
    _versions: VersionTable[Any]

    def tokenize(self, messages: Sequence[Message] | None, text: str | None) -> list[int]:
        """Token ids of messages, up to where the policy would answer, or else of text."""
        return self._reader.tokenize(messages, text)

    def detokenize(self, token_ids: list[int]) -> str:
        """Text of token ids. Raises PromptRefused (422) for ids outside the vocabulary."""
        return self._reader.detokenize(token_ids)

    def read_answer(self, rollout: AnswerTokens) -> AnswerRead:
        """The answer in a rollout. Raises PromptRefused (422) for ids outside the vocabulary."""
        return self._reader.read_answer(rollout)

    def _describe(self, device: str, dtype: str, counters: Counters) -> PolicyInfo:
        return PolicyInfo(
            model=self._name,
            base_sha256=self._policy.base_sha256,
            former_base_sha256=self._policy.former_sha256,
            tokenizer_hash=self._policy.tokenizer_hash,
            vocab_size=self._policy.vocab_size,
            eos_token_ids=list(self._policy.eos_token_ids),
            max_context=self._max_context,
            device=device,
            dtype=dtype,
            serving=self._versions.serving,
            versions=[held.view for held in self._versions.held()],
            counters=counters,
        )
