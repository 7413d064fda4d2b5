"""The conformance suite: our own experts pass it, and each broken one fails the case that names its fault."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from services.contracts.answers import AnswerKind, Continuation, Feedback, SamplesDistribution, TopKDistribution
from services.contracts.base import JsonObject
from services.contracts.experts import (
    ConformanceReport,
    ConsultAbstain,
    ConsultLater,
    ConsultRequest,
    ConsultResult,
    Descriptor,
)
from services.experts.__main__ import build_app
from services.experts.protocol import sample_tokens
from services.experts.protocol.app import ExpertAnswer, create_expert_app
from services.experts.protocol.client import ExpertClient
from services.experts.protocol.conformance import SAMPLE_TEXTS, SampleTokens, Tokens, check
from services.runtime.settings import Settings
from tests.experts.own.test_policy_experts import SmallPolicy
from tests.experts.samples import SECRET, SampleExpert, make_descriptor
from tests.ports import free_port
from tests.serving import serve, serve_raw

LOOPBACK = ("127.0.0.0/8",)


TOKENS = {text: SampleTokens([number, 7, 8, 9], "a" * 64) for number, text in enumerate(SAMPLE_TEXTS)}


def report_on(url: str, secret: str | None = None, tokens: Tokens | None = TOKENS) -> ConformanceReport:
    async def go() -> ConformanceReport:
        async with ExpertClient(LOOPBACK) as client:
            return await check(url, secret, client, tokens)

    return asyncio.run(go())


def failed(report: ConformanceReport, *, required: bool = True) -> list[str]:
    return [c.name for c in report.checks if not c.passed and c.required is required]


def give_topk(request: ConsultRequest) -> ExpertAnswer:
    length, k = len(request.rollout.token_ids), request.ask.top_k
    return ConsultResult(
        distribution=TopKDistribution(
            tokenizer_hash=request.rollout.tokenizer_hash,
            token_ids=[list(range(k))] * length,
            logprobs=[[-3.0] * k] * length,
            tail_mass=[1 - k * 0.049787] * length,
        )
    )


def give_samples(request: ConsultRequest) -> ExpertAnswer:
    continuations = [[Continuation(text="x")] * request.ask.num_samples for _ in request.ask.prefixes]
    return ConsultResult(distribution=SamplesDistribution(prefixes=request.ask.prefixes, continuations=continuations))


@pytest.mark.parametrize(
    ("kinds", "answer"),
    [
        ((AnswerKind.SCORE,), lambda _: ConsultResult(score=0.5)),
        ((AnswerKind.TOPK,), give_topk),
        ((AnswerKind.SAMPLES,), give_samples),
        ((AnswerKind.SOLUTION, AnswerKind.EVIDENCE), lambda _: ConsultResult(solution="5", evidence={"seen": 1})),
    ],
)
@pytest.mark.parametrize("secret", [None, SECRET])
def test_an_expert_built_on_the_app_passes_every_case_required_or_not(
    kinds: tuple[AnswerKind, ...], answer: Callable[[ConsultRequest], ExpertAnswer], secret: str | None
) -> None:
    expert = SampleExpert(answer, make_descriptor(kinds=kinds, metadata_keys=("answer",)))
    with serve(create_expert_app(expert, secret)) as url:
        report = report_on(url, secret)
    assert report.passed
    assert failed(report) == failed(report, required=False) == []
    assert report.descriptor == expert.descriptor
    assert ConformanceReport.model_validate_json(report.model_dump_json()) == report


def abstain(_: ConsultRequest) -> ExpertAnswer:
    return ConsultAbstain(reason="I know nothing")


@pytest.mark.parametrize("kind", [kind for kind in AnswerKind if kind is not AnswerKind.EVIDENCE])
def test_an_expert_that_never_gives_what_it_declares_fails_with_its_reason(kind: AnswerKind) -> None:
    with serve(create_expert_app(SampleExpert(abstain, make_descriptor(kinds=(kind,))))) as url:
        report = report_on(url)
    assert failed(report) == [f"answers {kind.value}"]
    said = next(check.detail for check in report.checks if not check.passed)
    assert f"it declares {kind.value} and abstained from every sample" in said
    assert said.endswith("I know nothing")


def test_evidence_that_is_declared_is_given_with_some_answer() -> None:
    declared = make_descriptor(kinds=(AnswerKind.SCORE, AnswerKind.EVIDENCE))
    with serve(create_expert_app(SampleExpert(lambda _: ConsultResult(score=1.0), declared))) as url:
        report = report_on(url)
    assert failed(report) == ["answers evidence"]
    assert "no answer to a sample had any" in next(check.detail for check in report.checks if not check.passed)


@pytest.mark.parametrize("needle", ["= 6", "once more", "= 5"])
def test_an_expert_may_abstain_from_some_of_the_right_wrong_and_long_answers(needle: str) -> None:
    def answer(request: ConsultRequest) -> ExpertAnswer:
        if needle in request.rollout.text:
            return ConsultResult(feedback=Feedback(text=f"I see {needle}"))
        return ConsultAbstain(reason="nothing to say")

    with serve(create_expert_app(SampleExpert(answer, make_descriptor(kinds=(AnswerKind.FEEDBACK,))))) as url:
        assert report_on(url).passed


@pytest.mark.parametrize("kind", [AnswerKind.TOPK, AnswerKind.SAMPLES])
def test_a_distribution_can_be_missed_only_where_the_samples_are_in_the_policys_tokens(kind: AnswerKind) -> None:
    def answer(request: ConsultRequest) -> ExpertAnswer:
        if request.rollout.tokenizer_hash != "a" * 64:
            return ConsultAbstain(reason="another tokenizer's tokens")
        return give_topk(request) if kind is AnswerKind.TOPK else give_samples(request)

    with serve(create_expert_app(SampleExpert(answer, make_descriptor(kinds=(kind,))))) as url:
        known, unknown = report_on(url), report_on(url, tokens=None)
    assert known.passed
    assert unknown.passed
    said = next(check.detail for check in unknown.checks if check.name == f"answers {kind.value}")
    assert said == (
        "abstained from every sample (another tokenizer's tokens), which it may: "
        "there is no policy whose tokens a sample could be in"
    )


@pytest.mark.parametrize(
    ("descriptor", "why"),
    [
        (make_descriptor(kinds=(AnswerKind.SCORE,), domains=("chemistry",)), "the domain chemistry"),
        (make_descriptor(kinds=(AnswerKind.SCORE,), metadata_keys=("answer", "molecule")), "the metadata molecule"),
    ],
)
def test_an_expert_may_abstain_from_all_where_the_suite_has_nothing_of_its_kind(
    descriptor: Descriptor, why: str
) -> None:
    with serve(create_expert_app(SampleExpert(abstain, descriptor))) as url:
        report = report_on(url)
    assert report.passed
    assert f"which it may: the suite has no sample of {why}" in next(
        check.detail for check in report.checks if check.name == "answers score"
    )


def test_an_expert_that_answers_later_must_say_so() -> None:
    for says_so in (True, False):
        expert = SampleExpert(lambda _: ConsultLater(), make_descriptor(answers_later=says_so))
        with serve(create_expert_app(expert)) as url:
            report = report_on(url)
        assert report.passed is says_so
        assert failed(report) == ([] if says_so else ["answers score"])


def test_a_busy_expert_is_asked_again_before_it_fails() -> None:
    expert = SampleExpert(descriptor=make_descriptor(max_concurrency=1))
    expert.gate.clear()
    threading.Timer(1.0, expert.gate.set).start()
    with serve(create_expert_app(expert)) as url:

        async def both() -> list[ConformanceReport]:
            async with ExpertClient(LOOPBACK) as one, ExpertClient(LOOPBACK) as two:
                return list(await asyncio.gather(check(url, None, one), check(url, None, two)))

        assert [report.passed for report in asyncio.run(both())] == [True, True]


def test_an_endpoint_that_is_no_expert_fails_to_describe_itself() -> None:
    for url in (f"http://127.0.0.1:{free_port()}", "http://10.0.0.1:1", "nonsense"):
        report = report_on(url)
        assert not report.passed
        assert report.descriptor is None
        assert failed(report) == ["describes itself"]
        assert report.checks[0].detail


def test_an_expert_that_answers_differently_each_time_fails_determinism() -> None:
    scores = iter(range(1, 1000))
    changing = SampleExpert(lambda _: ConsultResult(score=1 / next(scores)), make_descriptor(kinds=(AnswerKind.SCORE,)))
    with serve(create_expert_app(changing)) as url:
        assert failed(report_on(url)) == ["is deterministic, as it declares"]
    honest = SampleExpert(
        lambda _: ConsultResult(score=1 / next(scores)), make_descriptor(kinds=(AnswerKind.SCORE,), deterministic=False)
    )
    with serve(create_expert_app(honest)) as url:
        assert report_on(url).passed


def test_an_expert_that_raises_fails_where_it_raised() -> None:
    def answer(_: ConsultRequest) -> ExpertAnswer:
        raise KeyError("model")

    with serve(create_expert_app(SampleExpert(answer))) as url:
        report = report_on(url)
    assert failed(report) == ["answers score"]
    assert "500" in next(c.detail for c in report.checks if c.name == "answers score")


class Handmade:
    """An expert written without the app: every reply is a function of the question, and faults are switched on."""

    def __init__(self, descriptor: Descriptor, answer: Callable[[JsonObject], tuple[int, JsonObject]]) -> None:
        self._descriptor = descriptor.model_dump_json().encode()
        self._answer = answer

    def __call__(self, connection: socket.socket, body: bytes) -> None:
        status, reply = 200, self._descriptor
        if body:
            try:
                status, answered = self._answer(json.loads(body))
            except (ValueError, KeyError):
                status, answered = 422, {}
            reply = json.dumps(answered).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(reply)}\r\n\r\n"
        connection.sendall(head.encode() + reply)


def result(**parts: object) -> JsonObject:
    made: JsonObject = json.loads(json.dumps({"outcome": "result", **parts}))
    return made


def flat_topk(request: JsonObject, tail: float) -> tuple[int, JsonObject]:
    rows = {"token_ids": [[1, 2]] * 12, "logprobs": [[-0.6931, -1.3863]] * 12, "tail_mass": [tail] * 12}
    rollout = request["rollout"]
    assert isinstance(rollout, dict)
    return 200, result(distribution={"kind": "topk", "tokenizer_hash": rollout["tokenizer_hash"], **rows})


@pytest.fixture
def counter() -> Iterator[int]:
    return iter(range(1, 10_000))


@pytest.mark.parametrize(
    ("kind", "answer", "names"),
    [
        (AnswerKind.TOPK, lambda q: flat_topk(q, 0.9), ["answers topk"]),
        (AnswerKind.SCORE, lambda q: (200, result(score=2)), ["answers score"]),
        (AnswerKind.SCORE, lambda q: (200, result(score=1, extra=1)), ["answers score"]),
        (AnswerKind.SCORE, lambda q: (200, result(feedback={"text": "no"})), ["answers score"]),
        (
            AnswerKind.SCORE,
            lambda q: (200, result(score=1)) if q["task"] else (200, {}),
            ["abstains from a domain it does not declare"],
        ),
        (
            AnswerKind.SCORE,
            lambda q: (200, result(score=1)) if q["task"]["domain"] == "math" else (500, {}),
            ["abstains from a domain it does not declare"],
        ),
    ],
)
def test_an_expert_written_by_hand_fails_the_case_that_names_its_fault(
    kind: AnswerKind, answer: Callable[[JsonObject], tuple[int, JsonObject]], names: list[str]
) -> None:
    with serve_raw(Handmade(make_descriptor(kinds=(kind,)), answer)) as url:
        assert failed(report_on(url)) == names


def test_answering_one_consultation_twice_differently_fails_idempotency(counter: Iterator[int]) -> None:
    def answer(question: JsonObject) -> tuple[int, JsonObject]:
        task = question["task"]
        assert isinstance(task, dict)
        if task["domain"] != "math":
            return 200, {"outcome": "abstain"}
        return 200, result(score=1 / next(counter))

    with serve_raw(Handmade(make_descriptor(kinds=(AnswerKind.SCORE,), deterministic=False), answer)) as url:
        report = report_on(url)
    assert failed(report) == ["gives the same answer to the same consultation id"]
    assert "refuses another request under the same id" in failed(report, required=False)


def test_a_malformed_body_that_makes_an_expert_fail_is_named() -> None:
    def answer(connection: socket.socket, body: bytes) -> None:
        descriptor = make_descriptor(kinds=(AnswerKind.SCORE,), domains=("*",))
        Handmade(descriptor, lambda q: (200, result(score=1)))(connection, body)

    def fragile(connection: socket.socket, body: bytes) -> None:
        if body and b'"rollout"' not in body:
            connection.sendall(b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n")
        else:
            answer(connection, body)

    with serve_raw(fragile) as url:
        assert failed(report_on(url)) == [
            "refuses a body that is not JSON",
            "refuses a consultation without its fields",
        ]


def test_an_expert_that_does_not_check_signatures_fails_though_it_signs() -> None:
    signing = create_expert_app(SampleExpert(), SECRET)
    with serve(create_expert_app(SampleExpert())) as url:
        assert failed(report_on(url, SECRET)) == ["describes itself"]
    with serve(signing) as url:
        assert report_on(url, SECRET).passed
        assert failed(report_on(url, None)) == ["answers score"]


@pytest.mark.integration
def test_every_one_of_our_own_experts_passes(sandbox_url: str, database_url: str) -> None:
    with serve(SmallPolicy().app()) as policy_url:
        settings = Settings(
            sandbox_url=sandbox_url,
            policy_url=policy_url,
            internal_key="key",
            sandbox_key="key",
            expert_secret=SECRET,
            database_url=database_url,
        )
        names = [
            "execution",
            "exact-match",
            "tool-call",
            "reference",
            "precedents",
            "self-evaluation",
            "teacher",
            "human",
        ]
        with serve(build_app(settings)) as url:
            tokens = sample_tokens.read(policy_url, "key")
            assert tokens is not None
            for name in names:
                report = report_on(f"{url}/{name}", SECRET, tokens)
                assert report.descriptor is not None
                assert report.descriptor.name == name
                assert failed(report) == failed(report, required=False) == [], name
                if name != "human":
                    answers = [c.detail for c in report.checks if c.name.startswith("answers ") and c.detail]
                    assert answers, name
                    assert all("a result in" in detail for detail in answers), name
