"""The errors of Preceptor: each knows its HTTP status and what the caller can do about it.

One handler renders them as problem documents (RFC 9457). A room adds its own subclasses beside the code
that raises them; this module keeps only those that several rooms raise.
"""

from collections.abc import Sequence

from pydantic import JsonValue


class PreceptorError(Exception):
    """Base of every error that is meant for a caller; the message says what is wrong with this request."""

    status_code: int = 500
    title: str = "Internal error"
    hint: str = ""
    retry_after_seconds: int | None = None
    errors: Sequence[dict[str, JsonValue]] = ()
    """The faults of single parts of the request."""

    def __init__(self, detail: str, *, hint: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        if hint is not None:
            self.hint = hint

    @property
    def slug(self) -> str:
        """The error's name as the last part of the problem's type, e.g. `task-not-found`."""
        name = type(self).__name__
        return "".join(f"-{c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(name))


class NotFound(PreceptorError):
    """The named thing does not exist, or not for this lineage."""

    status_code = 404
    title = "Not found"


class Conflict(PreceptorError):
    """The request contradicts the present state; reading it again shows why."""

    status_code = 409
    title = "Conflict"


class InvalidInput(PreceptorError):
    """The request is well-formed but its content is invalid; it was not stored."""

    status_code = 422
    title = "Invalid input"


class IllegalStatusChange(Conflict):
    """The row's status does not allow this change."""

    title = "Status change not allowed"
    hint = "Read it again: it may have changed meanwhile."


class ServiceUnavailable(PreceptorError):
    """Something this service needs is away for the moment; the same request will work later."""

    status_code = 503
    title = "Temporarily unavailable"
    hint = "Send the same request again after the time in Retry-After; an idempotency key makes that safe."
    retry_after_seconds = 5
