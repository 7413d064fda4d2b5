"""Reading responses of different lengths without computing their padding: rows of similar length go through together.

The prompt is read once for all of them. The result equals that of one padded batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from services.policy.model.modeling import PolicyModel, continue_prefill, prefill_prompt, response_hidden

SPARE_TOKENS = 32  # one batch more is worth it only if it leaves out this many tokens of padding


def read_responses(model: PolicyModel, prompt_ids: Tensor, response_ids: Tensor, exists: Tensor) -> Tensor:
    """Hidden states whose row t predicts response token t, zero where there is none; differentiable.

    Shapes: prompt_ids [P], response_ids [B, T], exists bool [B, T] (right-padded), result [B, T, H].
    """
    batches = split_by_length(exists.sum(1).tolist(), SPARE_TOKENS)
    if len(batches) == 1:
        return response_hidden(model, prompt_ids, response_ids, exists)
    prefill, length = prefill_prompt(model, prompt_ids), exists.shape[1]
    parts = []
    for rows in batches:
        at = torch.tensor(rows, device=exists.device)
        own = exists[at]
        longest = int(own.sum(1).max())
        hidden = continue_prefill(model, prefill, response_ids[at, :longest], own[:, :longest])
        parts.append(pad(hidden, (0, 0, 0, length - longest)))
    order = torch.tensor([row for rows in batches for row in rows], device=exists.device)
    return torch.cat(parts)[order.argsort()]


def split_by_length(lengths: Sequence[int], spare: int) -> list[list[int]]:
    """The cheapest batches of rows, where a batch costs its longest row times its rows, plus `spare`."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    best: list[tuple[int, int]] = [(0, 0)]  # least cost of the shortest rows so far, and where their last batch begins
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        best.append(min((best[start][0] + longest * (end - start) + spare, start) for start in range(end)))
    batches, end = [], len(order)
    while end:
        start = best[end][1]
        batches.append(sorted(order[start:end]))
        end = start
    return batches[::-1]
