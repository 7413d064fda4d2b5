"""The edge of an HTTP server: bounds what a caller can make it hold, and for how long, before any application or key.

It adds the limits that uvicorn lacks: on the bytes and the number of headers, the framing of a chunked body with its
trailers, pipelined requests, connections, the time for a head and for a body, and the time that an answer may lie
unread. body_limit.py bounds the body itself.
"""

import asyncio
import ctypes
import json
import resource
import socket
import struct
from http import HTTPStatus
from typing import Any, ClassVar, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

MAX_HEAD_BYTES: Final = 32 << 10
"""Of the request line and all headers."""
_HEAD_TOO_LONG: Final = f"a request's head has at most {MAX_HEAD_BYTES} bytes"
MAX_HEADERS: Final = 100
MAX_FRAMING_BYTES: Final = 1 << 20
"""Of a body's chunk sizes, chunk extensions and trailers together. Trailers are dropped."""
MAX_BODIES_BYTES: Final = 256 << 20
"""Of the bodies of all unanswered requests of a server; above it 503."""
MAX_SENT_AHEAD: Final = 8
"""Pipelined requests on one connection."""
HEAD_SECONDS: Final = 10.0
"""For a request's head, from its first byte; on a new connection, from the start."""
BODY_SECONDS: Final = 30.0
"""For a request's body."""
ANSWER_SECONDS: Final = 30.0
"""How long a caller may read its answer more slowly than MIN_ANSWER_BYTES per LOOK_SECONDS."""
MIN_ANSWER_BYTES: Final = 32 << 10
KEEP_ALIVE_SECONDS: Final = 75
"""Between two requests, so that a caller which works on an answer finds its connection open."""
MAX_CONNECTIONS: Final = 1000
"""Above it requests are answered 503."""
SPARE_CONNECTIONS: Final = 50
"""Above the limit: they are answered 503; further ones are closed at once."""
LOOK_SECONDS: Final = 2.0
LINGER_SECONDS: Final = 1.0
"""How long the rest of a refused request is discarded: a caller whose connection closes at once cannot read why."""
_BETWEEN_COUNTS: Final = 1 << 20
_LARGE_BYTES: Final = 1 << 20
_TRIM_SECONDS: Final = 1.0
_RESET_AT_CLOSE: Final = struct.pack("ii", 1, 0)
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU library alone
_SLICE_BYTES: Final = 16 << 10
"""Parsed at a time, so that no bound is exceeded by more."""


