"""The HTTP shape of an expert, over real HTTP."""

import asyncio
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from services.contracts.answers import AnswerKind, Feedback, TopKDistribution
from services.contracts.experts import ConsultAbstain, ConsultLater, ConsultRequest, ConsultResult, Descriptor
from services.contracts.tasks import Message, Precedent
from services.experts.protocol import signatures
from services.experts.protocol.app import MAX_BODY_BYTES, AnswerMemory, ExpertAnswer, Sent, create_expert_app
from services.runtime.errors import ServiceUnavailable
from tests.experts.samples import OTHER_SECRET, SECRET, TOKENIZER, SampleExpert, make_descriptor, make_question
from tests.serving import serve
from tests.waiting import wait_until


def ask(url: str, request: ConsultRequest, secret: str | None = None) -> httpx2.Response:
    body = request.model_dump_json().encode()
    headers = signatures.sign(secret, str(request.consultation_id), body) if secret else {}
    return httpx2.post(
        f"{url}/v1/consult", content=body, headers={"Content-Type": "application/json", **headers}, timeout=None
    )


def test_an_expert_describes_itself_is_healthy_and_answers() -> None:
    expert = SampleExpert(lambda _: ConsultResult(score=0.25, feedback=Feedback(text="nearly")))
    with serve(create_expert_app(expert)) as url:
        assert Descriptor.model_validate_json(httpx2.get(f"{url}/v1/expert", timeout=None).content) == expert.descriptor
        assert httpx2.get(f"{url}/healthz", timeout=None).json() == {
            "status": "ok",
            "name": "sample",
            "version": "1",
            "running": 0,
        }
        reply = ask(url, make_question())
        assert reply.status_code == 200
        assert reply.json()["outcome"] == "result"
        assert reply.json()["score"] == 0.25


def test_an_answer_that_comes_later_is_202() -> None:
    expert = SampleExpert(lambda _: ConsultLater(reason="people sleep"))
    with serve(create_expert_app(expert)) as url:
        reply = ask(url, make_question())
        assert (reply.status_code, reply.json()["outcome"]) == (202, "later")


def test_several_experts_share_a_process_each_under_its_name() -> None:
    first, second = SampleExpert(), SampleExpert(descriptor=make_descriptor("other"))
    with serve(create_expert_app([first, second])) as url:
        assert httpx2.get(f"{url}/sample/v1/expert", timeout=None).json()["name"] == "sample"
        assert httpx2.get(f"{url}/other/v1/expert", timeout=None).json()["name"] == "other"
        assert httpx2.get(f"{url}/healthz", timeout=None).json()["experts"] == ["sample", "other"]
        assert ask(f"{url}/other", make_question()).status_code == 200
        assert (first.num_calls, second.num_calls) == (0, 1)


@pytest.mark.parametrize("name", ["two words", "a/b", "a@b"])
def test_one_of_several_experts_needs_a_name_that_can_be_a_path(name: str) -> None:
    with pytest.raises(ValueError, match="path"):
        create_expert_app([SampleExpert(descriptor=make_descriptor(name))])


def test_two_experts_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two experts"):
        create_expert_app([SampleExpert(), SampleExpert()])


def test_the_same_consultation_gets_the_same_bytes_and_asks_once() -> None:
    scores = iter([0.1, 0.9])
    expert = SampleExpert(lambda _: ConsultResult(score=next(scores)))
    question = make_question()
    with serve(create_expert_app(expert)) as url:
        assert ask(url, question).content == ask(url, question).content
        assert expert.num_calls == 1


def test_a_question_sent_again_while_it_is_answered_waits_for_the_same_answer() -> None:
    expert = SampleExpert()
    expert.gate.clear()
    question = make_question()
    with serve(create_expert_app(expert)) as url, ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, url, question)
        expert.wait_for_calls(1)
        second = pool.submit(ask, url, question)
        expert.gate.set()
        assert first.result().content == second.result().content
        assert expert.num_calls == 1


def test_a_new_deadline_does_not_make_it_another_question() -> None:
    expert = SampleExpert()
    question = make_question()
    later = question.model_copy(update={"deadline": question.deadline.replace(year=question.deadline.year + 1)})
    with serve(create_expert_app(expert)) as url:
        assert ask(url, question).status_code == ask(url, later).status_code == 200
        assert expert.num_calls == 1


def test_another_question_under_the_same_id_is_a_conflict() -> None:
    question = make_question()
    with serve(create_expert_app(SampleExpert())) as url:
        assert ask(url, question).status_code == 200
        other = make_question("something else", consultation_id=question.consultation_id)
        reply = ask(url, other)
        assert reply.status_code == 409
        assert reply.headers["content-type"] == "application/problem+json"


