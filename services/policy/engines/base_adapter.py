"""An adapter of zeros, by which the base itself is requested from a vLLM server as one more adapter.

vLLM 0.32 on a CPU computes wrong numbers for rows without an adapter that share a batch with rows that have one: the
former get the adapter in the last slot (measured: up to 2.5 nats). Rows of different adapters are right
beside each other. So no row goes without one.
"""

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from services.policy.artifacts import ArtifactStore
from services.policy.model.linear import is_plain_linear
from services.policy.model.modeling import LoadedPolicy, find_backbone


def store_base_adapter(policy: LoadedPolicy, artifacts: ArtifactStore) -> str:
    """Store a LoRA adapter of zeros on the last linear layer of every block, and return its sha256."""
    backbone = {id(module) for module in find_backbone(policy.model).modules()}
    linear = {
        name: module
        for name, module in policy.model.named_modules()
        if is_plain_linear(module) and id(module) in backbone
    }
    target = list(linear)[-1].rpartition(".")[2]
    tensors: dict[str, Tensor] = {}
    for name, layer in linear.items():
        if name.rpartition(".")[2] == target:
            tensors[f"base_model.model.{name}.lora_A.weight"] = torch.zeros(1, layer.in_features)
            tensors[f"base_model.model.{name}.lora_B.weight"] = torch.zeros(layer.out_features, 1)
    config = {
        "base_model_name_or_path": policy.base_sha256,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": 1,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": 1,
        "target_modules": [target],
        "task_type": "CAUSAL_LM",
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "adapter"
        folder.mkdir()
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True))
        return artifacts.store(folder)
