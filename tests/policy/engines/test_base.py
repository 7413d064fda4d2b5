"""What every engine promises: what it samples is what it scores; rows do not notice each other; versions are proved.

Run for the embedded engine, for the vLLM engine over a server that speaks vLLM's recorded protocol (vllm_server.py),
and, where PRECEPTOR_TEST_VLLM_URL names one, over a real vLLM server of the tiny policy (docs/vllm.md).
"""

from concurrent.futures import CancelledError
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from services.contracts.tasks import Message
from services.policy.artifacts import ArtifactDamaged, ArtifactNotFound, ArtifactStore
from services.policy.contract import (
    CLOSING_FENCE,
    FinishReason,
    ProbeItem,
    ProveRequest,
    Sample,
    SamplePrompt,
    SampleRequest,
    ScoreItem,
    ScoreRequest,
    VersionCreate,
    VersionStatus,
)
from services.policy.engines.base import (
    Engine,
    EngineStopped,
    PolicyBusy,
    PromptRefused,
    VersionConflict,
    VersionNotFound,
    VersionNotProved,
)
from services.policy.engines.embedded import pad_right
from services.policy.model.modeling import LoadedPolicy, prefill_prompt, score_responses
from services.policy.text.ends import has_stopped
from tests.policy.conftest import Limits, StartEngine, make_adapter
from tests.waiting import wait_until

QUESTION = [Message(role="user", content="Add 1 and 2.")]


def ask(
    *prompts: SamplePrompt, max_new_tokens: int = 12, version: str | None = None, temperature: float = 1.0
) -> SampleRequest:
    return SampleRequest(version=version, prompts=list(prompts), max_new_tokens=max_new_tokens, temperature=temperature)


def draw(engine: Engine, request: SampleRequest) -> list[list[Sample]]:
    return [prompt.samples for prompt in engine.sample(request).result().prompts]


def make_probe(model_folder: Path, seed: int, tmp_path: Path) -> list[ProbeItem]:
    """What the trainer expects of an adapter: logprobs from peft's own, unmerged computation."""
    model = make_adapter(model_folder, tmp_path / f"probe-{seed}", seed).model
    prompt, response = [1, 50, 60, 70], [80, 81, 82, 2]
    ids, mask = pad_right([response], torch.device("cpu"))
    scores = score_responses(model, prefill_prompt(model, torch.tensor(prompt)), ids, mask)
    return [ProbeItem(prompt_token_ids=prompt, response_token_ids=response, logprobs=scores.logprobs[0].tolist())]


def test_sampled_logprobs_are_the_scored_ones(engine: Engine) -> None:
    reply = engine.sample(ask(SamplePrompt(id="a", messages=QUESTION, n=9, seed=1), temperature=0.8)).result()
    prompt = reply.prompts[0]
    items = [
        ScoreItem(prompt_token_ids=prompt.prompt_token_ids, response_token_ids=sample.token_ids)
        for sample in prompt.samples
    ]
    scored = engine.score(ScoreRequest(temperature=0.8, items=items)).result()
    assert scored.version == reply.version == "base"
    for sample, item in zip(prompt.samples, scored.items, strict=True):
        assert sample.logprobs == pytest.approx(item.logprobs, abs=1e-4)


def test_a_row_does_not_depend_on_what_is_sampled_beside_it(engine: Engine) -> None:
    mine = SamplePrompt(id="mine", messages=QUESTION, n=4, seed=7)
    others = [SamplePrompt(id=str(i), token_ids=[1, *range(10, 20 + 9 * i)], n=3 + i, seed=i) for i in range(4)]
    alone = draw(engine, ask(mine))[0]
    beside = draw(engine, ask(others[0], others[1], mine, others[2], others[3]))[2]
    assert [s.token_ids for s in alone] == [s.token_ids for s in beside]
    for left, right in zip(alone, beside, strict=True):
        assert left.logprobs == pytest.approx(right.logprobs, abs=1e-4)


def test_rows_of_one_prompt_differ_and_a_smaller_group_is_the_start_of_a_larger_one(engine: Engine) -> None:
    four = draw(engine, ask(SamplePrompt(id="a", messages=QUESTION, n=4, seed=7)))[0]
    two = draw(engine, ask(SamplePrompt(id="a", messages=QUESTION, n=2, seed=7)))[0]
    assert len({tuple(s.token_ids) for s in four}) > 1
    assert [s.token_ids for s in four[:2]] == [s.token_ids for s in two]


