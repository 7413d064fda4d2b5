"""Asking experts: every kind of garbage has its own typed outcome, and no address is reached that is not allowed."""

import asyncio
import ipaddress
import json
import socket
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TypeVar

import aiohttp
import pytest

from services.contracts.answers import AnswerKind, SamplesDistribution, TopKDistribution
from services.contracts.consultations import InvalidAnswer
from services.contracts.experts import ConsultAbstain, ConsultLater, ConsultRequest, ConsultResult, Descriptor
from services.experts.protocol import client as client_module
from services.experts.protocol import signatures
from services.experts.protocol.app import ExpertAnswer, create_expert_app
from services.experts.protocol.client import EndpointRefused, ExpertClient, ExpertUnavailable, Outcome, check_address
from services.runtime.errors import ServiceUnavailable
from tests.experts.samples import OTHER_SECRET, SECRET, TOKENIZER, SampleExpert, make_descriptor, make_question
from tests.ports import free_port
from tests.serving import reply_with, serve, serve_raw

LOOPBACK = ("127.0.0.0/8", "::1/128")
ALL_KINDS = (AnswerKind.SCORE, AnswerKind.FEEDBACK, AnswerKind.SOLUTION, AnswerKind.TOPK, AnswerKind.SAMPLES)
T = TypeVar("T")


def run(work: Callable[[ExpertClient], Coroutine[None, None, T]], networks: tuple[str, ...] = LOOPBACK) -> T:
    async def go() -> T:
        async with ExpertClient(networks, max_reply_bytes=1_000_000) as client:
            return await work(client)

    return asyncio.run(go())


def consult(
    url: str,
    question: ConsultRequest | None = None,
    secret: str | None = None,
    timeout: float = 60.0,
    networks: tuple[str, ...] = LOOPBACK,
    vocab_size: int | None = None,
) -> Outcome:
    asked = question or make_question(kinds=ALL_KINDS)
    return run(lambda client: client.consult(url, asked, secret, timeout, vocab_size), networks)


def describe(url: str, secret: str | None = None, networks: tuple[str, ...] = LOOPBACK) -> Descriptor:
    return run(lambda client: client.describe(url, secret), networks)


@pytest.mark.parametrize(
    "answer", [ConsultResult(score=0.5), ConsultAbstain(reason="not my field"), ConsultLater(reason="tomorrow")]
)
@pytest.mark.parametrize("secret", [None, SECRET])
def test_an_experts_word_comes_back_as_it_was_given(answer: ExpertAnswer, secret: str | None) -> None:
    expert = SampleExpert(lambda _: answer)
    with serve(create_expert_app(expert, secret)) as url:
        assert describe(url, secret) == expert.descriptor
        assert consult(url, secret=secret) == answer


def result(**parts: object) -> bytes:
    return json.dumps({"outcome": "result", **parts}).encode()


def topk(**changed: object) -> dict[str, object]:
    rows = {"token_ids": [[1, 2]] * 3, "logprobs": [[-0.6931, -1.3863]] * 3, "tail_mass": [0.25] * 3}
    return {"kind": "topk", "tokenizer_hash": TOKENIZER, **rows, **changed}


