"""The command line's view of the api: typed calls over HTTP, problems turned into words."""

from collections.abc import Iterator, Mapping
from typing import TypeVar
from uuid import uuid4

import httpx2
from pydantic import BaseModel, ValidationError

from services.contracts.base import JsonObject, Problem
from services.errors import PreceptorError

M = TypeVar("M", bound=BaseModel)
Query = Mapping[str, str | int | None]


class ApiProblem(PreceptorError):
    """The api refused the request."""

    title = "The api refused"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail, hint=problem.hint)
        self.status_code = problem.status
        self.title = problem.title
        self.problem = problem


class ApiUnreachable(PreceptorError):
    """Nothing answers at the api's address."""

    status_code = 503
    title = "The api does not answer"
    hint = "Start it with `preceptor up`, or name another with PRECEPTOR_API_URL and PRECEPTOR_API_KEY."


class ApiClient:
    """One api, one key. Every POST carries an idempotency key of its own, so a retry changes nothing."""

    def __init__(self, url: str, key: str, timeout_seconds: float = 150.0) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx2.Client(base_url=url, headers=headers, timeout=timeout_seconds)
        self.url = url

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def get(self, path: str, reply: type[M], query: Query | None = None) -> M:
        """GET, read as `reply`. Errors: ApiProblem, ApiUnreachable."""
        return reply.model_validate_json(self._send("GET", path, None, query))

    def get_json(self, path: str, query: Query | None = None) -> JsonObject:
        """GET, as plain JSON."""
        content: JsonObject = httpx2.Response(200, content=self._send("GET", path, None, query)).json()
        return content

    def post(self, path: str, body: BaseModel | None, reply: type[M]) -> M:
        """POST, read as `reply`. Errors: ApiProblem, ApiUnreachable."""
        return reply.model_validate_json(self._send("POST", path, body, None))

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
        try:
            response = self._http.request(method, path, content=content, headers=headers, params=params)
        except httpx2.TransportError as error:
            raise ApiUnreachable(f"{self.url}: {error or type(error).__name__}") from None
        if response.is_success:
            return response.content
        raise ApiProblem(_read_problem(response))


def _read_problem(response: httpx2.Response) -> Problem:
    try:
        return Problem.model_validate_json(response.content)
    except ValidationError:
        return Problem(
            type="about:blank", title="Unexpected answer", status=response.status_code, detail=response.text[:500]
        )