def test_an_answer_ends_with_the_end_token_or_at_the_limit(engine: Engine) -> None:
    samples = draw(engine, ask(SamplePrompt(id="a", messages=QUESTION, n=40, seed=3), max_new_tokens=60))[0]
    assert {s.finish_reason for s in samples} == {FinishReason.STOP, FinishReason.LENGTH}
    for sample in samples:
        ended = sample.token_ids[-1] == 2
        assert ended == (sample.finish_reason is FinishReason.STOP)
        assert 2 not in sample.token_ids[:-1]
        assert ended or len(sample.token_ids) == 60
        assert "<|im_end|>" not in sample.text


def test_sampling_stops_with_the_token_that_completes_a_stop_string(engine: Engine) -> None:
    prompt = SamplePrompt(id="a", messages=QUESTION, n=30, seed=5)
    free = draw(engine, SampleRequest(prompts=[prompt], max_new_tokens=40))[0]
    stop = next(character for s in free for character in s.text[3:] if character.isascii() and character.isalnum())
    stopped = draw(engine, SampleRequest(prompts=[prompt], max_new_tokens=40, stop=[stop]))[0]
    assert any(stop in s.text for s in stopped)
    for before, after in zip(free, stopped, strict=True):
        assert before.token_ids[: len(after.token_ids)] == after.token_ids
        if stop in after.text:
            assert stop in engine.detokenize(after.token_ids[-1:])
            assert stop not in engine.detokenize(after.token_ids[:-1])
            assert after.finish_reason is FinishReason.STOP
        else:
            assert after.token_ids == before.token_ids


@pytest.mark.parametrize(
    ("text", "stopped"),
    [
        ("```python\ndef f(): pass\n```", True),
        ("Here it is:\n```python\n", False),
        ("Here it is:\n```python\nx = 1\n```", True),
        ("```\n```", True),
        ("```python\nprint('```')\n", False),
        ("no fence\n", False),
    ],
)
def test_a_closing_fence_counts_only_after_an_opening_one(text: str, stopped: bool) -> None:
    assert has_stopped(text, CLOSING_FENCE) is stopped


def test_greedy_sampling_ignores_the_seed(engine: Engine) -> None:
    prompts = [SamplePrompt(id=str(seed), messages=QUESTION, seed=seed) for seed in (1, 2)]
    first, second = draw(engine, ask(*prompts, temperature=0))
    assert first[0].token_ids == second[0].token_ids


def test_scores_come_back_in_the_order_asked_whatever_their_prompts_and_lengths(engine: Engine) -> None:
    items = [
        ScoreItem(prompt_token_ids=[1, 5 + i % 3], response_token_ids=list(range(10 + i, 11 + i + (i * 7) % 19)))
        for i in range(25)
    ]
    together = engine.score(ScoreRequest(items=items, top_k=3)).result()
    for item, scored in zip(items, together.items, strict=True):
        alone = engine.score(ScoreRequest(items=[item], top_k=3)).result().items[0]
        assert scored.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
        assert scored.top_token_ids == alone.top_token_ids
        assert len(scored.tail_logmass) == len(item.response_token_ids)


def test_ids_outside_the_vocabulary_and_prompts_too_long_are_refused(engine: Engine) -> None:
    with pytest.raises(PromptRefused, match="outside the vocabulary of 259"):
        engine.sample(ask(SamplePrompt(id="a", token_ids=[1, 259], seed=0)))
    with pytest.raises(PromptRefused, match="exceed the context"):
        engine.sample(ask(SamplePrompt(id="a", token_ids=[1] * 250, seed=0)))
    with pytest.raises(PromptRefused, match="response 0 holds the token id 400"):
        engine.score(ScoreRequest(items=[ScoreItem(prompt_token_ids=[1], response_token_ids=[400])]))