def test_a_distribution_that_fits_is_a_result() -> None:
    with serve_raw(reply_with(result(distribution=topk()))) as url:
        outcome = consult(url)
        assert isinstance(outcome, ConsultResult)
        assert isinstance(outcome.distribution, TopKDistribution)
        assert outcome.distribution.tail_mass == [0.25] * 3


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "JSON"),
        (b"<p>hello</p>", "JSON"),
        (b'{"outcome": "result", "score": NaN}', "NaN"),
        (b'{"outcome": "result", "score": Infinity}', "Infinity"),
        (b'{"outcome": "result", "score": 1e999}', "finite"),
        (b'{"outcome": "result", "score": 0.5, "score": 1}', "twice"),
        (b'{"outcome": "result", "score": 1, "evidence": {"x": -Infinity}}', "Infinity"),
        (b'{"outcome": "result", "feedback": {"text": "a\\u0000b"}}', "NUL"),
        (b'{"outcome": "result", "feedback": {"text": "\\ud800"}}', "surrogate"),
        (b'{"outcome": "result", "score": 1, "evidence": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001, "nested"),
        (b"\xff\xfe\x00", "JSON"),
        (result(), "needs a score"),
        (result(evidence={"x": 1}), "needs a score"),
        (result(score=1.5), "score"),
        (result(score=-0.1), "score"),
        (result(score=True), "score"),
        (result(score="0.5"), "score"),
        (result(score=1, confidence=0.5), "confidence"),
        (json.dumps({"outcome": "error"}).encode(), "outcome"),
        (json.dumps({"score": 1}).encode(), "discriminator"),
        (json.dumps({"outcome": "later"}).encode(), "outcome"),
        (b"[]", "be an object"),
        (result(feedback={"text": "   "}), "feedback"),
        (result(feedback={"spans": [{"start": 2, "end": 9, "text": "x"}]}), "span ends at token 9"),
        (result(distribution=topk(tail_mass=[0.5] * 3)), "sums to 1.25"),
        (result(distribution=topk(logprobs=[[-0.6931, -1.3863]] * 2)), "one row a token"),
        (result(distribution=topk(token_ids=[[1, 1]] * 3)), "twice"),
        (result(distribution=topk(token_ids=[[1, -2]] * 3)), "token_ids"),
        (result(distribution=topk(logprobs=[[-0.6931, 0.5]] * 3)), "logprobs"),
        (result(distribution=topk(tokenizer_hash="b" * 64)), "another tokenizer"),
        (
            result(distribution=topk(token_ids=[[1, 2]], logprobs=[[-0.6931, -1.3863]], tail_mass=[0.25])),
            "1 rows for 3 tokens",
        ),
        (
            result(distribution={"kind": "samples", "prefixes": [3], "continuations": [[{"text": "x"}]]}),
            "prefix keeps 3 tokens",
        ),
        (
            result(distribution={"kind": "samples", "prefixes": [0, 1], "continuations": [[{"text": "x"}]]}),
            "one list a prefix",
        ),
    ],
)
def test_a_reply_that_breaks_the_contract_is_invalid_and_says_how(body: bytes, says: str) -> None:
    with serve_raw(reply_with(body)) as url:
        outcome = consult(url)
        assert isinstance(outcome, InvalidAnswer)
        assert says in outcome.reason


def test_token_ids_outside_the_vocabulary_are_invalid() -> None:
    with serve_raw(reply_with(result(distribution=topk(token_ids=[[1, 1000]] * 3)))) as url:
        assert isinstance(consult(url, vocab_size=1001), ConsultResult)
        outcome = consult(url, vocab_size=1000)
        assert isinstance(outcome, InvalidAnswer)
        assert "outside the vocabulary" in outcome.reason


def test_kinds_and_prefixes_that_were_not_asked_for_are_invalid() -> None:
    with serve_raw(reply_with(result(score=1, solution="5"))) as url:
        outcome = consult(url, make_question(kinds=(AnswerKind.SCORE,)))
        assert isinstance(outcome, InvalidAnswer)
        assert "solution, which was not asked for" in outcome.reason
    samples = {"kind": "samples", "prefixes": [0, 2], "continuations": [[{"text": "x"}]] * 2}
    with serve_raw(reply_with(result(distribution=samples))) as url:
        outcome = consult(url, make_question(kinds=(AnswerKind.SAMPLES,), prefixes=(0, 1)))
        assert isinstance(outcome, InvalidAnswer)
        assert "[2]" in outcome.reason
        fitting = consult(url, make_question(kinds=(AnswerKind.SAMPLES,), prefixes=(0, 1, 2)))
        assert isinstance(fitting, ConsultResult)
        assert isinstance(fitting.distribution, SamplesDistribution)


def test_html_is_invalid_as_an_answer_and_refused_as_an_endpoint() -> None:
    with serve_raw(reply_with(b"<html>", content_type="text/html; charset=utf-8")) as url:
        outcome = consult(url)
        assert isinstance(outcome, InvalidAnswer)
        assert "HTML" in outcome.reason
        with pytest.raises(EndpointRefused, match="HTML"):
            describe(url)


def test_a_redirect_is_not_followed() -> None:
    expert = SampleExpert()
    with (
        serve(create_expert_app(expert)) as there,
        serve_raw(reply_with(b"", "307 Temporary Redirect", extra=f"Location: {there}/v1/consult\r\n")) as url,
    ):
        outcome = consult(url)
        assert isinstance(outcome, InvalidAnswer)
        assert "redirects" in outcome.reason
        with pytest.raises(EndpointRefused, match="redirects"):
            describe(url)
        assert expert.num_calls == 0