class _Refused(Exception):
    """Stops the parser."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, within bounds."""

    _next_trim: ClassVar[float] = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        now = self.loop.time()
        self._is_in_body = False
        self._num_overhead = 0
        self._refusal: tuple[int, str] | None = None
        self._head_deadline: float | None = now + HEAD_SECONDS
        self._body_deadline = now
        self.num_body_bytes = 0
        self._num_unsent = 0
        self._has_drained = False
        self._stuck_since = now
        self._running: RequestResponseCycle | None = None
        self._look_again = self.loop.call_later(LOOK_SECONDS, self._look)
        if self.limit_concurrency is not None and len(self.connections) > self.limit_concurrency + SPARE_CONNECTIONS:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._look_again.cancel()
        self._tell_gone()
        if max(self._num_unsent, self.num_body_bytes) > _LARGE_BYTES:
            self._give_memory_back()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the data slice by slice; discard it after a refusal."""
        for start in range(0, len(data), _SLICE_BYTES):
            if self._refusal is not None or self.transport.is_closing():
                return
            piece = data[start : start + _SLICE_BYTES]
            if self._head_deadline is None and not self._is_in_body:
                self._head_deadline = self.loop.time() + HEAD_SECONDS
            self._num_overhead += len(piece)
            super().data_received(piece)
            if self._num_overhead > (MAX_FRAMING_BYTES if self._is_in_body else MAX_HEAD_BYTES):
                self._refuse(431, _HEAD_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; a trailer is dropped, since the application has the head already."""
        if self._is_in_body:
            return
        if len(self.headers) >= MAX_HEADERS:
            self._stop(431, f"a request has at most {MAX_HEADERS} headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= MAX_SENT_AHEAD:
            self._stop(429, f"at most {MAX_SENT_AHEAD} requests may wait for an earlier answer")
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            self._stop(431, _HEAD_TOO_LONG)  # its last slice held the end of it
        has_body = any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)
        if self.parser.should_upgrade() and has_body:  # the parser would drop the body
            self._stop(400, "this server speaks HTTP only: send a body without the header Upgrade")
        super().on_headers_complete()
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False  # it is answered as HTTP, but the parser goes no further
        self._is_in_body = True
        self._num_overhead = 0
        self._head_deadline = None
        self._body_deadline = self.loop.time() + BODY_SECONDS

    def on_body(self, body: bytes) -> None:
        self._num_overhead -= len(body)
        if self._owes_answer:
            self.num_body_bytes += len(body)
            if self.num_body_bytes % _BETWEEN_COUNTS < len(body):
                self._count_bodies()
        super().on_body(body)

    def _count_bodies(self) -> None:
        others = (each for each in self.connections if isinstance(each, BoundedProtocol))
        if sum(each.num_body_bytes for each in others) > MAX_BODIES_BYTES:
            self._stop(503, "the bodies of other requests take all the memory reserved for bodies")

    def on_response_complete(self) -> None:
        if self.num_body_bytes > _LARGE_BYTES:
            self._give_memory_back()
        self.num_body_bytes = 0
        super().on_response_complete()

    def on_message_complete(self) -> None:
        self._is_in_body = False
        self._num_overhead = 0
        super().on_message_complete()

    def resume_writing(self) -> None:
        self._has_drained = True
        super().resume_writing()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _unsupported_upgrade_warning(self) -> None:
        """Stay silent: any caller could fill the log."""

    def _stop(self, status: int, detail: str) -> None:
        """Refuse from within the parser."""
        self._refusal = (status, detail)
        raise _Refused

    def send_400_response(self, msg: str) -> None:
        """Answer the request at which the parser stopped; uvicorn calls it for any reason."""
        self._refuse(*(self._refusal or (400, msg)))

    def _refuse(self, status: int, detail: str) -> None:
        """Answer the incoming request and close; close without an answer where the caller could take it for the answer
        to another request."""
        self._refusal = (status, detail)
        is_own = self._is_in_body and not self.pipeline and not self.cycle.response_started
        is_next = not self._is_in_body and not self._owes_answer
        self._tell_gone()
        if is_own or is_next:
            self.transport.write(_render(status, detail))
        self.flow.resume_reading()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)

    @property
    def _owes_answer(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _tell_gone(self) -> None:
        """Tell the application that its caller hung up; uvicorn does so for the newest request only."""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def _look(self) -> None:
        """Hang up on a caller whose time is over. Time does not count while the caller waits for us."""
        self._look_again = self.loop.call_later(LOOK_SECONDS, self._look)
        now = self.loop.time()
        if self._is_stuck(now):
            # without the reset the kernel would keep what it has of the answer
            connection: socket.socket = self.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            self.transport.abort()
        elif self._refusal is not None or self.transport.is_closing():
            return
        elif self.flow.read_paused:
            self._body_deadline = now + BODY_SECONDS
        elif self._is_in_body:
            if now > self._body_deadline:
                self._refuse(408, f"a request's body arrives within {BODY_SECONDS:g} s")
        elif self._head_deadline is not None:
            if self._owes_answer:
                self._head_deadline = now + HEAD_SECONDS
            elif now > self._head_deadline:
                self.transport.close()

    def _give_memory_back(self) -> None:
        """Let the allocator return freed memory soon, once the application has released it too."""
        now = self.loop.time()
        if _trim is not None and now >= BoundedProtocol._next_trim:
            BoundedProtocol._next_trim = now + _TRIM_SECONDS
            self.loop.call_later(_TRIM_SECONDS, _trim, 0)

    def _is_stuck(self, now: float) -> bool:
        """Whether an answer has waited here unread for too long."""
        num_unsent = self.transport.get_write_buffer_size()
        if num_unsent == 0 or self._has_drained or num_unsent <= self._num_unsent - MIN_ANSWER_BYTES:
            self._stuck_since = now
        self._num_unsent, self._has_drained = num_unsent, False
        return now - self._stuck_since > ANSWER_SECONDS


def _render(status: int, detail: str) -> bytes:
    title = HTTPStatus(status).phrase
    body = json.dumps({"type": "about:blank", "title": title, "status": status, "detail": detail}).encode()
    head = f"content-type: application/problem+json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return STATUS_LINE[status] + head.encode() + body


def allow_connections() -> int:
    """Raise this process's limit of open files to twice MAX_CONNECTIONS, if it may; return half of it, the connections
    it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, min(hard, 2 * MAX_CONNECTIONS) if hard != resource.RLIM_INFINITY else 2 * MAX_CONNECTIONS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return min(MAX_CONNECTIONS, wanted // 2)


def bounds() -> dict[str, Any]:
    """The settings of a uvicorn server with this edge."""
    return {
        "http": BoundedProtocol,
        "ws": "none",
        "timeout_keep_alive": KEEP_ALIVE_SECONDS,
        "limit_concurrency": allow_connections(),
    }