def test_a_failure_is_not_remembered_as_an_answer() -> None:
    replies = iter([ServiceUnavailable("the model is loading"), None])

    def answer(_: ConsultRequest) -> ExpertAnswer:
        if (error := next(replies)) is not None:
            raise error
        return ConsultResult(score=1.0)

    question = make_question()
    with serve(create_expert_app(SampleExpert(answer))) as url:
        assert ask(url, question).status_code == 503
        assert ask(url, question).status_code == 200


def test_answers_are_remembered_up_to_a_limit_of_number_and_bytes() -> None:
    memory = AnswerMemory(max_answers=3, max_bytes=10)
    keys = [make_question().consultation_id for _ in range(5)]
    for key in keys[:4]:
        memory.put(key, Sent(b"", 200, b"x"))
    assert [memory.get(k) is not None for k in keys[:4]] == [False, True, True, True]
    memory.put(keys[4], Sent(b"", 200, b"x" * 9))
    assert [memory.get(k) is not None for k in keys] == [False, False, False, True, True]


def test_questions_beyond_the_declared_concurrency_are_told_to_come_back() -> None:
    expert = SampleExpert(descriptor=make_descriptor(max_concurrency=1))
    expert.gate.clear()
    with serve(create_expert_app(expert)) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, url, make_question())
        expert.wait_for_calls(1)
        refused = ask(url, make_question())
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        expert.gate.set()
        assert first.result().status_code == 200
        assert ask(url, make_question()).status_code == 200


def test_an_experts_own_exception_is_a_fault_and_its_text_stays_in_the_log() -> None:
    def answer(_: ConsultRequest) -> ExpertAnswer:
        raise RuntimeError("password=hunter2")

    with serve(create_expert_app(SampleExpert(answer))) as url:
        reply = ask(url, make_question())
        assert reply.status_code == 500
        assert "RuntimeError" in reply.json()["detail"]
        assert "hunter2" not in reply.text


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (ConsultResult(solution="5"), "does not declare"),
        (
            ConsultResult(
                distribution=TopKDistribution(
                    tokenizer_hash=TOKENIZER, token_ids=[[1]], logprobs=[[0.0]], tail_mass=[0.0]
                )
            ),
            "rows for 3 tokens",
        ),
        ("a string", "returned a str"),
    ],
)
def test_an_answer_that_does_not_fit_the_question_is_the_experts_fault(answer: ExpertAnswer, says: str) -> None:
    kinds = (AnswerKind.SCORE, AnswerKind.TOPK) if says.startswith("rows") else (AnswerKind.SCORE,)
    with serve(create_expert_app(SampleExpert(lambda _: answer, make_descriptor(kinds=kinds)))) as url:
        reply = ask(url, make_question(kinds=(AnswerKind.SCORE, AnswerKind.SOLUTION, AnswerKind.TOPK)))
        assert reply.status_code == 500
        assert says in reply.json()["detail"]


def test_only_the_kinds_asked_for_are_sent() -> None:
    expert = SampleExpert(lambda _: ConsultResult(score=1.0, feedback=Feedback(text="good")))
    with serve(create_expert_app(expert)) as url:
        assert set(ask(url, make_question(kinds=(AnswerKind.SCORE,))).json()) == {"outcome", "score"}
        assert ask(url, make_question(kinds=(AnswerKind.SOLUTION,))).json()["outcome"] == "abstain"
    precedent = Precedent(messages=[Message(role="user", content="4 + 4?")], answer="8")
    both = SampleExpert(
        lambda _: ConsultResult(solution="5", precedents=[precedent]),
        make_descriptor(kinds=(AnswerKind.SOLUTION, AnswerKind.PRECEDENTS)),
    )
    with serve(create_expert_app(both)) as url:
        for kind in (AnswerKind.SOLUTION, AnswerKind.PRECEDENTS):
            assert set(ask(url, make_question(kinds=(kind,))).json()) == {"outcome", kind.value}


def test_another_domain_and_missing_metadata_are_declined_without_asking() -> None:
    expert = SampleExpert(descriptor=make_descriptor(domains=("code/*",), metadata_keys=("tests",)))
    with serve(create_expert_app(expert)) as url:
        assert ask(url, make_question(domain="math")).json()["outcome"] == "abstain"
        assert "tests" in ask(url, make_question(domain="code/rust")).json()["reason"]
        assert expert.num_calls == 0
        assert ask(url, make_question(domain="code/rust", metadata={"tests": 1})).json()["outcome"] == "result"


