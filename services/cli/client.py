"""The command line's client of the api: typed calls over HTTP, and problems as errors.

A temporary failure (503, 429, no connection) is retried after the time that the api names; a POST keeps its
idempotency key, so a retry after a lost answer does nothing twice.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Self, TypeVar
from uuid import uuid4

import httpx2
from pydantic import BaseModel, TypeAdapter
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, stop_never

from sandbox.http.problems import Problem
from services.contracts.base import JsonObject
from services.contracts.problems import read_problem, read_retry_after
from services.runtime.errors import PreceptorError

M = TypeVar("M", bound=BaseModel)
Query = Mapping[str, str | int | None]

BOUND_SECONDS = 8.0  # how long one command retries; long enough for a process to restart
PAUSE_SECONDS = 1.0  # between two tries if the api names no time
MAX_PAUSE_SECONDS = 30.0  # the longest time the api may name
TRANSIENT = frozenset({429, 502, 503, 504})

_json_object = TypeAdapter(JsonObject)


class ApiProblem(PreceptorError):
    """The api refused the request."""

    title = "The api refused the request"

    def __init__(self, problem: Problem, retry_after_seconds: int | None = None) -> None:
        super().__init__(problem.detail, hint=problem.hint)
        self.retry_after_seconds = retry_after_seconds
        self.status_code = problem.status
        self.title = problem.title
        self.problem = problem

    @property
    def slug(self) -> str:
        """The name the api gave the error, e.g. `task-not-found`."""
        return self.problem.type.rpartition("/")[2].rpartition(":")[2]


class ApiUnreachable(PreceptorError):
    """No answer from the api. The hint says more where the client knows what may be the reason."""

    status_code = 503
    title = "The api does not answer"
    hint = "Start it with `preceptor up`, or name another with PRECEPTOR_API_URL and PRECEPTOR_API_KEY."


@dataclass(frozen=True)
class Patience:
    """How long to wait while the api is unreachable.

    bound_seconds: None waits until `pause` raises. say: called when a wait starts, and when the api answers again.
    """

    bound_seconds: float | None = BOUND_SECONDS
    pause: Callable[[float], None] = time.sleep
    say: Callable[[str], None] = lambda line: None


class ApiClient:
    """One api, one key. Every POST carries an idempotency key of its own, the same in every try of it."""

    def __init__(
        self,
        url: str,
        key: str,
        timeout_seconds: float = 150.0,
        patience: Patience | None = None,
        explain: Callable[[], str | None] = lambda: None,
    ) -> None:
        """explain: what to do about an api that does not answer; None where nothing special is known."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx2.Client(base_url=url, headers=headers, timeout=timeout_seconds)
        self._patience = patience or Patience()
        self._explain = explain
        self.url = url
        self.key = key

    def wait_with(self, pause: Callable[[float], None], say: Callable[[str], None]) -> None:
        """From now on, while the api is unreachable, wait as long as `pause` (seconds) allows, and report it once."""
        self._patience = Patience(None, pause, say)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ended: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def get(self, path: str, reply: type[M], query: Query | None = None) -> M:
        """GET, read as `reply`. Errors: ApiProblem, ApiUnreachable."""
        return reply.model_validate_json(self._send("GET", path, None, query))

    def get_json(self, path: str, query: Query | None = None) -> JsonObject:
        """GET, as plain JSON."""
        return _json_object.validate_json(self._send("GET", path, None, query))

    def post(self, path: str, body: BaseModel | None, reply: type[M]) -> M:
        """POST, read as `reply`. Errors: ApiProblem, ApiUnreachable."""
        return reply.model_validate_json(self._send("POST", path, body, None))

    def put(self, path: str, body: BaseModel, reply: type[M]) -> M:
        """PUT, read as `reply`; repeating it changes nothing. Errors: ApiProblem, ApiUnreachable."""
        return reply.model_validate_json(self._send("PUT", path, body, None))

    def send(self, method: Literal["POST", "PUT", "DELETE"], path: str, body: BaseModel | None = None) -> None:
        """A request without an answer. Errors: ApiProblem, ApiUnreachable."""
        self._send(method, path, body, None)

    def pages(self, path: str, limit: int, query: Query | None = None) -> Iterator[JsonObject]:
        """Up to `limit` items of a list, newest first, page by page."""
        cursor: str | None = None
        left = limit
        while left > 0:
            page = self.get_json(path, {**(query or {}), "limit": min(left, 200), "cursor": cursor})
            items = page["items"]
            assert isinstance(items, list)
            for item in items[:left]:
                assert isinstance(item, dict)
                yield item
            left -= len(items)
            cursor = str(page["next_cursor"]) if page.get("next_cursor") else None
            if cursor is None:
                return

    def _send(self, method: str, path: str, body: BaseModel | None, query: Query | None) -> bytes:
        headers = {}
        if method == "POST":
            headers["Idempotency-Key"] = str(uuid4())
        content = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = body.model_dump_json().encode()
        params = {name: value for name, value in (query or {}).items() if value is not None}
        request = self._http.build_request(method, path, content=content, headers=headers, params=params)
        patience = self._patience
        bound = stop_never if patience.bound_seconds is None else stop_before_delay(patience.bound_seconds)
        tries = Retrying(
            retry=retry_if_exception(_is_transient),
            wait=_pause_after,
            stop=bound,
            sleep=patience.pause,
            before_sleep=self._say_away,
            reraise=True,
        )
        answer = tries(self._send_once, request)
        if int(tries.statistics.get("attempt_number", 1)) > 1:
            patience.say("the API answers again")
        return answer

    def _send_once(self, request: httpx2.Request) -> bytes:
        try:
            response = self._http.send(request)
        except httpx2.TransportError as error:
            raise ApiUnreachable(f"{self.url}: {error or type(error).__name__}", hint=self._explain()) from None
        if response.is_success:
            return response.content
        problem = read_problem(response.status_code, response.content)
        raise ApiProblem(problem, read_retry_after(response.headers.get("Retry-After")))

    def _say_away(self, state: RetryCallState) -> None:
        if state.attempt_number == 1:
            self._patience.say(f"the API is unreachable: {_error_of(state)}; retrying")


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, ApiUnreachable) or (isinstance(error, ApiProblem) and error.status_code in TRANSIENT)


def _pause_after(state: RetryCallState) -> float:
    """Seconds until the next try: the time the api named, up to a limit."""
    error = _error_of(state)
    named = error.retry_after_seconds if isinstance(error, PreceptorError) else None
    return PAUSE_SECONDS if named is None else min(float(named), MAX_PAUSE_SECONDS)


def _error_of(state: RetryCallState) -> BaseException | None:
    return None if state.outcome is None else state.outcome.exception()