@pytest.mark.parametrize("declared", [True, False])
def test_a_huge_reply_is_not_read_to_its_end(declared: bool) -> None:
    def answer(connection: socket.socket, request: bytes) -> None:
        length = "Content-Length: 1000000000\r\n" if declared else "Connection: close\r\n"
        connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{length}\r\n".encode())
        for _ in range(1000):
            connection.sendall(b" " * 1_000_000)

    with serve_raw(answer) as url:
        outcome = consult(url)
        assert isinstance(outcome, InvalidAnswer)
        assert "more than 1000000 bytes" in outcome.reason


def test_a_compressed_reply_is_refused_unread() -> None:
    with serve_raw(reply_with(b"\x1f\x8b" + b"\0" * 100, extra="Content-Encoding: gzip\r\n")) as url:
        outcome = consult(url)
        assert isinstance(outcome, InvalidAnswer)
        assert "encoding" in outcome.reason


@pytest.mark.parametrize("status", ["500 Internal Server Error", "502 Bad Gateway", "503 Service Unavailable"])
def test_a_servers_fault_is_unavailable_and_never_an_answer(status: str) -> None:
    with serve_raw(reply_with(result(score=0), status)) as url:
        with pytest.raises(ExpertUnavailable) as raised:
            consult(url)
        assert raised.value.retry_after is None


@pytest.mark.parametrize(("extra", "seconds"), [("Retry-After: 7\r\n", 7.0), ("", 1.0), ("Retry-After: soon\r\n", 1.0)])
def test_a_busy_expert_says_when_to_come_back(extra: str, seconds: float) -> None:
    with serve_raw(reply_with(b"{}", "429 Too Many Requests", extra=extra)) as url:
        with pytest.raises(ExpertUnavailable) as raised:
            consult(url)
        assert raised.value.retry_after == seconds


def test_a_busy_expert_may_name_a_time_and_is_never_asked_to_be_left_alone_for_longer_than_an_hour() -> None:
    at = datetime.now(UTC) + timedelta(minutes=10)
    for wish, seconds in ((format_datetime(at, usegmt=True), 600.0), ("999999", 3600.0)):
        with serve_raw(reply_with(b"{}", "429 Too Many Requests", extra=f"Retry-After: {wish}\r\n")) as url:
            with pytest.raises(ExpertUnavailable) as raised:
                consult(url)
            assert raised.value.retry_after == pytest.approx(seconds, abs=60)


def test_an_experts_wrong_clock_is_no_wrong_answer() -> None:
    body, question = result(score=1), make_question(kinds=ALL_KINDS)
    signed = signatures.sign(SECRET, str(question.consultation_id), body, datetime.now(UTC) + timedelta(minutes=45))
    extra = "".join(f"{name}: {value}\r\n" for name, value in signed.items())
    with serve_raw(reply_with(body, extra=extra)) as url, pytest.raises(ExpertUnavailable, match="45 minutes ahead"):
        consult(url, question, SECRET)


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden", "404 Not Found"])
def test_a_refusal_that_a_person_can_mend_leaves_the_question_open(status: str) -> None:
    with serve_raw(reply_with(b"{}", status)) as url, pytest.raises(ExpertUnavailable):
        consult(url)


def test_a_question_the_expert_refuses_is_invalid() -> None:
    with serve_raw(reply_with(b'{"detail": "too long for me"}', "422 Unprocessable Content")) as url:
        outcome = consult(url)
        assert isinstance(outcome, InvalidAnswer)
        assert "too long for me" in outcome.reason


def stall(connection: socket.socket, _: bytes) -> None:
    """No answer, until the other end hangs up."""
    connection.settimeout(None)
    connection.recv(1)


def test_an_expert_that_is_down_failing_or_slow_is_unavailable() -> None:
    with pytest.raises(ExpertUnavailable, match="Connect"):
        consult(f"http://127.0.0.1:{free_port()}")

    def fail(_: ConsultRequest) -> ExpertAnswer:
        raise ServiceUnavailable("loading")

    with serve(create_expert_app(SampleExpert(fail))) as url, pytest.raises(ExpertUnavailable, match="loading"):
        consult(url)

    with serve_raw(stall) as url, pytest.raises(ExpertUnavailable, match=r"within 0\.3 s"):
        consult(url, timeout=0.3)