class AsyncExpert:
    """Takes as long as it is told."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.ended = threading.Event()

    @property
    def descriptor(self) -> Descriptor:
        return make_descriptor("slow")

    async def consult(self, request: ConsultRequest) -> ConsultAbstain:
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.ended.set()
        return ConsultAbstain(reason="done")


def test_a_coroutine_expert_is_stopped_at_the_deadline() -> None:
    expert = AsyncExpert(600)
    with serve(create_expert_app(expert)) as url:
        assert ask(url, make_question(seconds=3)).status_code == 504
        wait_until(expert.ended.is_set)


def test_a_coroutine_expert_answers_in_time() -> None:
    with serve(create_expert_app(AsyncExpert(0.01))) as url:
        assert ask(url, make_question()).json() == {"outcome": "abstain", "reason": "done"}


def test_a_question_whose_deadline_is_over_is_not_asked() -> None:
    expert = SampleExpert()
    with serve(create_expert_app(expert)) as url:
        assert ask(url, make_question(seconds=-1)).status_code == 504
        assert expert.num_calls == 0


def test_an_unsigned_or_forged_question_is_refused_when_there_is_a_secret() -> None:
    expert = SampleExpert()
    with serve(create_expert_app(expert, SECRET)) as url:
        assert ask(url, make_question()).status_code == 401
        assert ask(url, make_question(), OTHER_SECRET).status_code == 401
        question = make_question()
        body = question.model_dump_json().encode()
        headers = signatures.sign(SECRET, "msg_1", body)
        altered = body.replace(b'"The answer is 5"', b'"The answer is 6"')
        assert httpx2.post(f"{url}/v1/consult", content=altered, headers=headers, timeout=None).status_code == 401
        assert expert.num_calls == 0
        assert ask(url, question, SECRET).status_code == 200


def test_answers_are_signed_with_the_questions_id() -> None:
    question = make_question()
    with serve(create_expert_app(SampleExpert(), SECRET)) as url:
        reply = ask(url, question, SECRET)
        assert signatures.verify(SECRET, reply.headers, reply.content) == str(question.consultation_id)
        described = httpx2.get(f"{url}/v1/expert", headers={"webhook-id": "msg_7"}, timeout=None)
        assert signatures.verify(SECRET, described.headers, described.content) == "msg_7"
        chosen = httpx2.get(f"{url}/v1/expert", headers={"webhook-id": 'msg_7.1700000000.{"outcome"'}, timeout=None)
        assert signatures.verify(SECRET, chosen.headers, chosen.content).startswith("msg_")
        assert "outcome" not in chosen.headers["webhook-id"]


def test_a_secret_that_cannot_sign_is_found_when_the_app_is_made() -> None:
    with pytest.raises(signatures.SecretUnusable):
        create_expert_app(SampleExpert(), "whsec_")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"protocol": 1}',
        b'{"protocol": NaN}',
        b"\xff\xfe",
        b"[" * 100_000,
        make_question().model_dump_json().encode()[:-1] + b', "surprise": 1}',
        make_question().model_dump_json().encode().replace(b'"protocol":1', b'"protocol":2'),
        make_question().model_dump_json().encode().replace(b"The answer", b"\\u0000"),
        make_question().model_dump_json().encode().replace(b'"metadata":{}', b'"metadata":{"x":1e999}'),
    ],
)
def test_a_body_that_is_no_question_is_422_and_never_500(body: bytes) -> None:
    with serve(create_expert_app(SampleExpert())) as url:
        reply = httpx2.post(
            f"{url}/v1/consult", content=body, headers={"Content-Type": "application/json"}, timeout=None
        )
        assert reply.status_code == 422
        assert reply.json()["title"] in ("Invalid request", "Not strict JSON")


def test_a_body_beyond_the_limits_is_413_whether_its_length_is_declared_or_not() -> None:
    headers = {"Content-Type": "application/json"}
    chunk = b" " * 1_000_000
    with serve(create_expert_app(SampleExpert())) as url:
        declared = httpx2.post(f"{url}/v1/consult", content=chunk * 9, headers=headers, timeout=None)
        streamed = httpx2.post(f"{url}/v1/consult", content=(chunk for _ in range(9)), headers=headers, timeout=None)
        assert len(chunk) * 9 > MAX_BODY_BYTES
        many = httpx2.post(
            f"{url}/v1/consult", content=b"[[" + b"[]," * 1_000_000 + b"0]]", headers=headers, timeout=None
        )
        assert declared.status_code == streamed.status_code == many.status_code == 413


def test_another_content_type_is_415_and_an_unknown_path_is_a_problem_document() -> None:
    with serve(create_expert_app(SampleExpert())) as url:
        form = {"Content-Type": "text/plain"}
        assert httpx2.post(f"{url}/v1/consult", content=b"{}", headers=form, timeout=None).status_code == 415
        missing = httpx2.get(f"{url}/nothing", timeout=None)
        assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")


def test_what_third_parties_import_loads_neither_torch_nor_the_store_nor_the_queue() -> None:
    program = (
        "import sys, json\n"
        "from services.experts.protocol import app, client, conformance\n"
        "print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    loaded = set(json.loads(output))
    assert "fastapi" in loaded
    assert not loaded & {"torch", "sqlalchemy", "celery", "psycopg", "transformers", "redis"}
