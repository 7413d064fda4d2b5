"""LoRA adapters: fresh ones to train, as stored ones, and as changes of single weights.

Covered: plain LoRA on linear layers. Not covered: every other kind of adapter, which is refused.
"""

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from services.policy.artifacts import ArtifactRefused


class AdapterRefused(ArtifactRefused):
    """The adapter does not fit this model, or holds numbers that are not finite."""

    title = "Adapter refused"


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
