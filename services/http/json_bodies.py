"""Bodies that must be strict JSON, declared as such."""

from typing import Final

from starlette.datastructures import Headers

from sandbox.http.body_limit import media_type
from services.runtime.errors import InvalidInput, PreceptorError

JSON: Final = "application/json"
MAX_SHOWN_CHARS: Final = 100


class WrongMediaType(PreceptorError):
    """The body was not declared as JSON."""

    status_code = 415
    title = "Unsupported media type"
    hint = "Send the header Content-Type: application/json."


class BodyNotJson(InvalidInput):
    """The body is not JSON that can be kept."""

    title = "Not strict JSON"
    hint = "Send RFC 8259 JSON in UTF-8: no NaN or Infinity, no NUL characters, no lone surrogates, no key twice."


def check_media_type(headers: Headers) -> None:
    """Pass when the body is declared as JSON. Errors: WrongMediaType (415)."""
    declared = media_type(headers)
    if declared != JSON:
        raise WrongMediaType(
            f"the body is declared as {declared[:MAX_SHOWN_CHARS]}" if declared else "the request has no Content-Type"
        )
