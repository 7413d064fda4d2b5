"""Asks a policy process over HTTP: typed in, typed out, two kinds of failure. Loads no torch.

PolicyUnavailable: the process is away, busy or broken; the same request may work later.
PolicyRefused: this request will never work as it is (a 4xx, with the process's own words).
"""

from types import TracebackType
from typing import Final, Self, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import BaseModel, ValidationError

from services.contracts.problems import read_problem, read_retry_after
from services.policy.contract import (
    AnswerRead,
    AnswersBatch,
    AnswersRead,
    AnswerTokens,
    DetokenizeRequest,
    Pieces,
    PolicyHealth,
    PolicyInfo,
    ProveRequest,
    SampleRequest,
    SampleResponse,
    ScoreRequest,
    ScoreResponse,
    Text,
    TokenIds,
    TokenIdsBatch,
    TokenizeBatch,
    TokenizeRequest,
    Version,
    VersionCreate,
)
from services.runtime import logs
from services.runtime.errors import PreceptorError, ServiceUnavailable

CONNECT_SECONDS: Final = 5.0
READ_SECONDS: Final = 600.0
PIECES_SECONDS: Final = 3.0
RETRY_SECONDS: Final = 5
RETRY_LATER: Final = frozenset({408, 425, 429})

Reply = TypeVar("Reply", bound=BaseModel)


class PolicyUnavailable(ServiceUnavailable):
    """The policy process could not be reached, is busy, or failed."""

    title = "Policy unavailable"

    def __init__(self, detail: str, retry_after_seconds: int = RETRY_SECONDS) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class PolicyRefused(PreceptorError):
    """The policy process refused the request; `status_code` and the words are its own."""

    title = "Policy refused"

    def __init__(self, status_code: int, detail: str, hint: str = "") -> None:
        super().__init__(detail, hint=hint)
        self.status_code = status_code


class PolicyClient:
    """A connection pool to one policy process; safe to share between threads. Use as a context manager or close it."""

    def __init__(self, base_url: str, api_key: str = "", read_seconds: float = READ_SECONDS) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = httpx2.Timeout(read_seconds, connect=CONNECT_SECONDS)
        self._http = httpx2.Client(base_url=base_url, headers=headers, timeout=timeout, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the pool's connections."""
        self._http.close()

    def health(self) -> PolicyHealth:
        """Whether the process is up with its weights loaded."""
        return self._ask("GET", "/healthz", None, PolicyHealth)

    def info(self) -> PolicyInfo:
        """The served model and versions, and the counters."""
        return self._ask("GET", "/v1/policy", None, PolicyInfo)

    def sample(self, request: SampleRequest, read_seconds: float | None = None) -> SampleResponse:
        """Draw answers. read_seconds: how long to wait for them, if not as long as for everything."""
        return self._ask("POST", "/v1/sample", request, SampleResponse, read_seconds)

    def score(self, request: ScoreRequest, read_seconds: float | None = None) -> ScoreResponse:
        """Logprobs of given responses. read_seconds: as `sample`."""
        return self._ask("POST", "/v1/score", request, ScoreResponse, read_seconds)

    def tokenize(self, request: TokenizeRequest) -> TokenIds:
        """Token ids of messages or text."""
        return self._ask("POST", "/v1/tokenize", request, TokenIds)

    def detokenize(self, token_ids: list[int]) -> str:
        """Text of token ids."""
        return self._ask("POST", "/v1/detokenize", DetokenizeRequest(token_ids=token_ids), Text).text

    def pieces(self, token_ids: list[int]) -> list[str]:
        """The characters each token adds to the text before it, within a short deadline: a person waits for it."""
        body = DetokenizeRequest(token_ids=token_ids)
        return self._ask("POST", "/v1/pieces", body, Pieces, read_seconds=PIECES_SECONDS).pieces

    def tokenize_batch(self, items: list[TokenizeRequest]) -> list[list[int]]:
        """Token ids of at most `MAX_TEXTS` messages or texts; if one is refused, all are."""
        return self._ask("POST", "/v1/tokenize/batch", TokenizeBatch(items=items), TokenIdsBatch).token_ids

    def read_answers(self, items: list[AnswerTokens]) -> list[AnswerRead]:
        """The answers in at most `MAX_TEXTS` rollouts; if one is refused, all are."""
        return self._ask("POST", "/v1/answers/batch", AnswersBatch(items=items), AnswersRead).answers

    def load_version(self, name: str, sha256: str) -> Version:
        """Load an adapter from the artifacts folder under a name; loading the same one again changes nothing."""
        return self._ask("POST", "/v1/versions", VersionCreate(name=name, sha256=sha256), Version)

    def prove_version(self, name: str, request: ProveRequest) -> Version:
        """Compare the version's logprobs with the expected ones; the outcome is in `status` and `probe`."""
        return self._ask("POST", f"/v1/versions/{quote(name)}/prove", request, Version)

    def serve_version(self, name: str) -> Version:
        """Make a proved version the serving one. Requests already accepted keep the version they were given."""
        return self._ask("POST", f"/v1/versions/{quote(name)}/serve", None, Version)

    def delete_version(self, name: str) -> None:
        """Forget a version that neither serves nor is being used."""
        self._send("DELETE", f"/v1/versions/{quote(name)}", None)

    def _ask(
        self, method: str, path: str, body: BaseModel | None, reply: type[Reply], read_seconds: float | None = None
    ) -> Reply:
        response = self._send(method, path, body, read_seconds)
        try:
            return reply.model_validate_json(response.content)
        except ValidationError as error:
            raise PolicyUnavailable(f"{method} {path}: the answer is not a {reply.__name__}: {error}") from error

    def _send(
        self, method: str, path: str, body: BaseModel | None, read_seconds: float | None = None
    ) -> httpx2.Response:
        content = body.model_dump_json(exclude_none=True).encode() if body is not None else None
        headers = logs.request_headers()
        if content is not None:
            headers["Content-Type"] = "application/json"
        try:
            timeout = self._http.timeout if read_seconds is None else httpx2.Timeout(read_seconds, connect=1)
            response = self._http.request(method, path, content=content, headers=headers, timeout=timeout)
        except httpx2.TransportError as error:
            raise PolicyUnavailable(f"{method} {path}: {type(error).__name__}: {error}") from error
        if response.is_success:
            return response
        problem = read_problem(response.status_code, response.content)
        said = f"{method} {path}: {response.status_code}: {problem.detail}"
        if response.status_code >= 500 or response.status_code in RETRY_LATER:
            after = read_retry_after(response.headers.get("Retry-After"))
            raise PolicyUnavailable(said, RETRY_SECONDS if after is None else after)
        raise PolicyRefused(response.status_code, said, problem.hint)
