"""How long, and how many, connections of callers may be open without asking anything.

What uvicorn leaves out: it bounds the time between two requests, not the time until the first one is there, nor that of
a request whose head comes slowly. A body that comes slowly is the application's affair (`app.BODY_SECONDS`).
"""

import asyncio
import resource

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 10.0
"""Given to a new connection for the head of its first request."""
KEEP_ALIVE_SECONDS = 75
"""Between two requests: a caller that works on an answer for a while finds its connection open."""
MAX_CONNECTIONS = 1000
"""Above it requests are answered 503. More runs than this could not be waiting anyway."""


class PatientProtocol(HttpToolsProtocol):
    """HTTP as uvicorn speaks it, to a caller who asks in time."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._answered: object = None
        self._check = self.loop.call_later(HEAD_SECONDS, self._hang_up_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        self._check.cancel()
        super().connection_lost(exc)

    def _hang_up_if_idle(self) -> None:
        """Close the connection when there was no request, or for two checks no other than one answered already."""
        is_answered = self.cycle is not None and self.cycle.response_complete
        if self.cycle is None or (is_answered and self.cycle is self._answered):
            self.transport.close()
            return
        self._answered = self.cycle if is_answered else None
        self._check = self.loop.call_later(KEEP_ALIVE_SECONDS, self._hang_up_if_idle)


def allow_connections() -> int:
    """Raise this process's limit of open files as far as the connections need it; gives how many of them it may have,
    which leaves as many files to its slots."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, min(hard, 2 * MAX_CONNECTIONS) if hard != resource.RLIM_INFINITY else 2 * MAX_CONNECTIONS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return min(MAX_CONNECTIONS, wanted // 2)
