"""The edge of every server of ours: what a caller can make it hold, and for how long, whatever the application."""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from sandbox.http import edge
from tests.serving import serve

HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
CLOSE = b"Connection: close\r\n"
PATIENCE = 60.0


class Echo:
    """Answers with the bytes of the body, with `/large` at length, and with `/wait` when the caller is gone."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.num_asked = 0
        self.gone = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.num_asked += 1
        self.headers = scope["headers"]
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone.set()
                return
            body, more = body + message["body"], message["more_body"]
        if scope["path"] == "/wait":
            await receive()
            self.gone.set()
            return
        answer = b"x" * (16 << 20) if scope["path"] == "/large" else body
        headers = [(b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


@pytest.fixture
def app() -> Echo:
    return Echo()


@pytest.fixture
def port(app: Echo, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(edge, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(edge, "LINGER_SECONDS", 0.2)
    with serve(app) as url:
        yield int(url.rpartition(":")[2])


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def ask(port: int, *pieces: bytes) -> bytes:
    """What comes back until the other end closes; it may close before everything was sent."""
    with connect(port) as connection:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
        return read(connection)


def read(connection: socket.socket) -> bytes:
    data = bytearray()
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(1 << 16):
            data += piece
    return bytes(data)


def status_of(answer: bytes) -> int:
    return int(answer.split()[1]) if answer else 0


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ([HEAD, *[b"a: b\r\n" * 1000] * 200], 431),
        ([HEAD + b"a: ", *[b"x" * 65536] * 50], 431),
        ([HEAD, *[b"x" * 65536] * 50], 431),
        ([HEAD + CLOSE + b"a: " + b"x" * 33000 + b"\r\n\r\n"], 431),
        ([b"GET /" + b"x" * 33000 + b" HTTP/1.1\r\n" + CLOSE + b"\r\n"], 431),
        ([b"GET /", *[b"x" * 65536] * 50], 431),
        ([*[b"\r\n" * 30000] * 20], 431),
        ([POST + CHUNKED + b"0\r\n", *[b"a: b\r\n" * 10000] * 50], 431),
        ([POST + CHUNKED + b"1;x=", *[b"x" * 65536] * 50], 431),
        ([POST + CHUNKED, *[b"1\r\nx\r\n" * 10000] * 50], 431),
        ([POST + CHUNKED + b"F" * 30 + b"\r\n", b"x"], 400),
        ([POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"], 400),
        ([POST + b"Content-Length: 2\r\n" + CHUNKED + b"2\r\n{}\r\n0\r\n\r\n"], 400),
        ([POST + b"Content-Length: -2\r\n\r\n{}"], 400),
        ([POST + b"Content-Length: 99999999999999999999999\r\n\r\n{}"], 400),
        ([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], 400),
        ([b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"], 400),
        ([bytes(range(256)) * 4], 400),
        ([HEAD + b"X-Request-Id: a\nb\0\r\n\r\n"], 400),
    ],
)
def test_what_goes_beyond_its_bounds_is_refused_in_a_problem_document(
    port: int, pieces: list[bytes], status: int
) -> None:
    answer = ask(port, *pieces)
    assert status_of(answer) == status
    assert b"application/problem+json" in answer
    assert status_of(ask(port, HEAD + CLOSE + b"\r\n")) == 200


def test_as_many_headers_and_bytes_as_allowed_pass(port: int, app: Echo) -> None:
    others = HEAD + CLOSE
    few = others + b"a: b\r\n" * (edge.MAX_HEADERS - 2) + b"\r\n"
    assert status_of(ask(port, few)) == 200
    assert len(app.headers) == edge.MAX_HEADERS
    assert status_of(ask(port, few[:-2] + b"a: b\r\n\r\n")) == 431
    long = others + b"a: " + b"x" * (edge.MAX_HEAD_BYTES - len(others) - 7) + b"\r\n\r\n"
    assert len(long) == edge.MAX_HEAD_BYTES
    assert status_of(ask(port, long)) == 200


def test_a_chunked_body_arrives_whole_and_its_trailers_are_dropped(port: int, app: Echo) -> None:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [b"abc", b"d" * 70_000, b"e"])
    answer = ask(port, POST + CLOSE + CHUNKED + chunks + b"0\r\nAuthorization: Bearer x\r\n\r\n")
    assert answer.partition(b"\r\n\r\n")[2] == b"abc" + b"d" * 70_000 + b"e"
    assert b"authorization" not in dict(app.headers)


def test_requests_sent_ahead_are_answered_in_order_up_to_a_number(port: int, app: Echo) -> None:
    def post(number: int, *, last: bool) -> bytes:
        return POST + (CLOSE if last else b"") + b"Content-Length: 4\r\n\r\n" + b"%04d" % number

    few = [post(number, last=number == edge.MAX_SENT_AHEAD) for number in range(edge.MAX_SENT_AHEAD + 1)]
    answer = ask(port, b"".join(few))
    assert [part[:4] for part in answer.split(b"\r\n\r\n")[1:]] == [b"%04d" % number for number in range(len(few))]
    num_asked = app.num_asked
    assert ask(port, (HEAD + b"\r\n") * 1000).count(b"HTTP/1.1 200") <= edge.MAX_SENT_AHEAD
    assert app.num_asked - num_asked <= edge.MAX_SENT_AHEAD + 1


def test_an_upgrade_is_answered_as_http_and_refused_where_a_body_would_be_lost(port: int) -> None:
    for kind in (b"websocket", b"h2c"):
        upgrade = b"Connection: Upgrade\r\nUpgrade: " + kind + b"\r\n"
        assert status_of(ask(port, HEAD + upgrade + b"\r\n")) == 200
        assert status_of(ask(port, POST + upgrade + b"Content-Length: 2\r\n\r\n{}")) == 400


def test_a_body_is_asked_for_when_it_is_expected(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(POST + CLOSE + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"{}")
        assert read(connection)[-2:] == b"{}"


@pytest.mark.parametrize("before", [b"", HEAD + b"\r\n"], ids=["first", "second"])
def test_a_head_that_comes_slowly_is_hung_up_on(port: int, monkeypatch: pytest.MonkeyPatch, before: bytes) -> None:
    with contextlib.ExitStack() as stack:
        if before:
            connection = stack.enter_context(connect(port))
            connection.sendall(before)
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        monkeypatch.setattr(edge, "HEAD_SECONDS", 0.3)
        if not before:
            connection = stack.enter_context(connect(port))
        with contextlib.suppress(ConnectionError):
            connection.sendall(HEAD)
            while True:
                connection.sendall(b"a: b\r\n")
                time.sleep(0.05)
        assert read(connection) == b""


@pytest.mark.parametrize("length", [b"Content-Length: 10\r\n\r\n", CHUNKED + b"2\r\n"], ids=["announced", "chunked"])
def test_a_body_that_does_not_come_is_answered_408(
    port: int, app: Echo, monkeypatch: pytest.MonkeyPatch, length: bytes
) -> None:
    monkeypatch.setattr(edge, "BODY_SECONDS", 0.3)
    assert status_of(ask(port, POST + length + b"{")) == 408
    assert app.gone.wait(PATIENCE)


def test_a_caller_that_never_reads_its_answer_is_hung_up_on(
    port: int, app: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge, "ANSWER_SECONDS", 0.5)
    with connect(port) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        broken = select.poll()
        broken.register(connection, 0)
        broken.poll()
        with pytest.raises(ConnectionResetError):
            list(iter(lambda: connection.recv(1 << 20), b""))


def test_a_caller_that_reads_slowly_but_steadily_gets_its_answer_whole(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge, "ANSWER_SECONDS", 4)
    with connect(port) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        num_bytes = 0
        while piece := connection.recv(1 << 18):
            num_bytes += len(piece)
            time.sleep(0.1)  # 6 s for all of it
    assert num_bytes > 16 << 20


@pytest.mark.parametrize("num_ahead", [0, 2])
def test_an_application_hears_that_its_caller_hung_up(port: int, app: Echo, num_ahead: int) -> None:
    with connect(port) as connection:
        connection.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n" + (HEAD + b"\r\n") * num_ahead)
        time.sleep(0.2)
        assert not app.gone.is_set()
    assert app.gone.wait(PATIENCE)


def test_connections_far_above_the_limit_are_closed_at_once(app: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(edge, "SPARE_CONNECTIONS", 1)
    with serve(app) as url, contextlib.ExitStack() as stack:
        port = int(url.rpartition(":")[2])
        kept = [stack.enter_context(connect(port)) for _ in range(3)]
        closed = stack.enter_context(connect(port))
        assert read(closed) == b""
        kept[0].sendall(HEAD + CLOSE + b"\r\n")
        assert status_of(read(kept[0])) == 503


def test_every_server_of_ours_has_this_edge() -> None:
    root = Path(edge.__file__).parents[2]
    starters = [path for room in ("sandbox", "services", "trainer") for path in (root / room).rglob("*.py")]
    servers = [path for path in starters if "uvicorn.run(" in (text := path.read_text()) or "uvicorn.Config(" in text]
    assert len(servers) == 5
    assert [path for path in servers if "**edge.bounds()" not in path.read_text()] == []