def test_a_version_serves_only_after_a_probe_proved_it(
    engine: Engine, adapter: str, model_folder: Path, tmp_path: Path
) -> None:
    loaded = engine.load_version(VersionCreate(name="v1", sha256=adapter))
    assert loaded.status is VersionStatus.LOADED
    prompt = SamplePrompt(id="a", messages=QUESTION, seed=0)
    for refused in (lambda: engine.serve_version("v1"), lambda: engine.sample(ask(prompt, version="v1"))):
        with pytest.raises(VersionNotProved):
            refused()
    proved = engine.prove_version("v1", ProveRequest(items=make_probe(model_folder, 1, tmp_path)))
    assert proved.status is VersionStatus.PROVED
    assert proved.probe is not None
    assert proved.probe.max_difference < 1e-4
    assert engine.serve_version("v1").status is VersionStatus.SERVING
    assert engine.sample(ask(prompt)).result().version == "v1"
    assert engine.info().serving == "v1"


def test_a_version_whose_logprobs_differ_is_refused(
    engine: Engine, adapter: str, model_folder: Path, tmp_path: Path
) -> None:
    engine.load_version(VersionCreate(name="v1", sha256=adapter))
    of_another = make_probe(model_folder, 2, tmp_path)
    refused = engine.prove_version("v1", ProveRequest(items=of_another))
    assert refused.status is VersionStatus.REFUSED
    assert refused.probe is not None
    assert not refused.probe.passed
    with pytest.raises(VersionNotProved):
        engine.serve_version("v1")


def test_a_probe_neither_waits_for_answers_in_flight_nor_changes_them(
    engine: Engine, adapter: str, model_folder: Path, tmp_path: Path
) -> None:
    long = ask(SamplePrompt(id="a", messages=QUESTION, n=24, seed=1), max_new_tokens=60)
    undisturbed = draw(engine, long)[0]
    engine.load_version(VersionCreate(name="v1", sha256=adapter))
    probe = ProveRequest(
        items=make_probe(model_folder, 1, tmp_path), draw=ask(SamplePrompt(id="b", messages=QUESTION, n=3, seed=2))
    )
    sampling = engine.sample(long)
    longer = engine.sample(ask(SamplePrompt(id="c", messages=QUESTION, n=200, seed=1), max_new_tokens=200))
    wait_until(lambda: engine.info().counters.active_rows > 0, pause=0.001)
    proved = engine.prove_version("v1", probe)
    assert not longer.done()
    longer.cancel()
    disturbed = sampling.result().prompts[0].samples
    assert [s.token_ids for s in disturbed] == [s.token_ids for s in undisturbed]
    for left, right in zip(disturbed, undisturbed, strict=True):
        assert left.logprobs == pytest.approx(right.logprobs, abs=1e-4)
    assert proved.probe is not None
    engine.serve_version("v1")
    of_the_version = draw(engine, ask(SamplePrompt(id="b", messages=QUESTION, n=3, seed=2)))[0]
    assert proved.probe.drawn_lengths == [len(sample.token_ids) for sample in of_the_version]


def test_a_probe_does_not_return_to_a_version_that_was_deleted_meanwhile(
    engine: Engine, adapter: str, other_adapter: str, model_folder: Path, tmp_path: Path
) -> None:
    for name, sha256, seed in (("v1", adapter, 1), ("v2", other_adapter, 2)):
        engine.load_version(VersionCreate(name=name, sha256=sha256))
        engine.prove_version(name, ProveRequest(items=make_probe(model_folder, seed, tmp_path)))
    prompt = SamplePrompt(id="a", messages=QUESTION, seed=0)
    draw(engine, ask(prompt, version="v1"))  # the last weights to be active
    engine.serve_version("v2")
    engine.delete_version("v1")
    engine.load_version(VersionCreate(name="v3", sha256=adapter))
    (tmp_path / "again").mkdir()
    proved = engine.prove_version("v3", ProveRequest(items=make_probe(model_folder, 1, tmp_path / "again")))
    assert proved.status is VersionStatus.PROVED
    assert engine.sample(ask(prompt)).result().version == "v2"
    assert engine.is_alive


