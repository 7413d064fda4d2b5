"""The policy's HTTP interface through its own client, over a real socket."""

import contextlib
import http.client
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from sandbox.http.problems import Problem
from services.contracts.tasks import Message
from services.policy.artifacts import ArtifactStore
from services.policy.client import PolicyClient, PolicyRefused, PolicyUnavailable
from services.policy.contract import (
    MAX_BODY_BYTES,
    ProveRequest,
    SamplePrompt,
    SampleRequest,
    ScoreItem,
    ScoreRequest,
    TokenizeRequest,
    VersionStatus,
)
from services.policy.engines.embedded import EmbeddedEngine, EngineSettings
from services.policy.model.modeling import LoadedPolicy, load_policy
from services.policy.server.app import create_app, main
from tests.http.test_metrics import scrape, value
from tests.policy.engines.test_base import make_probe
from tests.policy.engines.vllm_server import VllmStandIn, make_app
from tests.ports import free_port
from tests.serving import serve
from tests.waiting import wait_until

pytestmark = pytest.mark.integration
KEY = "secret"
ROOT = Path(__file__).parents[3]
QUESTION = [Message(role="user", content="Add 1 and 2.")]


@pytest.fixture(scope="module")
def url(model_folder: Path, store: ArtifactStore) -> Iterator[str]:
    engine = EmbeddedEngine(load_policy(model_folder), store, EngineSettings(max_rows=8, max_context=512), name="tiny")
    with serve(create_app(engine, KEY)) as served:
        yield served
    assert not engine.is_alive


@pytest.fixture
def client(url: str) -> Iterator[PolicyClient]:
    with PolicyClient(url, KEY) as opened:
        yield opened


def test_the_policy_says_what_it_serves(client: PolicyClient, policy: LoadedPolicy) -> None:
    info = client.info()
    assert client.health().status == "ok"
    assert (info.model, info.serving, info.vocab_size, info.eos_token_ids) == ("tiny", "base", 259, [2])
    assert (info.tokenizer_hash, info.base_sha256) == (policy.tokenizer_hash, policy.base_sha256)


def test_answers_are_sampled_and_scored_over_http(client: PolicyClient) -> None:
    prompt = SamplePrompt(id="a", messages=QUESTION, n=3, seed=1)
    reply = client.sample(SampleRequest(prompts=[prompt], max_new_tokens=5))
    ids = client.tokenize(TokenizeRequest(messages=QUESTION)).token_ids
    assert reply.prompts[0].prompt_token_ids == ids
    assert client.detokenize(ids).endswith("<|im_start|>assistant\n")
    items = [ScoreItem(messages=QUESTION, response_token_ids=s.token_ids) for s in reply.prompts[0].samples]
    scored = client.score(ScoreRequest(items=items, top_k=2))
    for sample, item in zip(reply.prompts[0].samples, scored.items, strict=True):
        assert sample.logprobs == pytest.approx(item.logprobs, abs=1e-4)
        assert {len(row) for row in item.top_token_ids} == {2}


def test_a_version_is_loaded_proved_and_served_over_http(
    client: PolicyClient, adapter: str, model_folder: Path, tmp_path: Path
) -> None:
    name = "main:3 of/today"
    assert client.load_version(name, adapter).status is VersionStatus.LOADED
    request = ProveRequest(items=make_probe(model_folder, 1, tmp_path))
    assert client.prove_version(name, request).status is VersionStatus.PROVED
    assert client.serve_version(name).status is VersionStatus.SERVING
    assert client.sample(SampleRequest(prompts=[SamplePrompt(id="a", messages=QUESTION, seed=1)])).version == name
    assert client.serve_version("base").status is VersionStatus.SERVING
    client.delete_version(name)
    assert [version.name for version in client.info().versions] == ["base"]


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        (SampleRequest(version="v404", prompts=[SamplePrompt(id="a", messages=QUESTION, seed=0)]), 404, "v404"),
        (SampleRequest(prompts=[SamplePrompt(id="a", token_ids=[999], seed=0)]), 422, "vocabulary of 259"),
        (SampleRequest(prompts=[SamplePrompt(id="a", token_ids=[1] * 500, seed=0)]), 422, "context of 512"),
    ],
)
def test_a_request_that_can_never_work_is_refused_with_the_reason(
    client: PolicyClient, request_: SampleRequest, status: int, words: str
) -> None:
    with pytest.raises(PolicyRefused, match=words) as refusal:
        client.sample(request_)
    assert refusal.value.status_code == status


def test_every_refusal_is_a_problem_document(url: str) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    replies = {
        401: httpx2.get(f"{url}/v1/policy", headers={"Authorization": "Bearer wrong"}, timeout=None),
        422: httpx2.post(f"{url}/v1/sample", json={"prompts": [], "more": 1}, headers=headers, timeout=None),
        404: httpx2.delete(f"{url}/v1/versions/none", headers=headers, timeout=None),
    }
    for status, reply in replies.items():
        assert reply.status_code == status
        assert reply.headers["content-type"] == "application/problem+json"
        assert Problem.model_validate_json(reply.content).detail


