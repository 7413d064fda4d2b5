"""Products with weights that are not trained, in float32 on a CPU, by oneDNN.

torch hands float32 products to MKL, which on processors that are not Intel's leaves half of their speed unused: on an
AMD EPYC oneDNN takes .54 of MKL's time at 16 rows and .45 at 512, forwards and backwards (`benchmarks.linear`). The
arithmetic is the same, float32 throughout. Elsewhere, for small products and for weights that are trained, torch's own
is used.
"""

from typing import Final, Protocol, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SMALLEST: Final = 2**20
"""Multiplications below which oneDNN's cost a call outweighs what it saves: it is about 10 µs."""


class FrozenLinear(nn.Linear):
    """A linear layer whose own weights are not trained."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Shapes: hidden [..., in], result [..., out]."""
        return multiply(hidden, self.weight, self.bias)


def is_plain_linear(module: nn.Module) -> bool:
    """Whether the module is a linear layer and nothing more: no adapter on it, no weights in another form."""
    return type(module) in (nn.Linear, FrozenLinear)


def freeze_linears(model: nn.Module) -> None:
    """Turn the model's linear layers into frozen ones, in place: they keep their parameters, names and hooks."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FrozenLinear


def multiply(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """hidden W^T + bias. Shapes: hidden [..., in], weight [out, in], bias [out], result [..., out]."""
    if not _suits(hidden, weight) or (bias is not None and bias.requires_grad):
        return nn.functional.linear(hidden, weight, bias)
    if torch.is_grad_enabled() and hidden.requires_grad:
        return cast(Tensor, _Product.apply(hidden, weight, bias))  # type: ignore[no-untyped-call]
    return compute(hidden, weight, bias)


def is_for_onednn(weight: Tensor) -> bool:
    """Whether oneDNN computes products with this weight: float32 on a CPU."""
    return (
        weight.dtype == torch.float32 and weight.device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


def compute(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """hidden W^T + bias by oneDNN, without gradients; the weight as it is, or in the order that oneDNN packs it in."""
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], ""))


def _suits(hidden: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN computes this product: of a frozen matrix, and not a small one."""
    return (
        is_for_onednn(weight)
        and (hidden.dtype, hidden.device) == (weight.dtype, weight.device)
        and not weight.requires_grad
        and hidden.numel() * len(weight) >= SMALLEST
    )


class _Context(Protocol):
    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class _Product(torch.autograd.Function):
    """A product whose gradient goes to `hidden` alone."""

    @staticmethod
    def forward(ctx: _Context, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return compute(hidden, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return compute(gradient.contiguous(), weight.t(), None), None, None
