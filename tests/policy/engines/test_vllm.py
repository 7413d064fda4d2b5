"""What only the vLLM engine has to promise: it asks exactly, trusts no server, and gets over one that goes away.

The server is vllm_server.py, which answers as vLLM 0.32.0 was recorded to (test_vllm_protocol.py says what of it), over
a real socket. Bodies that are not vLLM's at all are served raw.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.contracts.tasks import Message
from services.policy.artifacts import ArtifactStore
from services.policy.contract import (
    CLOSING_FENCE,
    FinishReason,
    ProveRequest,
    SamplePrompt,
    SampleRequest,
    ScoreItem,
    ScoreRequest,
    VersionCreate,
    VersionStatus,
)
from services.policy.engines.base_probe import measure_base
from services.policy.engines.vllm import VllmEngine
from services.policy.engines.vllm_client import VllmRefused, VllmUnavailable
from services.policy.engines.vllm_work import derive_seed
from services.policy.model.adapters import AdapterRefused, read_deltas
from services.policy.model.modeling import LoadedPolicy, encode_text
from services.policy.model.tiny import make_tiny_policy
from tests.policy.conftest import Limits, make_adapter, start_vllm
from tests.policy.engines.test_base import ask, draw, make_probe
from tests.policy.engines.vllm_server import VllmStandIn, make_app
from tests.ports import free_port
from tests.serving import reply_with, serve, serve_raw
from tests.waiting import wait_until

pytestmark = pytest.mark.integration
QUESTION = [Message(role="user", content="Add 1 and 2.")]
PROMPT = SamplePrompt(id="a", messages=QUESTION, n=3, seed=4)


@dataclass
class Bench:
    """A server, and an engine that asks it."""

    server: VllmStandIn
    url: str
    engine: VllmEngine


@pytest.fixture
def bench(model_folder: Path, store: ArtifactStore) -> Iterator[Bench]:
    server = VllmStandIn(model_folder)
    with serve(make_app(server)) as url:
        engine = start_vllm(model_folder, store, Limits(max_rows=4), url)
        server.asked.clear()
        yield Bench(server, url, engine)
        engine.close()


def serve_proved(bench: Bench, name: str, sha256: str, model_folder: Path, tmp_path: Path) -> None:
    bench.engine.load_version(VersionCreate(name=name, sha256=sha256))
    bench.engine.prove_version(name, ProveRequest(items=make_probe(model_folder, 1, tmp_path)))
    bench.engine.serve_version(name)


# --- what it asks ---


def test_token_ids_go_out_and_come_back_and_every_setting_is_said(bench: Bench) -> None:
    request = SampleRequest(prompts=[PROMPT], max_new_tokens=5, temperature=0.9, stop=["x"])
    reply = bench.engine.sample(request).result()
    bodies = [body for _, body in bench.server.asked]
    assert [body["prompt"] for body in bodies] == [reply.prompts[0].prompt_token_ids] * 3
    assert len({body["seed"] for body in bodies}) == 3
    for body in bodies:
        assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"]) == (0.9, 1.0, 0, 0.0)
        assert (body["repetition_penalty"], body["presence_penalty"], body["frequency_penalty"]) == (1.0, 0.0, 0.0)
        assert (body["stop_token_ids"], body["ignore_eos"], body["return_token_ids"]) == ([2], True, True)
        assert (body["skip_special_tokens"], body["include_stop_str_in_output"]) == (False, True)


def test_seeds_depend_on_seed_row_and_position_only_and_fit_vllm() -> None:
    seeds = [derive_seed(seed, row, place) for seed in (0, 1, 2**63 - 1) for row in (0, 1) for place in (0, 7)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(5, 6, 7) == derive_seed(5, 6, 7)


def test_of_many_stop_strings_vllm_hears_four_and_all_of_them_end_an_answer(bench: Bench) -> None:
    letters = list("abcdefgh")
    prompt = SamplePrompt(id="a", messages=QUESTION, n=12, seed=1)
    samples = draw(bench.engine, SampleRequest(prompts=[prompt], max_new_tokens=60, stop=letters))[0]
    assert {len(body["stop"]) for _, body in bench.server.asked if isinstance(body["stop"], list)} == {4}
    ended = [sample for sample in samples if any(letter in sample.text for letter in letters)]
    assert any(sample.text[-1] in "efgh" for sample in ended)
    for sample in ended:
        assert sample.finish_reason is FinishReason.STOP
        assert not any(letter in sample.text[:-1] for letter in letters)


@pytest.mark.parametrize("temperature", [0.005, 2.5])
def test_a_temperature_that_vllm_would_not_draw_at_is_refused(bench: Bench, temperature: float) -> None:
    with pytest.raises(VllmRefused, match=r"from 0\.01 to 2\.0"):
        bench.engine.sample(ask(PROMPT, temperature=temperature))


def draw_scripted(bench: Bench, policy: LoadedPolicy, script: str, stop: str, limit: int = 200) -> str:
    bench.server.script = encode_text(policy.tokenizer, script)
    prompt = SamplePrompt(id="a", token_ids=[1, 5], seed=4)
    sample = draw(bench.engine, SampleRequest(prompts=[prompt], max_new_tokens=limit, stop=[stop]))[0][0]
    assert len(sample.token_ids) == len(sample.logprobs)
    return sample.text


def test_an_answer_that_vllm_ended_at_an_opening_fence_goes_on_where_it_stopped(
    bench: Bench, policy: LoadedPolicy
) -> None:
    text = draw_scripted(bench, policy, "Here:\n```python\nx = 1\n``` and more", CLOSING_FENCE)
    assert text == "Here:\n```python\nx = 1\n```"
    first, second = (body for _, body in bench.server.asked)
    assert first["prompt"] == [1, 5]
    assert second["prompt"] == [1, 5, *encode_text(policy.tokenizer, "Here:\n```")]
    assert (first["max_tokens"], second["max_tokens"]) == (200, 191)
    assert first["seed"] != second["seed"]


def test_an_answer_that_goes_on_still_ends_at_its_limit(bench: Bench, policy: LoadedPolicy) -> None:
    assert draw_scripted(bench, policy, "Here:\n```python\nx = 1\n```", CLOSING_FENCE, limit=12) == "Here:\n```pyt"
    assert len(bench.server.asked) == 2


# --- what it takes on trust: nothing ---


def test_a_server_with_other_weights_is_refused(model_folder: Path, store: ArtifactStore, tmp_path: Path) -> None:
    other = make_tiny_policy(tmp_path / "other", seed=1, hidden_size=128)
    with (
        serve(make_app(VllmStandIn(other))) as url,
        pytest.raises(VllmRefused, match="base is not this policy's"),
    ):
        start_vllm(model_folder, store, Limits(), url)


def test_a_server_that_reports_logprobs_before_the_temperature_is_refused(
    model_folder: Path, store: ArtifactStore
) -> None:
    with (
        serve(make_app(VllmStandIn(model_folder, processed=False))) as url,
        pytest.raises(VllmRefused, match="before the temperature") as refusal,
    ):
        start_vllm(model_folder, store, Limits(), url)
    assert "--logprobs-mode processed_logprobs" in refusal.value.hint


def test_an_adapter_is_known_to_the_server_by_its_content_and_goes_with_its_last_version(
    bench: Bench, adapter: str
) -> None:
    for name in ("v1", "v2"):
        bench.engine.load_version(VersionCreate(name=name, sha256=adapter))
    (zeros,) = set(bench.server.adapters) - {adapter}
    bench.engine.delete_version("v1")
    assert set(bench.server.adapters) == {zeros, adapter}
    bench.engine.delete_version("v2")
    assert set(bench.server.adapters) == {zeros}


def test_the_base_is_asked_for_as_an_adapter_that_changes_nothing(
    bench: Bench, store: ArtifactStore, policy: LoadedPolicy
) -> None:
    """vLLM computes rows without an adapter wrongly when they share a batch with rows that have one."""
    draw(bench.engine, ask(PROMPT))
    (asked,) = {body["model"] for _, body in bench.server.asked}
    assert asked in bench.server.adapters
    assert isinstance(asked, str)
    for delta in read_deltas(store.adapter(asked), policy.model, policy.names).values():
        assert not bool((delta.up @ delta.down).any())


def test_an_adapter_of_another_base_never_reaches_the_server(
    bench: Bench, store: ArtifactStore, tmp_path: Path
) -> None:
    other = make_tiny_policy(tmp_path / "other", seed=1, hidden_size=128)
    make_adapter(other, tmp_path / "adapter", seed=1)
    with pytest.raises(AdapterRefused, match="trained on base"):
        bench.engine.load_version(VersionCreate(name="v1", sha256=store.store(tmp_path / "adapter")))
    assert not bench.server.asked


def test_an_adapter_the_server_does_not_see_is_refused_with_what_it_needs(
    bench: Bench, adapter: str, tmp_path: Path
) -> None:
    bench.engine._server_artifacts = tmp_path / "elsewhere"
    with pytest.raises(VllmRefused, match="does not load") as refusal:
        bench.engine.load_version(VersionCreate(name="v1", sha256=adapter))
    assert "--enable-lora" in refusal.value.hint


# --- a server that goes away ---


def test_a_server_that_is_not_there_is_unavailable(model_folder: Path, store: ArtifactStore) -> None:
    with pytest.raises(VllmUnavailable, match="is away") as refusal:
        start_vllm(model_folder, store, Limits(), "http://127.0.0.1:9")
    assert (refusal.value.status_code, refusal.value.retry_after_seconds) == (503, 5)


@pytest.mark.parametrize("body", [b"<html>", b'{"data": 1}'])
def test_an_answer_that_is_not_vllms_is_unavailable(model_folder: Path, store: ArtifactStore, body: bytes) -> None:
    with serve_raw(reply_with(body)) as url, pytest.raises(VllmUnavailable, match="not what vLLM answers"):
        start_vllm(model_folder, store, Limits(), url)


def test_work_cancelled_here_is_dropped_there(bench: Bench, policy: LoadedPolicy) -> None:
    bench.server.script = encode_text(policy.tokenizer, "x") * 1000  # no answer ends by itself before it is dropped
    bench.server.pause = 0.1
    future = bench.engine.sample(ask(SamplePrompt(id="a", messages=QUESTION, n=4, seed=1), max_new_tokens=200))
    wait_until(lambda: len(bench.server.asked) == 4)
    assert future.cancel()
    wait_until(lambda: bench.server.num_dropped == 4)
    assert bench.engine.info().counters.active_rows == 0


def test_a_server_that_lost_its_adapters_gets_them_back_proved_again(
    bench: Bench, adapter: str, model_folder: Path, tmp_path: Path
) -> None:
    serve_proved(bench, "v1", adapter, model_folder, tmp_path)
    before = draw(bench.engine, ask(PROMPT))
    bench.server.takes_adapters = False  # or the engine might have brought them back before it is asked
    bench.server.restart()
    with pytest.raises(VllmUnavailable):
        draw(bench.engine, ask(PROMPT))
    bench.server.asked.clear()
    bench.server.takes_adapters = True
    wait_until(lambda: bench.engine.is_alive and adapter in bench.server.adapters)
    assert [s.token_ids for s in draw(bench.engine, ask(PROMPT))[0]] == [s.token_ids for s in before[0]]
    assert bench.engine.info().serving == "v1"
    scored = [body["model"] for _, body in bench.server.asked if "prompt_logprobs" in body]
    assert adapter in scored[1:2]  # the base's probe first


def test_a_server_that_comes_back_with_other_weights_is_not_used(bench: Bench, tmp_path: Path, adapter: str) -> None:
    bench.engine.load_version(VersionCreate(name="v1", sha256=adapter))
    bench.server.restart(make_tiny_policy(tmp_path / "other", seed=1, hidden_size=128))

    def refuses() -> bool:
        with contextlib.suppress(VllmUnavailable):
            draw(bench.engine, ask(PROMPT))
            return False
        return True

    wait_until(refuses)
    wait_until(lambda: "base is not this policy's" in str(bench.engine._trouble))
    assert refuses()


def test_while_the_server_is_away_everything_is_unavailable_and_then_it_goes_on(
    model_folder: Path, store: ArtifactStore, adapter: str, tmp_path: Path
) -> None:
    server, port = VllmStandIn(model_folder), free_port()
    with serve(make_app(server), port) as url:
        engine = start_vllm(model_folder, store, Limits(), url)
    try:
        wait_until(lambda: not engine.is_alive)
        for refused in (
            lambda: engine.sample(ask(PROMPT)),
            lambda: engine.score(ScoreRequest(items=[ScoreItem(prompt_token_ids=[1], response_token_ids=[5])])),
            lambda: engine.load_version(VersionCreate(name="v1", sha256=adapter)),
            lambda: engine.prove_version("base", ProveRequest(items=make_probe(model_folder, 1, tmp_path))),
        ):
            with pytest.raises(VllmUnavailable, match="is away"):
                refused()
        with serve(make_app(server), port):
            wait_until(lambda: engine.is_alive)
            assert draw(engine, ask(PROMPT))[0][0].token_ids
    finally:
        engine.close()


def test_a_version_whose_artifact_is_gone_is_forgotten_unless_it_serves(
    bench: Bench, store: ArtifactStore, model_folder: Path, tmp_path: Path
) -> None:
    make_adapter(model_folder, tmp_path / "old", seed=77)
    address = store.store(tmp_path / "old")
    bench.engine.load_version(VersionCreate(name="old", sha256=address))
    for file in (store.root / address).iterdir():
        file.unlink()
    (store.root / address).rmdir()
    bench.server.restart()
    wait_until(lambda: len(bench.engine.info().versions) == 1)
    wait_until(lambda: bench.engine.is_alive)
    assert bench.engine.info().versions[0].status is VersionStatus.SERVING


def test_the_probe_of_the_base_is_what_the_folder_computes(policy: LoadedPolicy) -> None:
    probe = measure_base(policy)
    assert len(probe.logprobs) == len(probe.response)
    assert all(one < 0 for one in probe.logprobs)
    assert (probe.dtype, probe.tolerance) == ("float32", 1e-3)
