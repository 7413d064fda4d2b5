"""The client against a real server that is away for a moment."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from services.cli.client import ApiClient, ApiProblem, ApiUnreachable, Patience
from services.contracts.status import LoopState, LoopSwitch
from tests.ports import free_port

STATE = b'{"sampling": true, "training": true, "max_updates": null}'


class Server:
    """Answers 503 (or another status) so many times, then 200; remembers the idempotency keys it was sent."""

    def __init__(self, num_refusals: int, status: int = 503, port: int = 0) -> None:
        self.keys: list[str | None] = []
        self.num_refusals = num_refusals
        self.status = status
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.keys.append(self.headers.get("Idempotency-Key"))
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                refused = len(server.keys) <= server.num_refusals
                body = b"the database is away" if refused else STATE
                self.send_response(server.status if refused else 200)
                if refused:
                    self.send_header("Retry-After", "3")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Serve until the block ends."""
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        thread.join()
        server.http.server_close()


@pytest.fixture
def connect() -> Iterator[Callable[..., ApiClient]]:
    """A function that makes clients, closed after the test."""
    made: list[ApiClient] = []

    def make(url: str, patience: Patience) -> ApiClient:
        made.append(ApiClient(url, "key", patience=patience))
        return made[-1]

    yield make
    for client in made:
        client.close()


def test_a_post_that_met_503_twice_is_sent_again_with_the_same_idempotency_key(
    connect: Callable[..., ApiClient],
) -> None:
    pauses: list[float] = []
    with serving(Server(2)) as server:
        client = connect(server.url, Patience(pause=pauses.append))
        assert client.post("/v1/loop", LoopSwitch(sampling=True), LoopState).sampling
        assert client.post("/v1/loop", LoopSwitch(sampling=True), LoopState).training
    first, second, third, other = server.keys
    assert first is not None
    assert first == second == third != other
    assert pauses == [3, 3], "as long as Retry-After says"


@pytest.mark.parametrize("status", [429, 503])
def test_a_patient_client_says_once_that_the_api_is_away_and_once_that_it_is_back(
    connect: Callable[..., ApiClient], status: int
) -> None:
    said: list[str] = []
    with serving(Server(20, status)) as server:
        client = connect(server.url, Patience())
        client.wait_with(lambda seconds: None, said.append)
        assert client.get("/v1/loop", LoopState).sampling
    assert said == ["the API is unreachable: the database is away; retrying", "the API answers again"]


def test_a_patient_client_waits_for_a_server_that_is_not_there_yet(connect: Callable[..., ApiClient]) -> None:
    port, said, servers = free_port(), list[str](), list[Server]()

    def start_at_the_second_try(seconds: float) -> None:
        if len(said) == 1 and not servers:
            servers.append(Server(0, port=port))
            threading.Thread(target=servers[0].http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    client = connect(f"http://127.0.0.1:{port}", Patience(None, start_at_the_second_try, said.append))
    assert client.get("/v1/loop", LoopState).sampling
    assert len(said) == 2
    servers[0].http.shutdown()
    servers[0].http.server_close()


def test_what_ends_the_pause_ends_the_wait(connect: Callable[..., ApiClient]) -> None:
    def crash(seconds: float) -> None:
        raise RuntimeError("the policy crashed")

    client = connect(f"http://127.0.0.1:{free_port()}", Patience(None, crash))
    with pytest.raises(RuntimeError, match="the policy crashed"):
        client.get("/v1/loop", LoopState)


def test_one_command_does_not_wait_forever(connect: Callable[..., ApiClient]) -> None:
    with serving(Server(10**6)) as server:
        client = connect(server.url, Patience(bound_seconds=2))  # shorter than one Retry-After
        with pytest.raises(ApiProblem) as refused:
            client.get("/v1/loop", LoopState)
    assert refused.value.retry_after_seconds == 3
    assert len(server.keys) == 1
    client = connect(f"http://127.0.0.1:{free_port()}", Patience(bound_seconds=0.5))
    with pytest.raises(ApiUnreachable):
        client.get("/v1/loop", LoopState)


def test_a_refusal_is_not_tried_again(connect: Callable[..., ApiClient]) -> None:
    with serving(Server(1, 409)) as server, pytest.raises(ApiProblem) as refused:
        connect(server.url, Patience()).post("/v1/loop", LoopSwitch(), LoopState)
    assert refused.value.status_code == 409
    assert len(server.keys) == 1
