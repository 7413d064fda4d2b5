"""Rows being decoded together, several of them from one prompt, and the drawing of their next tokens.

A prompt's keys and values are kept once for all rows sampled from it; a row has only its own. Each step attends to
both and joins the two results by their normalisers, which is the plain softmax over both, computed without repeating
the prompt. Rows come and go at step boundaries; nothing is padded on the left and no other row is touched.
Not covered: attention with sliding windows, soft caps or sinks. `check_decoding` detects such a model.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from services.policy.model.modeling import ModelRefused, Prefill, find_backbone, prefill_prompt, project

ATTENTION: Final = "preceptor_rows"
DRAW_BLOCK: Final = 256
KEEP_BYTES: Final = 512 * 1024 * 1024
"""Buffers larger than this are given back when no row is left."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    decode_rows: "DecodeRows | None" = None,
    **kwargs: object,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention function: our own for a decoding step, torch's for everything else."""
    if decode_rows is None:
        plain = cast(Callable[..., tuple[Tensor, Tensor | None]], sdpa_attention_forward)
        return plain(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    return decode_rows.attend(cast(int, module.layer_idx), query * scale, key, value), None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


@dataclass
class _Group:
    length: int
    num_rows: int


class DecodeRows:
    """Up to `max_rows` rows in decoding order; a removed row's place is taken by the last one.

    Shapes of the buffers, one a layer: prompts [groups, kv_heads, prompt capacity, head_dim],
    own [rows, kv_heads, row capacity, head_dim].
    """

    def __init__(self, model: PreTrainedModel, max_rows: int) -> None:
        self._model = model
        self._max_rows = max_rows
        self._device = model.device
        self._groups: list[_Group] = []
        self._group_of: list[int] = []
        self._lengths: list[int] = []
        self._prompt_keys: list[Tensor] = []
        self._prompt_values: list[Tensor] = []
        self._own_keys: list[Tensor] = []
        self._own_values: list[Tensor] = []
        self._layout_changed = True

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def num_free(self) -> int:
        """How many rows can still be added."""
        return self._max_rows - len(self._lengths)

    def add(self, prompt: Prefill, num_rows: int, max_new_tokens: int) -> None:
        """Append `num_rows` rows that continue one prompt. Raises ValueError if they do not fit."""
        if not 1 <= num_rows <= self.num_free:
            raise ValueError(f"{num_rows} rows do not fit into {self.num_free}")
        group, length = len(self._groups), len(prompt.token_ids)
        if group == 0:
            self._give_back_large_buffers()
        self._prompt_keys = _ensure(self._prompt_keys, prompt.keys, group + 1, length, 64)
        self._prompt_values = _ensure(self._prompt_values, prompt.values, group + 1, length, 64)
        for buffer, tensor in zip(self._prompt_keys, prompt.keys, strict=True):
            buffer[group, :, :length] = tensor[0]
        for buffer, tensor in zip(self._prompt_values, prompt.values, strict=True):
            buffer[group, :, :length] = tensor[0]
        needed = len(self._lengths) + num_rows
        self._own_keys = _ensure(self._own_keys, prompt.keys, needed, max_new_tokens, 32)
        self._own_values = _ensure(self._own_values, prompt.values, needed, max_new_tokens, 32)
        self._groups.append(_Group(length, num_rows))
        self._group_of += [group] * num_rows
        self._lengths += [0] * num_rows
        self._layout_changed = True

    def remove(self, row: int) -> None:
        """Drop a row; the last row takes its number. The same happens to the prompt when its last row goes."""
        last = len(self._lengths) - 1
        if row != last:
            length = self._lengths[last]
            for buffer in (*self._own_keys, *self._own_values):
                buffer[row, :, :length] = buffer[last, :, :length]
        group = self._group_of[row]
        self._group_of[row] = self._group_of[last]
        self._lengths[row] = self._lengths[last]
        self._group_of.pop()
        self._lengths.pop()
        self._groups[group].num_rows -= 1
        if self._groups[group].num_rows == 0:
            self._remove_group(group)
        self._layout_changed = True

    def _remove_group(self, group: int) -> None:
        last = len(self._groups) - 1
        if group != last:
            length = self._groups[last].length
            for buffer in (*self._prompt_keys, *self._prompt_values):
                buffer[group, :, :length] = buffer[last, :, :length]
            self._groups[group] = self._groups[last]
            self._group_of = [group if g == last else g for g in self._group_of]
        self._groups.pop()

    def _give_back_large_buffers(self) -> None:
        buffers = (*self._prompt_keys, *self._prompt_values, *self._own_keys, *self._own_values)
        if sum(buffer.nbytes for buffer in buffers) > KEEP_BYTES:
            self._prompt_keys, self._prompt_values, self._own_keys, self._own_values = [], [], [], []

    def step(self, token_ids: list[int]) -> Tensor:
        """Feed every row its latest token; returns the hidden states that predict the next ones, [B, H]."""
        self._lay_out()
        ids = torch.tensor(token_ids, device=self._device)[:, None]
        lengths = torch.tensor(self._lengths, device=self._device)
        self._own_length = max(self._lengths) + 1
        steps = torch.arange(self._own_length, device=self._device)
        self._own_bias = _make_bias(steps[None] > lengths[:, None], self._model.dtype)
        self._write_at = lengths
        output = find_backbone(self._model)(
            input_ids=ids,
            position_ids=(self._prompt_lengths + lengths)[:, None],
            # Our attention needs no mask; a ready-made one keeps transformers from making its own.
            attention_mask=torch.ones((len(token_ids), 1, 1, 1), dtype=torch.bool, device=self._device),
            use_cache=False,
            decode_rows=self,
        )
        self._lengths = [length + 1 for length in self._lengths]
        return cast(Tensor, output.last_hidden_state)[:, 0]

    def _lay_out(self) -> None:
        """Index tensors between rows and the grid [groups, most rows of a group] in which prompts are attended to."""
        if not self._layout_changed:
            return
        width = max(group.num_rows for group in self._groups)
        grid = [[0] * width for _ in self._groups]
        filled = [0] * len(self._groups)
        place = []
        for row, group in enumerate(self._group_of):
            grid[group][filled[group]] = row
            place.append(group * width + filled[group])
            filled[group] += 1
        self._grid_width = width
        self._grid = torch.tensor(grid, device=self._device).flatten()
        self._place = torch.tensor(place, device=self._device)
        self._rows = torch.arange(len(place), device=self._device)
        lengths = torch.tensor([group.length for group in self._groups], device=self._device)
        self._prompt_lengths = lengths[torch.tensor(self._group_of, device=self._device)]
        self._prompt_length = max(group.length for group in self._groups)
        positions = torch.arange(self._prompt_length, device=self._device)
        self._prompt_bias = _make_bias(positions[None] >= lengths[:, None], self._model.dtype)
        self._layout_changed = False

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One layer's attention of a step. Shapes: query [B, heads, 1, d], already scaled; key, value
        [B, kv_heads, 1, d]; result [B, 1, heads, d]."""
        num_rows, num_heads, _, size = query.shape
        kv_heads = key.shape[1]
        own_keys, own_values = self._own_keys[layer], self._own_values[layer]
        own_keys[self._rows, :, self._write_at] = key[:, :, 0]
        own_values[self._rows, :, self._write_at] = value[:, :, 0]
        query = query.view(num_rows, kv_heads, num_heads // kv_heads, size)
        own, own_norm = _attend_part(
            query,
            own_keys[:num_rows, :, : self._own_length],
            own_values[:num_rows, :, : self._own_length],
            self._own_bias,
        )
        num_groups, width, per_kv = len(self._groups), self._grid_width, num_heads // kv_heads
        # The rows of a group become more queries of the same head: [groups, kv_heads, width * per_kv, d].
        grid = query[self._grid].view(num_groups, width, kv_heads, per_kv, size).transpose(1, 2)
        shared, shared_norm = _attend_part(
            grid.reshape(num_groups, kv_heads, width * per_kv, size),
            self._prompt_keys[layer][:num_groups, :, : self._prompt_length],
            self._prompt_values[layer][:num_groups, :, : self._prompt_length],
            self._prompt_bias,
        )
        shared = shared.view(num_groups, kv_heads, width, per_kv, size).transpose(1, 2).flatten(0, 1)[self._place]
        shared_norm = shared_norm.view(num_groups, kv_heads, width, per_kv, 1).transpose(1, 2).flatten(0, 1)
        share = torch.sigmoid(shared_norm[self._place] - own_norm)
        return torch.lerp(own, shared, share).view(num_rows, 1, num_heads, size)


def _attend_part(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over one part of the context and the log of its softmax normaliser, by which parts are joined."""
    scores = query @ keys.transpose(-1, -2)
    scores += bias
    norm = scores.logsumexp(-1, keepdim=True)
    return (scores - norm).exp_() @ values, norm


def _make_bias(absent: Tensor, dtype: torch.dtype) -> Tensor:
    """Zero where something is, -inf where `absent`. Shapes: [N, S] to [N, 1, 1, S]."""
    return torch.zeros(absent.shape, dtype=dtype, device=absent.device).masked_fill_(absent, -math.inf)[:, None, None]


def _ensure(buffers: list[Tensor], like: tuple[Tensor, ...], count: int, length: int, length_step: int) -> list[Tensor]:
    """Buffers with room for `count` entries of `length`, with their content; grown in steps, never shrunk."""
    if buffers and buffers[0].shape[0] >= count and buffers[0].shape[2] >= length:
        return buffers
    old_count, old_length = (buffers[0].shape[0], buffers[0].shape[2]) if buffers else (0, 0)
    new_count = max(old_count, 1 << (count - 1).bit_length())
    new_length = max(old_length, -(-length // length_step) * length_step)
    grown = []
    for index, tensor in enumerate(like):
        # Zeros, not empty: a masked entry is multiplied by 0, and 0 * NaN would be NaN.
        buffer = tensor.new_zeros((new_count, tensor.shape[1], new_length, tensor.shape[3]))
        if buffers:
            buffer[:old_count, :, :old_length] = buffers[index]
        grown.append(buffer)
    return grown


@torch.inference_mode()
def check_decoding(model: PreTrainedModel) -> None:
    """Pass when decoding row by row equals the plain model. Raises ModelRefused otherwise."""
    ids = torch.arange(3, 19, device=model.device)
    plain = model(input_ids=ids[None]).logits[0].float()
    rows = DecodeRows(model, max_rows=2)
    rows.add(prefill_prompt(model, ids[:8]), num_rows=2, max_new_tokens=8)
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.5
    for position in range(8, 16):
        logits = project(model, rows.step([int(ids[position])] * 2))
        difference = float((logits - plain[position]).abs().max())
        if not difference <= tolerance * max(1.0, float(plain.abs().max())):
            name = type(model).__name__
            raise ModelRefused(f"{name} cannot be decoded by this engine: logits differ by {difference:.3g}")


def draw_tokens(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, uniforms: Tensor
) -> tuple[Tensor, Tensor]:
    """One token a row by inverting the distribution at a uniform number, and its logprob under the full softmax.

    temperature 0: the likeliest token, logprob at temperature 1. top_k 0 and top_p 1 are off; they narrow the draw
    and leave the logprob as it is. Shapes: logits [B, V] float32; the others [B], uniforms in [0, 1); results [B].
    """
    greedy = temperature == 0
    logprobs = logits / torch.where(greedy, 1.0, temperature)[:, None]
    logprobs -= logprobs.logsumexp(-1, keepdim=True)
    weights = logprobs.exp()
    if bool((top_k > 0).any()):
        limit = top_k.clamp(max=logits.shape[-1])
        best = logprobs.topk(int(limit.max()), dim=-1).values
        least = best.gather(-1, (limit - 1).clamp(min=0)[:, None])
        weights = weights.masked_fill((logprobs < least) & (top_k > 0)[:, None], 0.0)
    if bool((top_p < 1).any()):
        ordered, order = weights.sort(dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        beyond = before >= top_p[:, None] * ordered.sum(-1, keepdim=True)
        weights = weights.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)
    ids = _invert(weights, uniforms)
    if bool(greedy.any()):
        ids = torch.where(greedy, logits.argmax(-1), ids)
    return ids, logprobs.gather(-1, ids[:, None])[:, 0]


def _invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The first index at which the running sum of weights exceeds uniform * total, by blocks: fast and precise.

    Shapes: weights [B, V], not normalised, uniforms [B], result [B]. Never an index of weight 0.
    """
    num_rows, size = weights.shape
    blocks = nn.functional.pad(weights, (0, -size % DRAW_BLOCK)).view(num_rows, -1, DRAW_BLOCK)
    reach = blocks.sum(-1).cumsum(-1, dtype=torch.float64)
    target = uniforms.to(torch.float64)[:, None] * reach[:, -1:]
    block = torch.searchsorted(reach, target, right=True).clamp(max=reach.shape[-1] - 1)
    within = blocks.gather(1, block[:, :, None].expand(-1, 1, DRAW_BLOCK))[:, 0].cumsum(-1, dtype=torch.float64)
    before = torch.where(block > 0, reach.gather(-1, (block - 1).clamp(min=0)), 0.0)
    place = torch.searchsorted(within, target - before, right=True).clamp(max=DRAW_BLOCK - 1)
    drawn = (block * DRAW_BLOCK + place)[:, 0].clamp(max=size - 1)
    # Rounding between the two sums may point just past the last weight of a block: take the likeliest then.
    missed = weights.gather(-1, drawn[:, None])[:, 0] <= 0
    return torch.where(missed, weights.argmax(-1), drawn) if bool(missed.any()) else drawn