def test_a_body_too_large_is_refused_before_it_is_read(url: str) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    with contextlib.closing(connection):
        connection.putrequest("POST", "/v1/sample")
        connection.putheader("Authorization", f"Bearer {KEY}")
        connection.putheader("Content-Length", str(MAX_BODY_BYTES + 1))
        connection.endheaders()
        reply = connection.getresponse()
        assert reply.status == 413
        assert "are accepted" in Problem.model_validate_json(reply.read()).detail


def test_nothing_of_a_body_is_read_without_the_key(url: str) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    with contextlib.closing(connection):
        connection.putrequest("POST", "/v1/sample")
        connection.putheader("Content-Length", "1000")
        connection.endheaders(b"{")
        assert connection.getresponse().status == 401


def test_a_body_of_very_many_values_is_refused_before_it_is_parsed(url: str) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    body = b'{"prompts":[' + b"[]," * 1_000_000 + b"0]}"
    reply = httpx2.post(
        f"{url}/v1/sample", content=body, headers=headers | {"Content-Type": "application/json"}, timeout=None
    )
    assert reply.status_code == 413
    assert "arrays and objects" in Problem.model_validate_json(reply.content).detail


def test_health_needs_no_key_and_everything_else_does(url: str) -> None:
    with PolicyClient(url) as stranger:
        assert stranger.health().status == "ok"
        with pytest.raises(PolicyRefused) as refusal:
            stranger.info()
        assert refusal.value.status_code == 401


def test_work_whose_client_hung_up_is_dropped(url: str, client: PolicyClient) -> None:
    prompt = SamplePrompt(id="a", messages=QUESTION, n=250, seed=1)
    with (
        PolicyClient(url, KEY, read_seconds=0.3) as hasty,
        pytest.raises(PolicyUnavailable, match="ReadTimeout"),
    ):
        hasty.sample(SampleRequest(prompts=[prompt], max_new_tokens=400))

    def is_idle() -> bool:
        counters = client.info().counters
        return counters.active_rows + counters.waiting_rows == 0

    wait_until(is_idle)


def test_a_process_that_is_not_there_is_unavailable() -> None:
    with PolicyClient(f"http://127.0.0.1:{free_port()}") as client, pytest.raises(PolicyUnavailable) as failure:
        client.health()
    assert failure.value.retry_after_seconds


def test_listening_beyond_loopback_needs_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PRECEPTOR_INTERNAL_KEY", raising=False)
    assert main(["--host", "0.0.0.0", "--artifacts", str(tmp_path)]) == 2  # noqa: S104 - the point of the test


def test_metrics_tell_the_tokens_sampled_and_the_rows_that_wait(url: str, client: PolicyClient) -> None:
    prompt = SamplePrompt(id="m", messages=QUESTION, n=2, seed=1)
    client.sample(SampleRequest(prompts=[prompt], max_new_tokens=4))
    found = scrape(url)
    sampled = value(found, "preceptor_policy_tokens_total", work="sampled")
    assert sampled is not None
    assert sampled > 0
    assert value(found, "preceptor_policy_rows", state="waiting") == 0
    assert value(found, "preceptor_http_requests_total", method="POST", route="/v1/sample", status="200") is not None


def test_a_process_given_a_vllm_server_serves_from_it(
    stand_in_url: str, model_folder: Path, store: ArtifactStore, policy: LoadedPolicy
) -> None:
    port = free_port()
    command = [sys.executable, "-m", "services.policy.server.app", "--model", str(model_folder), "--port", str(port)]
    arguments = ["--artifacts", str(store.root), "--threads", "1", "--vllm-url", stand_in_url]
    with subprocess.Popen([*command, *arguments], cwd=ROOT) as process:
        try:
            with PolicyClient(f"http://127.0.0.1:{port}") as client:
                wait_until(lambda: is_up(client), lambda: process.poll() is None, pause=0.2)
                info = client.info()
                reply = client.sample(
                    SampleRequest(prompts=[SamplePrompt(id="a", messages=QUESTION, seed=1)], max_new_tokens=3)
                )
        finally:
            process.terminate()
    assert (info.device, info.base_sha256) == ("vLLM 0.32.0", policy.base_sha256)
    assert len(reply.prompts[0].samples[0].token_ids) <= 3


def is_up(client: PolicyClient) -> bool:
    try:
        return client.health().status == "ok"
    except PolicyUnavailable:
        return False


def test_a_process_given_an_unfit_vllm_server_ends_and_says_why(
    model_folder: Path, store: ArtifactStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with serve(make_app(VllmStandIn(model_folder, processed=False))) as unfit:
        arguments = ["--model", str(model_folder), "--artifacts", str(store.root), "--vllm-url", unfit]
        assert main([*arguments, "--threads", "1"]) == 1
    assert "--logprobs-mode processed_logprobs" in capsys.readouterr().err