def test_a_reply_that_drips_is_cut_at_the_timeout() -> None:
    def drip(connection: socket.socket, request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n")
        while True:
            connection.sendall(b" ")
            time.sleep(0.05)

    with serve_raw(drip) as url, pytest.raises(ExpertUnavailable, match="within"):
        consult(url, timeout=0.5)


def test_hanging_up_in_the_middle_of_a_reply_is_unavailable() -> None:
    def hang_up(connection: socket.socket, _: bytes) -> None:
        connection.sendall(
            b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"outcome"'
        )

    with serve_raw(hang_up) as url, pytest.raises(ExpertUnavailable):
        consult(url)
    with serve_raw(lambda c, _: None) as url, pytest.raises(ExpertUnavailable):
        consult(url)
    with serve_raw(lambda c, _: c.sendall(b"SSH-2.0-OpenSSH_9\r\n")) as url, pytest.raises(ExpertUnavailable):
        consult(url)


def test_no_answer_is_waited_for_beyond_the_questions_deadline() -> None:
    with serve_raw(stall) as url, pytest.raises(ExpertUnavailable):
        consult(url, make_question(seconds=0.3), timeout=600)
    with pytest.raises(ExpertUnavailable, match="deadline has passed"):
        consult("http://127.0.0.1:1", make_question(seconds=-1))


def test_a_202_must_say_later_and_a_200_must_not() -> None:
    with serve_raw(reply_with(result(score=1), "202 Accepted")) as url:
        assert isinstance(consult(url), InvalidAnswer)
    with serve_raw(reply_with(b'{"outcome": "later"}', "202 Accepted")) as url:
        assert consult(url) == ConsultLater()


def test_an_answer_must_be_signed_for_this_very_question() -> None:
    body = result(score=1)

    def signed(secret: str, message_id: str) -> str:
        return "".join(f"{k}: {v}\r\n" for k, v in signatures.sign(secret, message_id, body).items())

    question = make_question(kinds=ALL_KINDS)
    own_id = str(question.consultation_id)
    for extra, says in (
        ("", "does not sign"),
        (signed(OTHER_SECRET, own_id), "does not sign"),
        (signed(SECRET, "msg_of_another_question"), "for another consultation"),
        ("webhook-id: x\r\nwebhook-timestamp: nan\r\nwebhook-signature: v1\r\n", "does not sign"),
    ):
        with serve_raw(reply_with(body, extra=extra)) as url:
            outcome = consult(url, question, SECRET)
            assert isinstance(outcome, InvalidAnswer)
            assert says in outcome.reason
    with serve_raw(reply_with(body, extra=signed(SECRET, own_id))) as url:
        assert isinstance(consult(url, question, SECRET), ConsultResult)


def test_an_old_signature_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    class Past(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.fromtimestamp(time.time() - 600, UTC)

    monkeypatch.setattr(signatures, "datetime", Past)
    headers = signatures.sign(SECRET, "msg_1", b"{}")
    monkeypatch.undo()
    with pytest.raises(signatures.SignatureInvalid, match="old"):
        signatures.verify(SECRET, headers, b"{}")


@pytest.mark.parametrize(
    "descriptor",
    [
        {},
        {"protocol": 2},
        {"kinds": []},
        {"surprise": 1},
        {"kinds": ["feedback"], "verifier": True},
        {"max_concurrency": 0},
        {"name": "<script>"},
    ],
)
def test_something_that_does_not_describe_itself_is_refused(descriptor: dict[str, object]) -> None:
    good = make_descriptor().model_dump(mode="json")
    body = json.dumps(good | descriptor if descriptor else {}).encode()
    with serve_raw(reply_with(body)) as url, pytest.raises(EndpointRefused, match="Descriptor"):
        describe(url)


def test_a_descriptor_must_be_signed_when_there_is_a_secret() -> None:
    with serve(create_expert_app(SampleExpert())) as url, pytest.raises(EndpointRefused, match="sign"):
        describe(url, SECRET)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",  # noqa: S104
        "255.255.255.255",
        "224.0.0.1",
        "240.0.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%1",
        "fc00::1",
        "fd12:3456::1",
        "ff02::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:10.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::7f00:1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::",
        "2001:0:7f00:1::1",
    ],
)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    with pytest.raises(EndpointRefused, match="neither public nor"):
        check_address(address, [])


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.215.14", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
)
def test_a_public_address_is_allowed(address: str) -> None:
    check_address(address, [])


def test_an_allowed_network_is_allowed_and_nothing_beside_it() -> None:
    networks = [ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00:1::/32")]
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd00:1::5"):
        check_address(address, networks)
    for address in ("10.2.0.1", "fd00:2::5", "127.0.0.1"):
        with pytest.raises(EndpointRefused):
            check_address(address, networks)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0", "127.1", "2130706433"],  # noqa: S104
)
def test_no_spelling_of_a_forbidden_address_is_connected_to(host: str) -> None:
    expert = SampleExpert()
    with serve(create_expert_app(expert)) as url:
        port = url.rpartition(":")[2]
        with pytest.raises(EndpointRefused):
            describe(f"http://{host}:{port}", networks=())
        with pytest.raises(ExpertUnavailable):
            consult(f"http://{host}:{port}", networks=())
    assert expert.num_calls == 0


