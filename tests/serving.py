"""Real servers on loopback for tests: an app under uvicorn in a thread, or canned bytes over a socket."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from sandbox.http import edge
from tests.waiting import wait_until


@contextlib.contextmanager
def serve(app: ASGIApp, port: int = 0) -> Iterator[str]:
    """The app's URL, until the block ends."""
    listener = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1, **edge.bounds())
    server = uvicorn.Server(config)

    async def run() -> None:
        await server.serve(sockets=[listener])
        # Where a handler or a client outlasts the second of grace, the connection ends here, not when it is collected.
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    wait_until(lambda: server.started, thread.is_alive, pause=0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


@contextlib.contextmanager
def serve_raw(answer: Callable[[socket.socket, bytes], None]) -> Iterator[str]:
    """A server that reads one request per connection and leaves the reply, whatever it is, to `answer`."""
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def handle(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(5)
            answer(connection, _read_request(connection))

    def loop() -> None:
        while not ended.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=handle, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        ended.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def _read_request(connection: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    while len(body) < length:
        body += connection.recv(65536)
    return body


def reply_with(
    body: bytes, status: str = "200 OK", content_type: str = "application/json", extra: str = ""
) -> Callable[[socket.socket, bytes], None]:
    """An `answer` that always sends this."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"

    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(head.encode() + body)

    return answer
