"""Values are counted as they arrive, cut anywhere, and what is written within strings is no value."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue, ValidationError

from sandbox.contract import RunRequest
from sandbox.inside import json_bounds
from sandbox.inside.json_bounds import JsonBounds, TooMuchJson
from sandbox.server.fusion import RunCodeRequest

TEXTS = st.text('\\"[]{},:a\n\u00e9', max_size=6)
VALUES = st.recursive(
    st.one_of(st.none(), st.integers(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=20,
)


def count_containers(value: JsonValue) -> int:
    if not isinstance(value, dict | list):
        return 0
    return 1 + sum(map(count_containers, value.values() if isinstance(value, dict) else value))


def read(data: bytes, size: int) -> None:
    bounds = JsonBounds()
    for start in range(0, len(data), size):
        bounds.take(data[start : start + size])


@given(VALUES, st.integers(1, 7), st.booleans())
def test_exactly_as_many_arrays_and_objects_as_allowed_are_read(value: JsonValue, size: int, ascii_only: bool) -> None:
    data = json.dumps([value], ensure_ascii=ascii_only).encode()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(json_bounds, "MAX_CONTAINERS", count_containers([value]))
        read(data, size)
        patched.setattr(json_bounds, "MAX_CONTAINERS", count_containers([value]) - 1)
        with pytest.raises(TooMuchJson, match="arrays and objects"):
            read(data, size)


@pytest.mark.parametrize("value", ["1", '"a"', "[]", '{"a":1}', '"[,"', '"\\\\"', '"\\","'])
def test_a_text_of_too_many_values_is_refused_and_one_of_as_many_as_allowed_is_not(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_bounds, "MAX_VALUES", 1000)
    num_inner = 2 if value[0] in "[{" else 1
    num = 998 // num_inner
    read(f"[{','.join([value] * num)}]".encode(), 64)
    with pytest.raises(TooMuchJson):
        read(f"[{','.join([value] * (num + 5))}]".encode(), 64)


@pytest.mark.parametrize(
    ("contract", "where"), [(RunRequest, "fields"), (RunRequest, "files"), (RunCodeRequest, "files")]
)
def test_of_very_many_wrong_fields_or_files_one_error_is_made(
    contract: type[RunRequest | RunCodeRequest], where: str
) -> None:
    many = {f"name-{number}": 0 for number in range(10_000)}
    with pytest.raises(ValidationError) as refused:
        contract.model_validate({"code": "1", "language": "python"} | (many if where == "fields" else {"files": many}))
    assert refused.value.error_count() == 1
