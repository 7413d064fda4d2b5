"""What a product with a frozen weight costs, forwards and back: oneDNN beside torch's own, in float32 on a CPU.

    python -m benchmarks.linear

The layer of the starter model's feed-forward part (576 to 1,536), at the rows of decoding and of an update. The two
take turns; a ratio under 1 says that `services.policy.model.linear` is faster than torch's own on this machine.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.arguments import positive
from services.policy.model.linear import multiply

SHAPE = (1536, 576)
ROWS = (4, 16, 64, 512)


def main(arguments: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.linear", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=positive, default=200, help="of each, in turn")
    parser.add_argument("--threads", type=positive, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    weight = torch.randn(SHAPE)
    print("rows  oneDNN (µs)  torch's own (µs)  ratio")
    for rows in ROWS:
        hidden = torch.randn(rows, SHAPE[1], requires_grad=True)
        ours, plain = compare(
            [lambda h: multiply(h, weight), lambda h: nn.functional.linear(h, weight)], hidden, options.rounds
        )
        print(f"{rows:4}  {ours * 1e6:11.0f}  {plain * 1e6:16.0f}  {ours / plain:5.2f}")
    return 0


def compare(products: Sequence[Callable[[Tensor], Tensor]], hidden: Tensor, rounds: int) -> list[float]:
    """The median seconds of each, forwards and back."""
    taken: list[list[float]] = [[] for _ in products]
    for number in range(rounds + 10):
        for own, product in zip(taken, products, strict=True):
            began = time.perf_counter()
            result = product(hidden)
            torch.autograd.backward(result, result.detach())
            if number >= 10:  # the first ones warm up
                own.append(time.perf_counter() - began)
            hidden.grad = None
    return [median(own) for own in taken]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
