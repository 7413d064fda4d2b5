"""Problem documents (RFC 9457) as a client reads them."""

from typing import Final

from pydantic import ValidationError

from sandbox.http.problems import Problem

MAX_EXCERPT_CHARS: Final = 500
"""Of an answer that is no problem document."""


def read_problem(status: int, body: bytes) -> Problem:
    """The detail of a failed response; of one that is no problem document, its first characters."""
    try:
        return Problem.model_validate_json(body)
    except ValidationError:
        detail = body[:MAX_EXCERPT_CHARS].decode(errors="replace").strip() or f"status {status}, empty body"
        return Problem(type="about:blank", title="Unexpected answer", status=status, detail=detail)


def read_retry_after(value: str | None) -> int | None:
    """The seconds in a Retry-After header; None where it has none or a date."""
    return int(value) if value and value.isascii() and value.isdecimal() else None
