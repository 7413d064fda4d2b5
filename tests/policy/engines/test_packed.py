"""A packed model computes what the plain one computes, and gives the base's own bits back."""

from pathlib import Path

import torch

from services.policy.engines.packed import PackedModel
from services.policy.model.adapters import read_deltas
from services.policy.model.modeling import load_policy
from tests.policy.conftest import make_adapter

IDS = torch.arange(3, 23)[None]


@torch.inference_mode()
def test_packed_layers_compute_what_plain_ones_compute_with_and_without_an_adapter(
    model_folder: Path, tmp_path: Path
) -> None:
    plain = load_policy(model_folder).model(input_ids=IDS).logits
    adapted = make_adapter(model_folder, tmp_path / "a", seed=1).model(input_ids=IDS).logits
    loaded = load_policy(model_folder)
    packed = PackedModel(loaded.model)
    before = loaded.model(input_ids=IDS).logits
    torch.testing.assert_close(before, plain, atol=1e-4, rtol=1e-4)
    packed.merge(read_deltas(tmp_path / "a", loaded.model))
    torch.testing.assert_close(loaded.model(input_ids=IDS).logits, adapted, atol=1e-4, rtol=1e-4)
    assert float((adapted - plain).abs().max()) > 0.1
    packed.merge({})
    assert torch.equal(loaded.model(input_ids=IDS).logits, before)
