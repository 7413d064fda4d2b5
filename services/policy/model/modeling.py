"""The policy as torch sees it: load weights and tokenizer, render prompts, score responses.

Scoring shares the prompt: its keys and values are computed once and used by every response of the group, in the
engine and in the trainer alike, and gradients flow through them. Covered: decoder-only models of
transformers whose layers all attend to the whole context. Not covered: gradient checkpointing (it switches the
cache off), sliding windows shorter than the context.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache
from transformers.utils.logging import disable_progress_bar

from services.contracts.tasks import Message
from services.policy.artifacts import hash_file
from services.policy.model.linear import freeze_linears
from services.policy.text import plain_text, turns
from services.runtime.errors import InvalidInput

LOGITS_PER_CHUNK: Final = 32 * 1024 * 1024
"""Full-vocabulary logits are made this many numbers at a time (128 MB in float32)."""

CHANGED_LOGITS: Final = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Settings of models that scale or cap the output layer's logits: Gemma 2, Granite, Cohere."""

PolicyModel = PreTrainedModel | PeftModel


class ModelRefused(InvalidInput):
    """The folder's model cannot be trained or served here."""

    title = "Model refused"


@dataclass(frozen=True)
class LoadedPolicy:
    """A model with its tokenizer and the hashes that identify them. vocab_size: the number of rows of the output layer.

    former_sha256: how the base was identified when only its config and its safetensors files counted; adapters,
    checkpoints and lineages from then name it so.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    tokenizer_hash: str
    base_sha256: str
    former_sha256: str
    eos_token_ids: tuple[int, ...]
    vocab_size: int
    max_positions: int

    @property
    def names(self) -> frozenset[str]:
        """The hashes by which stored weights may name this base."""
        return frozenset({self.base_sha256, self.former_sha256})


def load_policy(path: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> LoadedPolicy:
    """The model and tokenizer in a Hugging Face folder, in evaluation mode.

    Raises ModelRefused if the tokenizer has no chat template or more tokens than the model has rows, and if the model
    scales or caps its logits: everything here takes the output layer's product as it is.
    """
    cast(Callable[[], None], disable_progress_bar)()
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    loaded = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True, attn_implementation="sdpa")
    model = cast(PreTrainedModel, loaded)
    nn.Module.to(model, torch.device(device))
    nn.Module.train(model, mode=False).requires_grad_(False)
    freeze_linears(model)
    if not tokenizer.chat_template:
        raise ModelRefused(f"the tokenizer in {path} has no chat template; an instruction-tuned model is needed")
    for setting in CHANGED_LOGITS:
        if (value := getattr(model.config, setting, None)) not in (None, 1, 1.0):
            raise ModelRefused(f"the model in {path} changes its logits ({setting} {value}), which is not supported")
    vocab_size = count_vocabulary(model)
    if len(tokenizer) > vocab_size:
        raise ModelRefused(f"the tokenizer in {path} has {len(tokenizer)} tokens for {vocab_size} rows of the model")
    base_sha256, former_sha256 = hash_base(path)
    return LoadedPolicy(
        model=model,
        tokenizer=tokenizer,
        tokenizer_hash=hash_tokenizer(tokenizer),
        base_sha256=base_sha256,
        former_sha256=former_sha256,
        eos_token_ids=_find_eos_ids(model, tokenizer),
        vocab_size=vocab_size,
        max_positions=int(model.config.max_position_embeddings),
    )


def _find_eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every id that ends an answer; first the one that the chat template ends a turn with, then the tokenizer's own."""
    stated = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = [
        turns.find_turn_end(tokenizer),
        tokenizer.eos_token_id,
        *(sorted(stated) if isinstance(stated, list) else [stated]),
    ]
    found = tuple(dict.fromkeys(int(i) for i in ids if i is not None))
    if not found:
        raise ModelRefused("the model has no end-of-sequence token: its answers could never end")
    return found


