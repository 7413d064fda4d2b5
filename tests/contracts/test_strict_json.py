"""The fast reader of a contract reads exactly what the strict one reads."""

import json
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.contracts.base import Json
from services.contracts.rollouts import BatchedRollout, RolloutBatch, RolloutCreate
from services.contracts.strict_json import NotStrictJson, parse_json, read_contract

TASK: Final = "01890000-0000-7000-8000-000000000000"
GOOD: Final[dict[str, Json]] = {
    "task_id": TASK,
    "token_ids": [1, 2],
    "tokenizer_hash": "a" * 64,
    "sampler_logprobs": [-0.5, 0],
    "sampling": {"temperature": 1, "stop": ["a: 1", "é"]},
}


def read_strictly(data: bytes) -> RolloutCreate | None:
    try:
        return RolloutCreate.model_validate(parse_json(data))
    except (NotStrictJson, ValidationError):
        return None


def test_a_good_body_is_read_fast_and_the_same() -> None:
    data = json.dumps(GOOD, ensure_ascii=False, separators=(",", ":")).encode()
    assert read_contract(RolloutCreate, data) == read_strictly(data) is not None
    batch = json.dumps({"rollouts": [GOOD | {"key": "k"}] * 3}).encode()
    read = read_contract(RolloutBatch, batch)
    assert read is not None
    assert [row.key for row in read.rollouts] == ["k"] * 3
    assert isinstance(read.rollouts[0], BatchedRollout)


@pytest.mark.parametrize(
    "data",
    [
        b'{"task_id":"' + TASK.encode() + b'","text":"a","text":"b"}',
        b'{"task_id":"' + TASK.encode() + b'","text":"a","te\\u0078t":"b"}',
        b'{"task_id":"' + TASK.encode() + b'","text":"a","text" :"b"}',
        b'{"task_id":"' + TASK.encode() + b'","text":"a\\u0000"}',
        b'{"task_id":"' + TASK.encode() + b'","text":"\\ud800"}',
        b'{"task_id":"' + TASK.encode() + b'","text":"a","unknown":1}',
        b'{"task_id":"' + TASK.encode() + b'","text":"a","sampling":{"top_k":1,"top_k":2}}',
        b'{"task_id":"' + TASK.encode() + b'","text":"\xff"}',
        b'{"task_id":"' + TASK.encode() + b'","token_ids":[1],"tokenizer_hash":"' + b"a" * 64 + b'",'
        b'"sampler_logprobs":[NaN]}',
        b"",
        b"[]",
        b"null",
    ],
)
def test_what_the_strict_reader_refuses_the_fast_one_leaves_to_it(data: bytes) -> None:
    assert read_strictly(data) is None
    assert read_contract(RolloutCreate, data) is None


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8))
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(st.text(max_size=4), SCALARS, max_size=2))
NAMES = st.sampled_from([*RolloutCreate.model_fields, "unknown"])
LAYOUTS = st.sampled_from([(",", ":"), (", ", ": "), (" ,", " : "), (",\n", ":\t")])


@given(st.lists(st.tuples(NAMES, VALUES), max_size=4), LAYOUTS, st.booleans(), st.booleans())
def test_whatever_the_fast_reader_reads_the_strict_one_reads_too(
    changes: list[tuple[str, Json]], layout: tuple[str, str], ascii_only: bool, from_good: bool
) -> None:
    comma, colon = layout
    pairs = [*(GOOD.items() if from_good else ()), *changes]  # names may come twice
    written = [
        json.dumps(name) + colon + json.dumps(value, ensure_ascii=ascii_only, separators=layout)
        for name, value in pairs
    ]
    data = ("{" + comma.join(written) + "}").encode(errors="surrogatepass")
    fast = read_contract(RolloutCreate, data)
    assert fast is None or fast == read_strictly(data)
