"""The policy as torch sees it: load weights and tokenizer, render prompts, score responses, hold adapters.

Scoring shares the prompt: its keys and values are computed once and used by every response of the group, in the
engine and in the trainer alike, and gradients flow through them. Covered: decoder-only models of
transformers whose layers all attend to the whole context. Not covered: gradient checkpointing (it switches the
cache off), sliding windows shorter than the context, adapters other than plain LoRA on linear layers.
"""

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache
from transformers.utils.logging import disable_progress_bar

from services.contracts.tasks import Message
from services.policy.artifacts import ArtifactRefused, hash_file
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


class AdapterRefused(ArtifactRefused):
    """The adapter does not fit this model, or holds numbers that are not finite."""

    title = "Adapter refused"


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


# --- adapters ---


@dataclass(frozen=True)
class LoraDelta:
    """A low-rank change of one linear layer's weight: scale * up @ down. Shapes: down [r, in], up [out, r]."""

    down: Tensor
    up: Tensor
    scale: float


def add_lora(model: PreTrainedModel, r: int = 16, alpha: int = 32, seed: int = 0) -> PeftModel:
    """The model with a fresh trainable LoRA adapter on every linear layer but the output; its output is unchanged."""
    config = LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM", bias="none"
    )
    with torch.random.fork_rng(devices=[]), _quiet_peft():
        torch.manual_seed(seed)
        return cast(PeftModel, get_peft_model(model, config))


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """peft reads a property that transformers has deprecated; we cannot change that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


def save_adapter(model: PeftModel, folder: Path, base_sha256: str) -> None:
    """Write the active adapter to a new folder: the same weights always give the same bytes.

    peft's own writer stores sets in random order and the path of the base model; here keys are sorted and the base
    is named by its sha256.
    """
    folder.mkdir(parents=True)
    name = str(model.active_adapter)
    weights = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    tensors = {key: weights[key].detach().cpu().contiguous() for key in sorted(weights)}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = dict(model.peft_config[name].to_dict())
    config |= {"base_model_name_or_path": base_sha256, "inference_mode": True}
    text = json.dumps({key: _make_plain(config[key]) for key in sorted(config)}, indent=1, sort_keys=True)
    (folder / "adapter_config.json").write_text(text)


def _make_plain(value: object) -> object:
    if isinstance(value, set | frozenset):
        return sorted(value)
    return value.value if hasattr(value, "value") else value


def read_deltas(folder: Path, model: PreTrainedModel, bases: Set[str] | None = None) -> dict[str, LoraDelta]:
    """The weight changes of a stored adapter, by the name of the layer's weight, on the CPU in float32.

    bases: the hashes of which it must name one.
    Raises AdapterRefused if it was trained on another base, is not plain LoRA, names layers that the model lacks,
    has wrong shapes or numbers that are not finite.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterRefused(f"adapter_config.json cannot be read: {error}") from error
    if config.get("peft_type") != "LORA":
        raise AdapterRefused(f"peft_type is {config.get('peft_type')!r}; only LORA can be served")
    for feature in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias"):
        if config.get(feature):
            raise AdapterRefused(f"the adapter uses {feature}; only plain LoRA can be served")
    base = config.get("base_model_name_or_path")
    if bases is not None and base not in bases:
        raise AdapterRefused(f"the adapter was trained on base {base}, this is {' or '.join(sorted(bases))}")
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - not a dict
    deltas = _pair_deltas(tensors, scale)
    _check_deltas(deltas, dict(model.named_parameters()))
    return deltas


def take_deltas(model: PeftModel) -> dict[str, LoraDelta]:
    """The weight changes of the active adapter as it is now, by the name of the layer's weight."""
    name = str(model.active_adapter)
    config = cast(LoraConfig, model.peft_config[name])
    weights = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    return _pair_deltas({key: value.detach().float() for key, value in weights.items()}, config.lora_alpha / config.r)


def _pair_deltas(tensors: Mapping[str, Tensor], scale: float) -> dict[str, LoraDelta]:
    prefix, down_end, up_end = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
    layers = {name.removesuffix(down_end) for name in tensors if name.endswith(down_end)}
    expected = {layer + end for layer in layers for end in (down_end, up_end)}
    if not layers or expected != set(tensors) or not all(layer.startswith(prefix) for layer in layers):
        raise AdapterRefused("the adapter's tensors are not pairs of lora_A and lora_B")
    return {
        layer.removeprefix(prefix) + ".weight": LoraDelta(tensors[layer + down_end], tensors[layer + up_end], scale)
        for layer in sorted(layers)
    }


def _check_deltas(deltas: Mapping[str, LoraDelta], parameters: Mapping[str, nn.Parameter]) -> None:
    for name, delta in deltas.items():
        if name not in parameters:
            raise AdapterRefused(f"the model has no layer {name}")
        shape = (delta.up.shape[0], delta.down.shape[1])
        if delta.up.shape[1] != delta.down.shape[0] or shape != tuple(parameters[name].shape):
            raise AdapterRefused(f"the adapter's change of {name} has shape {shape}")
        if not bool(delta.up.isfinite().all() and delta.down.isfinite().all()):
            raise AdapterRefused(f"the adapter's change of {name} holds numbers that are not finite")


# --- a model for tests and rehearsals ---

CHATML: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_tiny_policy(folder: Path, seed: int = 0, hidden_size: int = 64, num_layers: int = 2) -> Path:
    """Write a random Llama with a byte-level tokenizer (259 tokens) and a ChatML template, made without a network.

    It answers nonsense at once: for tests and for rehearsing the loop.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    cast(Callable[[], None], disable_progress_bar)()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    symbols = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    make_tokenizer = cast(Callable[..., PreTrainedTokenizerBase], PreTrainedTokenizerFast)
    tokenizer = make_tokenizer(
        tokenizer_object=backend, eos_token=special[2], pad_token=special[2], clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = CHATML
    config = LlamaConfig(
        vocab_size=len(symbols),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
        # Wider than usual, so that a random model has preferences and its logprobs differ visibly.
        initializer_range=0.1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