DOCUMENTS: Final = frozenset({".md", ".txt", ".rst", ".pdf", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp"})
VOCABULARIES: Final = frozenset({"merges.txt", "vocab.txt"})
"""Text files that a tokenizer is read from."""


def hash_base(path: Path) -> tuple[str, str]:
    """The sha256 that identifies a base model, over the name and content of every file in its folder; and the former
    one, over its config and its safetensors files alone.

    Weights of every format, their index, config, generation settings, tokenizer, chat template and adapters all change
    the output. Documents, licenses and hidden files do not. Links count as what they point to.
    Raises ModelRefused where a link points nowhere.
    """
    lines = {}
    for file in sorted(_find_files(path)):
        try:
            lines[file] = f"{file.relative_to(path).as_posix()}:{hash_file(file)}\n"
        except OSError as error:
            raise ModelRefused(f"{file} cannot be read: {error.strerror}") from None
    formerly = {path / "config.json", *path.glob("*.safetensors")}
    return _digest(lines.values()), _digest(line for file, line in lines.items() if file in formerly)


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _find_files(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    real = folder.resolve()
    if real in above:  # a link back to a folder it lies in
        return
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _find_files(entry, above | {real})
        elif entry.name in VOCABULARIES or not _is_document(entry):
            yield entry


def _is_document(file: Path) -> bool:
    return file.suffix.lower() in DOCUMENTS or file.stem.upper() in ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """The sha256 that says two lists of token ids mean the same text: over the tokenizer's whole serialisation.

    The chat template is not part of it: it changes prompts, not what an id means.
    """
    if tokenizer.is_fast:
        serialised = json.loads(tokenizer.backend_tokenizer.to_str())
        serialised["padding"] = serialised["truncation"] = None
    else:
        added = sorted((i, repr(token)) for i, token in tokenizer.added_tokens_decoder.items())
        serialised = {"class": type(tokenizer).__qualname__, "vocabulary": tokenizer.get_vocab(), "added": added}
    canonical = json.dumps(serialised, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of chat messages up to where the policy would answer. Raises InvalidInput if the template refuses."""
    return plain_text.render(tokenizer, messages)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of text as it is: nothing is put before or after it, and no token in it marks a turn."""
    return plain_text.encode(tokenizer, text)


def decode_ids(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Text of token ids, special tokens included, spaces as they are."""
    return cast(str, tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def spell_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of every token alone, by id. Bytes of a split character are shown as the replacement character."""
    words = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return [_spell(tokenizer, index, word) for index, word in enumerate(words)]


def _spell(tokenizer: PreTrainedTokenizerBase, index: int, word: str | None) -> str:
    if word is None:
        return ""
    text = decode_ids(tokenizer, [index])
    # A tokenizer that marks the space before a word drops it where the word stands alone.
    return " " + text if word.startswith("\N{LOWER ONE EIGHTH BLOCK}") and not text.startswith(" ") else text


# --- scoring with a shared prompt ---


@dataclass(frozen=True)
class Prefill:
    """A prompt the model has read. keys, values: per layer [1, heads, P, head_dim]; last_hidden: [1, 1, H]."""

    token_ids: tuple[int, ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    last_hidden: Tensor


class _FilledLayer(Protocol):
    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class TokenScores:
    """logprobs: [B, T]. top_ids, top_logprobs: [B, T, K], likeliest first; tail_logmass: [B, T]. Zero where masked."""

    logprobs: Tensor
    top_ids: Tensor
    top_logprobs: Tensor
    tail_logmass: Tensor


def find_causal_model(model: PolicyModel) -> PreTrainedModel:
    """The transformers model itself, from under its adapters if it has any."""
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def find_backbone(model: PolicyModel) -> nn.Module:
    """The part of the model that turns token ids into hidden states: everything but the output layer."""
    return find_causal_model(model).base_model


def count_vocabulary(model: PolicyModel) -> int:
    """V: the number of rows of the output layer, at least the tokenizer's number of tokens."""
    return int(cast(Tensor, _find_head(model).weight).shape[0])


def _find_head(model: PolicyModel) -> nn.Module:
    find = cast(Callable[[], nn.Module], find_causal_model(model).get_output_embeddings)
    return find()


def project(model: PolicyModel, hidden: Tensor) -> Tensor:
    """Logits over the vocabulary, in float32, for hidden states. Shapes: hidden [..., H], logits [..., V]."""
    return cast(Tensor, _find_head(model)(hidden)).float()


def prefill_prompt(model: PolicyModel, prompt_ids: Tensor, known: Prefill | None = None) -> Prefill:
    """Read a prompt once. The part shared with the start of `known` is taken from there, not computed.

    Shapes: prompt_ids [P], P >= 1.
    """
    ids = tuple(prompt_ids.tolist())
    shared = count_common(ids, known.token_ids) if known is not None else 0
    if known is not None and shared == len(ids) == len(known.token_ids):
        return known
    # The last prompt token is always read: its hidden state predicts the first response token.
    shared = min(shared, len(ids) - 1)
    cache = DynamicCache()
    if known is not None and shared:
        for layer, (keys, values) in enumerate(zip(known.keys, known.values, strict=True)):
            cache.update(keys[:, :, :shared], values[:, :, :shared], layer)
    output = find_backbone(model)(input_ids=prompt_ids[None, shared:], past_key_values=cache, use_cache=True)
    layers = cast(Sequence[_FilledLayer], cache.layers)
    return Prefill(
        token_ids=ids,
        keys=tuple(layer.keys for layer in layers),
        values=tuple(layer.values for layer in layers),
        last_hidden=output.last_hidden_state[:, -1:],
    )


def count_common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two lists of ids have in common at their start."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


def continue_prefill(model: PolicyModel, prefill: Prefill, response_ids: Tensor, response_mask: Tensor) -> Tensor:
    """Hidden states whose row t predicts response token t, for responses to a prompt that was already read.

    Shapes: response_ids [B, T], response_mask bool [B, T], result [B, T, H]. The mask says which tokens exist:
    True from the left (ValueError otherwise); ids where it is False must be in the vocabulary and count nowhere.
    """
    if response_ids.shape != response_mask.shape or response_mask.dtype != torch.bool:
        raise ValueError("response_mask must be bool and have the shape of response_ids")
    if bool((response_mask[:, 1:] & ~response_mask[:, :-1]).any()):
        raise ValueError("responses must be padded on the right")
    num_rows, num_tokens = response_ids.shape
    first = prefill.last_hidden.expand(num_rows, 1, -1)
    if num_tokens == 1:
        hidden = first
    else:
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(zip(prefill.keys, prefill.values, strict=True)):
            cache.update(keys.expand(num_rows, -1, -1, -1), values.expand(num_rows, -1, -1, -1), layer)
        # Padding is on the right, so causality alone keeps it out of every token that exists.
        output = find_backbone(model)(input_ids=response_ids[:, :-1], past_key_values=cache, use_cache=True)
        hidden = torch.cat((first, output.last_hidden_state), dim=1)
    return hidden.masked_fill(~response_mask[..., None], 0.0)


def response_hidden(model: PolicyModel, prompt_ids: Tensor, response_ids: Tensor, response_mask: Tensor) -> Tensor:
    """Hidden states whose row t predicts response token t; the prompt is read once for all B responses.

    Differentiable, also through the shared prompt. Shapes: prompt_ids [P], response_ids [B, T],
    response_mask bool [B, T] (right-padded), result [B, T, H], zero where masked.
    """
    return continue_prefill(model, prefill_prompt(model, prompt_ids), response_ids, response_mask)


@torch.no_grad()
def score_responses(
    model: PolicyModel,
    prefill: Prefill,
    response_ids: Tensor,
    response_mask: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
) -> TokenScores:
    """Log-probabilities of given responses under the full softmax at `temperature`; no gradient.

    Shapes: response_ids [B, T], response_mask bool [B, T] right-padded. Raises ValueError unless top_k < V.
    """
    hidden = continue_prefill(model, prefill, response_ids, response_mask).flatten(0, 1)
    ids = response_ids.flatten()
    vocab_size = count_vocabulary(model)
    if not 0 <= top_k < vocab_size:
        raise ValueError(f"top_k must be below the vocabulary size {vocab_size}")
    chosen, top_ids, top_logprobs, tails = [], [], [], []
    chunk = max(1, LOGITS_PER_CHUNK // vocab_size)
    for start in range(0, len(ids), chunk):
        logits = project(model, hidden[start : start + chunk]) / temperature
        logprobs = logits - logits.logsumexp(-1, keepdim=True)
        chosen.append(logprobs.gather(-1, ids[start : start + chunk, None])[:, 0])
        best = logprobs.topk(top_k, dim=-1)
        top_ids.append(best.indices)
        top_logprobs.append(best.values)
        if top_k:
            # Summed over the rest rather than 1 - sum(top): exact also when the tail is tiny.
            tails.append(logprobs.scatter(-1, best.indices, -math.inf).logsumexp(-1))
        else:
            tails.append(torch.zeros_like(chosen[-1]))
    shape, absent = response_ids.shape, ~response_mask
    return TokenScores(
        logprobs=torch.cat(chosen).view(shape).masked_fill(absent, 0.0),
        top_ids=torch.cat(top_ids).view(*shape, top_k).masked_fill(absent[..., None], 0),
        top_logprobs=torch.cat(top_logprobs).view(*shape, top_k).masked_fill(absent[..., None], 0.0),
        tail_logmass=torch.cat(tails).view(shape).masked_fill(absent, 0.0),
    )
