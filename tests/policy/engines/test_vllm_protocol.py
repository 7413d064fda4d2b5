"""The server the engine is tested against answers as the real vLLM did when it was recorded (vllm_recorded.json).

The file holds requests to vLLM 0.32.0 on a CPU over the tiny policy (128 channels, seed 0) and its whole answers;
paths are replaced by MODEL and ADAPTER. Compared are statuses, the words of refusals, every key, and every logprob of
what does not depend on a draw.
"""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from pydantic import BaseModel, TypeAdapter

from services.contracts.base import Json, JsonObject
from tests.policy.conftest import make_adapter
from tests.policy.engines.vllm_server import VllmStandIn, make_app
from tests.serving import serve

pytestmark = pytest.mark.integration


class Exchange(BaseModel):
    """One request and what the real server answered."""

    name: str
    method: str
    path: str
    body: JsonObject | None
    status: int
    answer: Json


RECORDED = TypeAdapter(list[Exchange]).validate_json((Path(__file__).parent / "vllm_recorded.json").read_bytes())
DRAWN = {"draw", "draw again", "ended by a stop string", "narrowed", "too long", "likeliest at a temperature"}
"""Their tokens come of the server's own random numbers."""

COMPUTED = [one for one in RECORDED if one.path == "/v1/completions" and one.status == 200 and one.name not in DRAWN]


@pytest.fixture(scope="module")
def answers(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, httpx2.Response]]:
    """What the stand-in answers to the recorded requests, sent in their order."""
    folder = tmp_path_factory.mktemp("recorded") / "adapter"
    make_adapter(model_folder, folder, seed=1)
    with serve(make_app(VllmStandIn(model_folder))) as url, httpx2.Client(base_url=url, timeout=None) as client:
        yield {one.name: client.request(one.method, one.path, json=_place(one.body, folder)) for one in RECORDED}


def _place(body: JsonObject | None, adapter: Path) -> JsonObject | None:
    if body is None:
        return None
    if body.get("prompt") == "[1] * 2047":
        return {**body, "prompt": [1] * 2047}
    return {key: str(adapter) if value == "ADAPTER" else value for key, value in body.items()}


def _list_keys(value: Json, path: str = "") -> set[str]:
    """Every key in a document, ids and positions in lists left out."""
    if isinstance(value, dict):
        names = {key: "*" if key.isdecimal() or key.startswith("token_id:") else key for key in value}
        return {f"{path}.{name}" for name in names.values()}.union(
            *(_list_keys(one, f"{path}.{names[key]}") for key, one in value.items())
        )
    return set().union(*(_list_keys(one, path) for one in value)) if isinstance(value, list) else set()


def _drop_permissions(value: Json) -> Json:
    if isinstance(value, dict):
        return {key: _drop_permissions(one) for key, one in value.items() if key != "permission"}
    return [_drop_permissions(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("exchange", RECORDED, ids=lambda one: one.name)
def test_an_answer_has_the_recorded_status_and_keys(exchange: Exchange, answers: dict[str, httpx2.Response]) -> None:
    answer = answers[exchange.name]
    assert answer.status_code == exchange.status
    if isinstance(exchange.answer, str):
        assert answer.text == exchange.answer
    else:
        assert _list_keys(_drop_permissions(answer.json())) == _list_keys(_drop_permissions(exchange.answer))
    if exchange.status >= 400 and exchange.name not in ("too many stop strings", "load what is not there"):
        assert answer.json() == exchange.answer


@pytest.mark.parametrize("exchange", COMPUTED, ids=lambda one: one.name)
def test_what_is_not_drawn_has_the_recorded_numbers(exchange: Exchange, answers: dict[str, httpx2.Response]) -> None:
    assert isinstance(exchange.answer, dict)
    there, here = exchange.answer["choices"], answers[exchange.name].json()["choices"]
    assert isinstance(there, list)
    assert isinstance(there[0], dict)
    if exchange.name != "score at a temperature":
        assert here[0]["token_ids"] == there[0]["token_ids"]
        assert here[0]["logprobs"]["token_logprobs"] == pytest.approx(_floats(there[0]["logprobs"]), abs=1e-4)
    for ours, theirs in zip(here[0]["prompt_logprobs"] or [], _rows(there[0]["prompt_logprobs"]), strict=True):
        assert (ours is None) == (theirs is None)
        for token_id, entry in (theirs or {}).items():
            assert ours[token_id]["rank"] == entry.rank
            assert ours[token_id]["logprob"] == pytest.approx(entry.logprob, abs=1e-4)


def _floats(logprobs: Json) -> list[float]:
    assert isinstance(logprobs, dict)
    return TypeAdapter(list[float]).validate_python(logprobs["token_logprobs"])


class Ranked(BaseModel):
    """One token of `prompt_logprobs`."""

    logprob: float
    rank: int


def _rows(rows: Json) -> list[dict[str, Ranked] | None]:
    return TypeAdapter(list[dict[str, Ranked] | None]).validate_python(rows or [])
