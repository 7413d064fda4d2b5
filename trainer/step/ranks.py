"""Several processes that make one update together, started by torchrun; alone, every function here is the identity.

Rank 0 talks to the store and hands the batch to the others; each computes its share of the micro-batches; gradients
are summed, so that the step is the one a single process would have made.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that make an update."""

    rank: int
    size: int

    @classmethod
    def join(cls, device: str) -> "Ranks":
        """Meet the other processes torchrun started, if there are any."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size > 1:
            on_gpu = device.startswith("cuda")
            if on_gpu:
                torch.cuda.set_device(_local_rank())
            dist.init_process_group("nccl" if on_gpu else "gloo")
        return cls(int(os.environ.get("RANK", "0")), size)

    def place(self, device: str) -> str:
        """This process's own device of that kind."""
        return f"cuda:{_local_rank()}" if device == "cuda" and self.size > 1 else device

    def leave(self) -> None:
        """Leave the group."""
        if self.size > 1:
            dist.destroy_process_group()

    def share(self, thing: T | None) -> T:
        """Rank 0's value, on every rank. Blocks until rank 0 has it."""
        if self.size == 1:
            return cast(T, thing)
        box = [thing]
        dist.broadcast_object_list(box, src=0)
        return cast(T, box[0])

    def collect(self, thing: T) -> list[T]:
        """Every rank's value, in order of ranks, on every rank."""
        if self.size == 1:
            return [thing]
        box: list[T | None] = [None] * self.size
        dist.all_gather_object(box, thing)
        return cast(list[T], box)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add up every rank's gradients in place; one message for all of them."""
        if self.size == 1:
            return
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        at = 0
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = flat[at : at + grad.numel()].view_as(grad).clone()
            at += grad.numel()


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))
