"""A frozen layer computes, forwards and backwards, what torch's own computes; what it cannot do, torch's own does."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd.graph import Node

from services.policy.model import linear
from services.policy.model.adapters import add_lora, read_deltas, save_adapter, take_deltas
from services.policy.model.linear import FrozenLinear, freeze_linears, is_plain_linear, multiply
from services.policy.model.modeling import load_policy


def make_layer(bias: bool, dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, FrozenLinear]:
    """A layer of torch's and a frozen one with the same weights."""
    torch.manual_seed(0)
    plain = nn.Linear(1024, 2048, bias=bias, dtype=dtype).requires_grad_(False)
    holder = nn.Sequential(nn.Linear(1024, 2048, bias=bias, dtype=dtype))
    holder.load_state_dict({f"0.{name}": value for name, value in plain.state_dict().items()})
    holder.requires_grad_(False)
    freeze_linears(holder)
    frozen = holder[0]
    assert isinstance(frozen, FrozenLinear)
    return plain, frozen


def name_of(node: Node | None) -> str:
    assert node is not None
    return node.name()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1024,), (1, 1024), (7, 1024), (2, 3, 1024)])
def test_values_and_gradients_are_those_of_torch(bias: bool, shape: tuple[int, ...]) -> None:
    plain, frozen = make_layer(bias)
    torch.manual_seed(1)
    hidden, charge = torch.randn(shape), torch.randn(*shape[:-1], 2048)
    found = []
    for layer in (plain, frozen):
        asked = hidden.clone().requires_grad_()
        result = layer(asked)
        (result * charge).sum().backward()
        found.append((result, asked.grad))
    assert name_of(found[1][0].grad_fn) == "_ProductBackward"
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-5)


def test_a_gradient_that_does_not_lie_in_order_is_read_as_it_is() -> None:
    plain, frozen = make_layer(bias=False)
    found = []
    for layer in (plain, frozen):
        asked = torch.arange(6 * 1024.0).reshape(6, 1024).div(1000).requires_grad_()
        layer(asked).t().expand(3, 2048, 6).square().sum().backward()
        found.append(asked.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("case", ["trained weights", "trained bias", "no rows", "few numbers", "double", "bfloat16"])
def test_what_is_not_a_large_frozen_product_in_float32_is_left_to_torch(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case == "few numbers":
        monkeypatch.setattr(linear, "SMALLEST", 5 * 1024 * 2048 + 1)
    dtype = {"double": torch.float64, "bfloat16": torch.bfloat16}.get(case, torch.float32)
    plain, frozen = make_layer(bias=True, dtype=dtype)
    if case == "trained weights":
        frozen.weight.requires_grad_()
    if case == "trained bias":
        frozen.bias.requires_grad_()
    hidden = torch.randn(0 if case == "no rows" else 5, 1024, dtype=dtype).requires_grad_()
    result = frozen(hidden)
    assert torch.equal(result, plain(hidden))
    assert name_of(result.grad_fn) != "_ProductBackward"
    result.sum().backward()
    assert (frozen.weight.grad is not None) == (case == "trained weights")
    assert (frozen.bias.grad is not None) == (case == "trained bias")


def test_tiles_of_a_weight_and_their_transposes_are_multiplied_too() -> None:
    torch.manual_seed(0)
    weight, own = torch.randn(3000, 512), torch.randn(9, 512)
    tile = weight[1000:2500]
    scores = multiply(own, tile)
    torch.testing.assert_close(scores, own @ tile.T, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(multiply(scores, tile.T), scores @ tile, atol=1e-2, rtol=1e-4)


def test_a_loaded_model_has_frozen_layers_and_adapters_on_them_are_trained(model_folder: Path, tmp_path: Path) -> None:
    policy = load_policy(model_folder)
    layers = [module for module in policy.model.modules() if isinstance(module, nn.Linear)]
    assert layers
    assert all(type(layer) is FrozenLinear and is_plain_linear(layer) for layer in layers)
    model = add_lora(policy.model)
    ids = torch.arange(3, 23)[None]
    model(input_ids=ids).logits.square().sum().backward()
    of_adapters = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
    assert all(grad is not None for grad in of_adapters.values())
    assert any(bool(grad.abs().max() > 0) for grad in of_adapters.values() if grad is not None)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(0.01)
    save_adapter(model, tmp_path / "a", policy.base_sha256)
    stored, now = read_deltas(tmp_path / "a", load_policy(model_folder).model), take_deltas(model)
    assert stored.keys() == now.keys()
    assert all(stored[name].scale == now[name].scale for name in stored)
    assert all(torch.equal(stored[name].up, now[name].up) for name in stored)
    assert all(torch.equal(stored[name].down, now[name].down) for name in stored)
