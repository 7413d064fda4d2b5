"""The teacher: our own policy, frozen or as a moving average, under a context that the student does not see.

It reads the rollout's own tokens under that context, without gradient. Its distributions are over the full vocabulary
and never leave the process. The ledger keeps the context's hash, the teacher's, and the cost of every token.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor

from trainer.batch.rows import Context
from trainer.step.padding import read_responses

Weights = dict[str, Tensor]


def trainable(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    """The adapter's parameters by name, sorted."""
    return {name: p for name, p in sorted(model.named_parameters()) if p.requires_grad}


def copy_weights(model: PeftModel) -> Weights:
    """A copy of the adapter's weights."""
    return {name: parameter.detach().clone() for name, parameter in trainable(model).items()}


@contextmanager
def with_weights(model: PeftModel, weights: Weights) -> Iterator[None]:
    """The model with other adapter weights for the time of the block."""
    parameters = trainable(model)
    own = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = weights[name]
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = own[name]


@dataclass(frozen=True, eq=False)
class Teacher:
    """The teacher's weights: an `average`, or None for the frozen base. sha256 names them in the ledger."""

    average: Weights | None
    sha256: str

    @contextmanager
    def weights(self, model: PeftModel) -> Iterator[None]:
        """The model with the teacher's weights for the time of the block."""
        if self.average is None:
            with model.disable_adapter():
                yield
        else:
            with with_weights(model, self.average):
                yield


def make_teacher(average: Weights | None, base_sha256: str) -> Teacher:
    """The frozen base, or the moving average named by the sha256 of its weights."""
    if average is None:
        return Teacher(None, base_sha256)
    digest = hashlib.sha256(base_sha256.encode())
    for name in sorted(average):
        digest.update(name.encode())
        digest.update(average[name].contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return Teacher(average, digest.hexdigest())


def follow(average: Weights | None, model: PeftModel, rate: float) -> Weights | None:
    """The moving average after one more update: `rate` of the new student mixed in. None stays the frozen base."""
    if average is None:
        return None
    return {name: torch.lerp(average[name], parameter.detach(), rate) for name, parameter in trainable(model).items()}


@torch.no_grad()
def read_under_contexts(
    model: PeftModel, teacher: Teacher, contexts: Sequence[Context | None], token_ids: Tensor, exists: Tensor
) -> Tensor:
    """The teacher's hidden states that predict each token, [B, T, H]; rows without a context are left 0.

    Shapes: token_ids [B, T], exists [B, T] bool (which tokens there are, padded on the right). Rows that share a
    context share one reading of it. Raises ValueError if no row has one.
    """
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for index, context in enumerate(contexts):
        if context is not None:
            by_prompt.setdefault(context.prompt_ids, []).append(index)
    states: Tensor | None = None
    with teacher.weights(model):
        for prompt_ids, rows in by_prompt.items():
            prompt = torch.tensor(prompt_ids, device=token_ids.device)
            at = torch.tensor(rows, device=token_ids.device)
            hidden = read_responses(model, prompt, token_ids[at], exists[at])
            if len(rows) == len(contexts):
                return hidden
            if states is None:
                states = hidden.new_zeros((*token_ids.shape, hidden.shape[-1]))
            states[at] = hidden
    if states is None:
        raise ValueError("no row has a context")
    return states
