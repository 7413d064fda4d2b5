"""The interface of every engine behind the policy's HTTP server, and its refusals. Loads no torch.

The embedded engine (engine_transformers.py) computes in this process; engine_vllm.py asks a vLLM server. Both pass
one suite: tests/policy/engines/test_base.py.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from services.contracts.tasks import Message
from services.policy.contract import (
    AnswerRead,
    AnswerTokens,
    PolicyInfo,
    ProveRequest,
    SampleRequest,
    SampleResponse,
    ScoreRequest,
    ScoreResponse,
    Version,
    VersionCreate,
)
from services.runtime.errors import Conflict, InvalidInput, NotFound, ServiceUnavailable


class VersionNotFound(NotFound):
    """No version of this name is loaded."""

    title = "Version not found"
    hint = "GET /v1/policy lists the versions; load the adapter again with POST /v1/versions."


class VersionConflict(Conflict):
    """The name belongs to other weights, or the version is in use."""

    title = "Version conflict"


class VersionNotProved(Conflict):
    """No probe has shown yet that this version computes the trainer's logprobs."""

    title = "Version not proved"
    hint = "POST /v1/versions/{name}/prove first."


class PromptRefused(InvalidInput):
    """The prompt or response cannot be processed: too long, or ids outside the vocabulary."""

    title = "Prompt refused"


class PolicyBusy(ServiceUnavailable):
    """Too much work is waiting already."""

    title = "Policy busy"


class EngineStopped(ServiceUnavailable):
    """The engine is shutting down or has failed; it accepts no more requests."""

    title = "Engine stopped"


@dataclass
class TokenCounts:
    """Tokens the engine has dealt with since it started."""

    sampled: int = 0
    scored: int = 0
    prefilled: int = 0
    reused: int = 0


class Engine(Protocol):
    """Samples, scores and changes versions. Methods are safe from any thread."""

    @property
    def is_alive(self) -> bool:
        """Whether it would answer now."""

    @property
    def failure(self) -> str | None:
        """The error that ended it, if any."""

    def wait(self) -> None:
        """Return when it has ended."""

    def close(self) -> None:
        """Stop it; waiting requests fail with EngineStopped (503)."""

    def info(self) -> PolicyInfo:
        """The served model and versions, and the counters."""

    def tokenize(self, messages: Sequence[Message] | None, text: str | None) -> list[int]:
        """Token ids of messages, up to where the policy would answer, or else of text."""

    def detokenize(self, token_ids: list[int]) -> str:
        """Text of token ids. Raises PromptRefused (422) for ids outside the vocabulary."""

    def read_answer(self, rollout: AnswerTokens) -> AnswerRead:
        """The answer in a rollout. Raises PromptRefused (422) for ids outside the vocabulary."""

    def sample(self, request: SampleRequest) -> "Future[SampleResponse]":
        """Accept prompts; the future holds the answers, and cancelling it drops the work.

        Raises VersionNotFound (404), VersionNotProved (409), PromptRefused (422), PolicyBusy or EngineStopped (503).
        """

    def score(self, request: ScoreRequest) -> "Future[ScoreResponse]":
        """Accept responses to score; as `sample`."""

    def load_version(self, request: VersionCreate) -> Version:
        """Load an adapter under a name; a no-op if the name has these weights already.

        Raises ArtifactNotFound (404), ArtifactDamaged or VersionConflict (409), AdapterRefused (422).
        """

    def prove_version(self, name: str, request: ProveRequest) -> Version:
        """Compare the version's logprobs with the expected ones; once they agree, draw the requested answers from it.

        Raises VersionNotFound (404), PromptRefused (422), EngineStopped (503).
        """

    def serve_version(self, name: str) -> Version:
        """Make a proved version the one that requests without a version get.

        Raises VersionNotFound (404), VersionNotProved (409).
        """

    def delete_version(self, name: str) -> None:
        """Forget a version. Raises VersionNotFound (404), VersionConflict (409) if it is in use or the base."""
