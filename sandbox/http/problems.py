"""Problem documents (RFC 9457): the bodies of all answers that refuse a request.

They repeat names and short excerpts of a request only: inputs may be huge, and may be secrets.
"""

from collections.abc import Sequence
from typing import Final

from pydantic import BaseModel, ConfigDict, JsonValue
from pydantic_core import ErrorDetails

MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:preceptor:problem:"
MAX_ERRORS: Final = 50
MAX_DETAIL_CHARS: Final = 2000
MAX_TEXT_CHARS: Final = 500


class Fault(BaseModel):
    """One part of a request that is wrong. row: counted from 1, where the request has rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    where: str
    what: str
    row: int | None = None


class Problem(BaseModel):
    """A problem document (RFC 9457): what went wrong with this request and what to do about it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str
    title: str
    status: int
    detail: str
    hint: str = ""
    instance: str = ""
    errors: list[Fault] = []


def describe_invalid(errors: Sequence[ErrorDetails], instance: str = "") -> Problem:
    """The problem of a request that does not fit its contract: its first fault as the detail, all in `errors`."""
    faults = describe_errors(errors)
    first = f"{faults[0]['where']}: {faults[0]['what']}" if faults else "the request does not fit its contract"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Problem(
        type=TYPE_PREFIX + "request-invalid",
        title="Invalid request",
        status=422,
        detail=first + more,
        hint="`errors` lists every fault; GET /openapi.json has the contract. Nothing was stored.",
        instance=shorten(instance, MAX_TEXT_CHARS),
        errors=faults,
    )


def describe_errors(errors: Sequence[ErrorDetails]) -> list[dict[str, JsonValue]]:
    """Validation errors as {where, what}, without the values that were sent."""
    return [
        {
            "where": shorten(".".join(str(part) for part in error["loc"]), MAX_TEXT_CHARS),
            "what": shorten(error["msg"].removeprefix("Value error, "), MAX_TEXT_CHARS),
        }
        for error in errors[:MAX_ERRORS]
    ]


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters of a text, with a mark where it was cut; lone surrogates are written as escapes."""
    safe = text[:limit].encode(errors="backslashreplace").decode()
    return safe if len(text) <= limit >= len(safe) else safe[: limit - 1] + "…"