def test_a_host_that_is_allowed_by_its_name_is_reached_by_its_name_and_not_by_its_address() -> None:
    with serve(create_expert_app(SampleExpert())) as url:
        port = url.rpartition(":")[2]
        assert describe(f"http://LocalHost:{port}", networks=("localhost",)).name
        with pytest.raises(EndpointRefused, match=r"127\.0\.0\.1"):
            describe(url, networks=("localhost",))


def test_what_looks_like_a_network_and_is_none_is_no_name() -> None:
    for place in ("10.0.0.0/33", "10.0.0.256", "fd00::/200"):
        with pytest.raises(ValueError, match="does not appear to be"):
            ExpertClient([place])


def test_a_name_that_changes_its_address_after_the_check_is_refused_where_it_connects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The resolver is the operating system's; here it answers like a rebinding name server."""
    expert = SampleExpert()
    with serve(create_expert_app(expert)) as url:
        port = int(url.rpartition(":")[2])
        answers = iter(["127.0.0.1"])

        async def rebind(*_: object, **__: object) -> list[tuple[object, ...]]:
            address = next(answers, "169.254.169.254")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

        async def twice() -> None:
            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", rebind, raising=False)
            for _ in range(2):
                async with ExpertClient(LOOPBACK) as client:
                    await client.describe(f"http://rebinding.example:{port}")

        with pytest.raises(EndpointRefused, match=r"169\.254\.169\.254"):
            asyncio.run(twice())


@pytest.mark.parametrize(
    "endpoint",
    [
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
        "127.0.0.1",
        "http://",
        "http://user:pass@127.0.0.1/",
        "http://127.0.0.1/?a=b",
        "http://127.0.0.1/#x",
        "http://[::1",
    ],
)
def test_an_endpoint_that_is_no_plain_http_url_is_refused(endpoint: str) -> None:
    with pytest.raises(EndpointRefused):
        describe(endpoint)


def test_a_proxy_in_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")
    with serve(create_expert_app(SampleExpert())) as url:
        assert describe(url).name == "sample"


def test_an_endpoint_may_have_a_path_and_a_trailing_slash() -> None:
    with serve(create_expert_app([SampleExpert()])) as url:
        assert describe(f"{url}/sample/").name == describe(f"{url}/sample").name == "sample"


def test_many_questions_are_asked_side_by_side() -> None:
    expert = SampleExpert(descriptor=make_descriptor(max_concurrency=100))

    async def ask_many(client: ExpertClient, url: str) -> list[Outcome]:
        asked = [client.consult(url, make_question(), None, 60) for _ in range(60)]
        return list(await asyncio.gather(*asked))

    with serve(create_expert_app(expert)) as url:
        outcomes = run(lambda client: ask_many(client, url))
    assert all(isinstance(outcome, ConsultResult) for outcome in outcomes)
    assert expert.num_calls == 60


def test_a_question_that_is_never_taken_leaves_no_socket_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []
    make = ExpertClient._make_socket

    def make_and_keep(client: ExpertClient, info: aiohttp.AddrInfoType) -> socket.socket:
        made.append(make(client, info))
        return made[-1]

    monkeypatch.setattr(ExpertClient, "_make_socket", make_and_keep)

    async def ask(url: str) -> None:
        async with ExpertClient(LOOPBACK) as client:
            with pytest.raises(ExpertUnavailable, match="no answer"):
                await client.send("POST", url, "/v1/consult", body=bytes(30_000_000), timeout=0.3)
        assert [one.fileno() for one in made] == [-1]

    with socket.create_server(("127.0.0.1", 0)) as takes_nothing:
        asyncio.run(ask(f"http://127.0.0.1:{takes_nothing.getsockname()[1]}"))


def test_health_is_asked_for() -> None:
    with serve(create_expert_app(SampleExpert())) as url:
        run(lambda client: client.check_health(url))
    with serve_raw(reply_with(b"no", "404 Not Found")) as url, pytest.raises(ExpertUnavailable):
        run(lambda client: client.check_health(url))
    assert client_module.MAX_REPLY_BYTES == 8 * 1024 * 1024
