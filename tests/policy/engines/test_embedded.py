"""What only the embedded engine promises: exact bits, and prompts that are read once."""

from services.policy.contract import ProbeItem, ProveRequest, SamplePrompt, ScoreItem, ScoreRequest, VersionCreate
from services.policy.engines.base import Engine
from tests.policy.engines.test_base import ask, draw


def test_the_base_computes_the_same_bits_after_adapters_came_and_went(embedded: Engine, adapter: str) -> None:
    items = [ScoreItem(prompt_token_ids=[1, 30, 40], response_token_ids=[50, 60, 70])]
    before = embedded.score(ScoreRequest(version="base", items=items)).result()
    embedded.load_version(VersionCreate(name="v1", sha256=adapter))
    probe = ProbeItem(prompt_token_ids=[1], response_token_ids=[5], logprobs=[-1.0])
    embedded.prove_version("v1", ProveRequest(items=[probe]))
    after = embedded.score(ScoreRequest(version="base", items=items)).result()
    assert after.items == before.items


def test_a_prompt_is_read_once_for_its_group_and_remembered(embedded: Engine) -> None:
    ids = [1, *range(20, 50)]
    draw(embedded, ask(SamplePrompt(id="a", token_ids=ids, n=20, seed=1)))
    counters = embedded.info().counters
    assert counters.tokens_prefilled == len(ids)
    draw(embedded, ask(SamplePrompt(id="b", token_ids=[*ids[:-1], 99], n=1, seed=1)))
    assert embedded.info().counters.tokens_prefilled == len(ids) + 1
