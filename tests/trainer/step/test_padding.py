"""Responses of different lengths: which are read together, and that it changes nothing."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.policy.model.adapters import add_lora
from services.policy.model.modeling import load_policy, response_hidden
from trainer.step import padding
from trainer.step.padding import read_responses, split_by_length
from trainer.step.teacher import trainable


def test_rows_of_similar_length_are_read_together() -> None:
    assert split_by_length([60, 10, 12, 64], spare=32) == [[1, 2], [0, 3]]
    assert split_by_length([60, 61, 62, 64], spare=32) == [[0, 1, 2, 3]]
    assert split_by_length([5], spare=32) == [[0]]


def test_a_batch_more_must_save_more_than_it_costs() -> None:
    assert split_by_length([10, 20], spare=10) == [[0, 1]]
    assert split_by_length([9, 20], spare=10) == [[0], [1]]


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6), spare=st.integers(0, 20))
def test_no_other_split_costs_less(lengths: list[int], spare: int) -> None:
    def cost(batches: list[list[int]]) -> int:
        return sum(len(batch) * max(lengths[row] for row in batch) + spare for batch in batches)

    found = split_by_length(lengths, spare)
    assert sorted(row for batch in found for row in batch) == list(range(len(lengths)))
    names = itertools.product(range(len(lengths)), repeat=len(lengths)) if len(lengths) <= 5 else [(0,) * len(lengths)]
    splits = ([[row for row, own in enumerate(name) if own == batch] for batch in set(name)] for name in names)
    assert cost(found) <= min(cost(split) for split in splits)


def test_it_gives_the_states_and_gradients_of_one_padded_batch(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(padding, "SPARE_TOKENS", 2)
    model = add_lora(load_policy(model_folder).model, r=2)
    for parameter in trainable(model).values():
        parameter.data = parameter.data + 0.05
    numbers = torch.Generator().manual_seed(0)
    prompt, ids = (torch.randint(3, 250, size, generator=numbers) for size in ((7,), (5, 12)))
    exists = torch.arange(12) < torch.tensor([[12], [3], [1], [11], [4]])
    assert len(split_by_length(exists.sum(1).tolist(), 2)) == 3
    weights = torch.randn((5, 12, 64), generator=numbers)
    found = []
    for read in (read_responses, response_hidden):
        hidden = read(model, prompt, ids, exists)
        gradients = torch.autograd.grad((hidden * weights).sum(), list(trainable(model).values()))
        found.append((hidden.detach(), gradients))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    assert found[0][0][~exists].abs().sum() == 0
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert torch.allclose(one, other, atol=1e-3, rtol=1e-4)
