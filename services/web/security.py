"""Security headers of every response, and the hosts that an open installation answers to.

Pages load no foreign resources, run no inline scripts and cannot be framed. An installation without keys answers only
to the names of this machine: otherwise any web page could reach it under its own name (DNS rebinding).
"""

from collections.abc import Mapping
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandbox.http.loopback import names_loopback
from services.http.problems import render_error
from services.runtime.errors import PreceptorError

HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


class ForeignHost(PreceptorError):
    """An open installation was called by a name of another machine."""

    status_code = 421
    title = "Not this host"
    hint = "Use http://127.0.0.1 or http://localhost, or unset PRECEPTOR_API_OPEN and log in."


class Guarded:
    """ASGI middleware: adds the headers; refuses foreign hosts where the settings open the api."""

    def __init__(self, app: ASGIApp, *, is_open: bool) -> None:
        self._app = app
        self._is_open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                add_headers(MutableHeaders(scope=message))
            await send(message)

        host = Headers(scope=scope).get("host", "")
        if self._is_open and not names_loopback(_name_of(host)):
            await render_error(ForeignHost(f"this installation is open, and {host[:100]!r} is not this machine"))(
                scope, receive, send_guarded
            )
            return
        await self._app(scope, receive, send_guarded)


def add_headers(headers: MutableHeaders) -> None:
    """The headers, where the response does not have them already."""
    for name, value in HEADERS.items():
        headers.setdefault(name, value)


def _name_of(host: str) -> str:
    return host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