def test_nothing_is_drawn_from_a_version_that_was_not_proved(
    engine: Engine, adapter: str, model_folder: Path, tmp_path: Path
) -> None:
    engine.load_version(VersionCreate(name="v1", sha256=adapter))
    before = engine.info().counters.tokens_sampled
    of_another = make_probe(model_folder, 2, tmp_path)
    few = ask(SamplePrompt(id="b", messages=QUESTION, n=3, seed=2))
    refused = engine.prove_version("v1", ProveRequest(items=of_another, draw=few))
    assert refused.probe is not None
    assert refused.probe.drawn_lengths == []
    assert engine.info().counters.tokens_sampled == before


def test_a_probe_draws_little_and_from_its_own_version_only(model_folder: Path, tmp_path: Path) -> None:
    items = make_probe(model_folder, 1, tmp_path)
    with pytest.raises(ValidationError, match="at most 64 answers"):
        ProveRequest(items=items, draw=ask(SamplePrompt(id="b", messages=QUESTION, n=65, seed=2)))
    with pytest.raises(ValidationError, match="the version being proved"):
        ProveRequest(items=items, draw=ask(SamplePrompt(id="b", messages=QUESTION, seed=2), version="v2"))


def test_a_request_keeps_the_version_it_was_accepted_with(
    engine: Engine, adapter: str, other_adapter: str, model_folder: Path, tmp_path: Path
) -> None:
    for name, sha256, seed in (("v1", adapter, 1), ("v2", other_adapter, 2)):
        engine.load_version(VersionCreate(name=name, sha256=sha256))
        engine.prove_version(name, ProveRequest(items=make_probe(model_folder, seed, tmp_path)))
    prompts = [SamplePrompt(id=str(i), messages=QUESTION, n=5, seed=i) for i in range(3)]
    names = ["base", "v1", "v2", "base", "v2", "v1"]
    futures = [engine.sample(ask(*prompts, version=name)) for name in names]
    engine.serve_version("v2")
    replies = [future.result() for future in futures]
    assert [reply.version for reply in replies] == names
    texts = [[s.token_ids for prompt in reply.prompts for s in prompt.samples] for reply in replies]
    assert texts[0] == texts[3]
    assert texts[1] == texts[5]
    assert texts[2] == texts[4]
    assert texts[0] != texts[1] != texts[2]


def test_a_name_is_never_used_for_other_weights(engine: Engine, adapter: str, other_adapter: str) -> None:
    first = engine.load_version(VersionCreate(name="v1", sha256=adapter))
    assert engine.load_version(VersionCreate(name="v1", sha256=adapter)) == first
    for name in ("v1", "base"):
        with pytest.raises(VersionConflict):
            engine.load_version(VersionCreate(name=name, sha256=other_adapter))
    engine.delete_version("v1")
    with pytest.raises(VersionNotFound):
        engine.serve_version("v1")
    with pytest.raises(VersionConflict):
        engine.load_version(VersionCreate(name="v1", sha256=other_adapter))
    with pytest.raises(VersionConflict, match="in use"):
        engine.delete_version("base")


def test_weights_that_are_missing_or_changed_are_not_loaded(
    engine: Engine, store: ArtifactStore, model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactNotFound):
        engine.load_version(VersionCreate(name="v9", sha256="0" * 64))
    make_adapter(model_folder, tmp_path / "c", seed=9)
    address = store.store(tmp_path / "c")
    weights = store.root / address / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactDamaged):
        engine.load_version(VersionCreate(name="v9", sha256=address))
    assert [version.name for version in engine.info().versions] == ["base"]


def test_scoring_is_not_starved_by_sampling(engine: Engine) -> None:
    prompt = SamplePrompt(id="a", messages=QUESTION, n=200, seed=1)
    sampling = engine.sample(ask(prompt, max_new_tokens=100))
    items = [ScoreItem(prompt_token_ids=[1, 9], response_token_ids=[5, 6, 7])]
    engine.score(ScoreRequest(items=items)).result()
    assert not sampling.done()
    sampling.cancel()


def test_cancelled_work_leaves_the_engine(engine: Engine) -> None:
    future = engine.sample(ask(SamplePrompt(id="a", messages=QUESTION, n=200, seed=1), max_new_tokens=200))
    wait_until(lambda: engine.info().counters.active_rows > 0)
    assert future.cancel()
    draw(engine, ask(SamplePrompt(id="b", messages=QUESTION, seed=1), max_new_tokens=1))
    counters = engine.info().counters
    assert counters.active_rows == counters.waiting_rows == 0
    with pytest.raises(CancelledError):
        future.result()


def test_too_much_waiting_work_is_turned_away_until_later(start_engine: StartEngine) -> None:
    engine = start_engine(Limits(max_rows=2, max_waiting_rows=20))
    engine.sample(ask(SamplePrompt(id="a", messages=QUESTION, n=20, seed=1), max_new_tokens=200))
    with pytest.raises(PolicyBusy) as refusal:
        engine.sample(ask(SamplePrompt(id="b", messages=QUESTION, n=20, seed=1)))
    assert refusal.value.retry_after_seconds


def test_what_waits_when_the_engine_stops_fails_as_unavailable(start_engine: StartEngine) -> None:
    engine = start_engine(Limits(max_rows=2))
    future = engine.sample(ask(SamplePrompt(id="a", messages=QUESTION, n=200, seed=1), max_new_tokens=200))
    engine.close()
    with pytest.raises(EngineStopped):
        future.result()
    with pytest.raises(EngineStopped):
        engine.sample(ask(SamplePrompt(id="b", messages=QUESTION, seed=1)))
    assert not engine.is_alive


@pytest.mark.parametrize("narrowing", [{"top_k": 5}, {"top_p": 0.3}, {"top_k": 40, "top_p": 0.5}])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_what_narrows_the_draw_leaves_the_logprobs_of_the_full_softmax(
    engine: Engine, narrowing: dict[str, float], temperature: float
) -> None:
    prompt = SamplePrompt(id="a", messages=QUESTION, n=6, seed=1)
    request = SampleRequest.model_validate(
        {"prompts": [prompt], "max_new_tokens": 8, "temperature": temperature, **narrowing}
    )
    reply = engine.sample(request).result().prompts[0]
    items = [
        ScoreItem(prompt_token_ids=reply.prompt_token_ids, response_token_ids=sample.token_ids)
        for sample in reply.samples
    ]
    scored = engine.score(ScoreRequest(temperature=temperature, top_k=5, items=items)).result().items
    for sample, item in zip(reply.samples, scored, strict=True):
        assert sample.logprobs == pytest.approx(item.logprobs, abs=1e-4)
        if "top_k" in narrowing and narrowing["top_k"] == 5:
            assert all(own in top for own, top in zip(sample.token_ids, item.top_token_ids, strict=True))


@pytest.mark.parametrize("temperature", [0.2, 0.5, 1.0, 1.7])
def test_scores_are_those_of_the_models_own_full_softmax(
    engine: Engine, policy: LoadedPolicy, temperature: float
) -> None:
    prompt, response = [1, 50, 60, 70], [80, 81, 82, 2]
    item = ScoreItem(prompt_token_ids=prompt, response_token_ids=response)
    scored = engine.score(ScoreRequest(temperature=temperature, top_k=5, items=[item])).result().items[0]
    ids, mask = pad_right([response], torch.device("cpu"))
    own = score_responses(
        policy.model, prefill_prompt(policy.model, torch.tensor(prompt)), ids, mask, temperature, top_k=5
    )
    assert scored.logprobs == pytest.approx(own.logprobs[0].tolist(), abs=1e-4)
    assert scored.top_token_ids == own.top_ids[0].tolist()
    for ours, expected in zip(scored.top_logprobs, own.top_logprobs[0].tolist(), strict=True):
        assert ours == pytest.approx(expected, abs=1e-4)
    assert scored.tail_logmass == pytest.approx(own.tail_logmass[0].tolist(), abs=1e-3)


def test_a_fence_that_opens_ends_no_answer(engine: Engine) -> None:
    """Token ids are bytes here: the prompt has the policy continue with anything, and every answer is looked at."""
    prompt = SamplePrompt(id="a", messages=QUESTION, n=12, seed=9)
    free = SampleRequest(prompts=[prompt], max_new_tokens=60)
    fenced = SampleRequest(prompts=[prompt], max_new_tokens=60, stop=[CLOSING_FENCE])
    for before, after in zip(draw(engine, free)[0], draw(engine, fenced)[0], strict=True):
        assert after.token_ids == before.token_ids  # no random answer has a whole fenced block
