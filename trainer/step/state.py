"""The state that an update changes, and its checkpoints: adapter, optimizer, moving averages, running baseline, random
state.

A checkpoint is a folder under its own sha256; the same state always gives the same bytes. Loading one restores the
state bit for bit, so a trainer that was killed continues as if it had never stopped.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from services.policy.artifacts import ArtifactStore
from services.policy.model.adapters import add_lora, save_adapter
from services.policy.model.modeling import LoadedPolicy
from services.runtime import space
from services.runtime.errors import PreceptorError
from trainer.batch.rows import Vocabulary
from trainer.config import TrainerConfig
from trainer.step.teacher import Weights, copy_weights, trainable, with_weights

ADAPTER = "adapter"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TENSORS = "state.safetensors"
FACTS = "state.json"
FORMAT = 1
BETAS = (0.9, 0.95)  # the second moment remembers some twenty updates: runs are short
POSITIONS = 4096  # of the running mean of returns; later tokens of longer answers count 0


class CheckpointDiffers(PreceptorError):
    """The checkpoint was made with another model, adapter shape or teacher than the trainer is configured for."""

    title = "Checkpoint differs"
    hint = "Restore the settings it was made with, or set PRECEPTOR_LINEAGE to a new name to begin anew."


@dataclass(eq=False)
class TrainerState:
    """The weights in training. number: of the last update made. average: the EMA teacher, None if it is frozen.
    published: the average that is published, None where that is the weights themselves.

    base_names: the hashes by which checkpoints may name the base.
    Shape: position_mean [POSITIONS], the running mean of the cost-to-go by position, in nats.
    """

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    vocabulary: Vocabulary
    base_sha256: str
    base_names: frozenset[str]
    optimizer: torch.optim.Optimizer
    average: Weights | None
    published: Weights | None
    position_mean: Tensor
    number: int

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter(trainable(self.model).values())).device

    def running_mean(self, length: int) -> Tensor:
        """The running mean [length] of the cost-to-go by position, 0 at positions past the known ones."""
        mean = torch.zeros(length)
        known = min(length, len(self.position_mean))
        mean[:known] = self.position_mean[:known]
        return mean.to(self.device)

    @contextmanager
    def as_published(self) -> Iterator[None]:
        """The model with the weights that are published, for the time of the block."""
        if self.published is None:
            yield
        else:
            with with_weights(self.model, self.published):
                yield

    def learning_rate(self, config: TrainerConfig) -> float:
        """Of the update being made, or just made: constant after a linear warm-up."""
        warm = (self.number + 1) / (config.warmup_updates + 1)
        return config.learning_rate * min(1.0, warm)


def begin(policy: LoadedPolicy, config: TrainerConfig) -> TrainerState:
    """The state before the first update, with an adapter that does not change the model yet."""
    model = add_lora(policy.model, r=config.lora_r, alpha=config.lora_alpha, seed=config.seed)
    for parameter in trainable(model).values():
        parameter.data = parameter.data.float()  # the adapter and its moments stay in full precision
    model.eval()
    torch.manual_seed(config.seed)
    return TrainerState(
        model=model,
        tokenizer=policy.tokenizer,
        vocabulary=Vocabulary(policy.vocab_size, policy.eos_token_ids, policy.max_positions),
        base_sha256=policy.base_sha256,
        base_names=policy.names,
        optimizer=_make_optimizer(model, config),
        average=copy_weights(model) if config.teacher_ema > 0 else None,
        published=copy_weights(model) if config.publish_average < 1 else None,
        position_mean=torch.zeros(POSITIONS),
        number=0,
    )


def _make_optimizer(model: PeftModel, config: TrainerConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        trainable(model).values(), lr=config.learning_rate, betas=BETAS, weight_decay=0.0, foreach=False
    )


def save(state: TrainerState, checkpoints: ArtifactStore) -> str:
    """Store the state durably and return its sha256. Raises DiskFull, and removes the partial checkpoint."""
    tensors = {"position_mean": state.position_mean, "random": torch.get_rng_state()}
    for name, parameter in trainable(state.model).items():
        for moment, value in state.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{moment}.{name}"] = value.detach().cpu()
        if state.average is not None:
            tensors[f"average.{name}"] = state.average[name].cpu()
        if state.published is not None:
            tensors[f"published.{name}"] = state.published[name].cpu()
    facts = {"format": FORMAT, "number": state.number, "base_sha256": state.base_sha256}
    checkpoints.root.mkdir(parents=True, exist_ok=True)
    with space.writing("a checkpoint"), tempfile.TemporaryDirectory(dir=checkpoints.root, prefix=".saving-") as scratch:
        folder = Path(scratch) / "state"
        save_adapter(state.model, folder / ADAPTER, state.base_sha256)
        save_file({name: tensors[name].contiguous() for name in sorted(tensors)}, folder / TENSORS)
        (folder / FACTS).write_text(json.dumps(facts, indent=1, sort_keys=True))
        return checkpoints.store(folder)


def restore(state: TrainerState, checkpoints: ArtifactStore, address: str, config: TrainerConfig) -> None:
    """Put a stored state in place of this one.

    Raises ArtifactNotFound or ArtifactDamaged (404, 409), and CheckpointDiffers if it does not fit the settings.
    """
    folder = checkpoints.path(address)
    facts = json.loads((folder / FACTS).read_text())
    if facts["format"] != FORMAT or facts["base_sha256"] not in state.base_names:
        raise CheckpointDiffers(f"checkpoint {address[:12]}… was made with another base model")
    tensors = load_file(folder / TENSORS)
    averages = _take(tensors, "average.", state.device)
    if bool(averages) != (config.teacher_ema > 0):
        raise CheckpointDiffers("the checkpoint's teacher is " + ("a moving average" if averages else "frozen"))
    weights = read_adapter(state.model, folder / ADAPTER)
    for name, parameter in trainable(state.model).items():
        parameter.data = weights[name]
    state.optimizer = _make_optimizer(state.model, config)
    for name, parameter in trainable(state.model).items():
        prefix, suffix = "optimizer.", f".{name}"
        moments = {
            key.removeprefix(prefix).removesuffix(suffix): tensor
            for key, tensor in tensors.items()
            if key.startswith(prefix) and key.endswith(suffix)
        }
        if moments:
            state.optimizer.state[parameter] = {
                moment: tensor if moment == "step" else tensor.to(state.device) for moment, tensor in moments.items()
            }
    state.average = averages or None
    state.published = None
    if config.publish_average < 1:  # of a checkpoint without one it begins with the weights
        state.published = _take(tensors, "published.", state.device) or copy_weights(state.model)
    state.position_mean = tensors["position_mean"]
    torch.set_rng_state(tensors["random"])
    state.number = int(facts["number"])


def _take(tensors: Weights, prefix: str, device: torch.device) -> Weights:
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): tensor.to(device) for name, tensor in own.items()}


def begin_from(state: TrainerState, adapter: Path, config: TrainerConfig) -> None:
    """Put an adapter in place of the weights, without the rest of its checkpoint: a fresh optimizer, the weights
    themselves as the moving averages, no running baseline. Raises CheckpointDiffers if it does not fit."""
    for name, weights in read_adapter(state.model, adapter).items():
        trainable(state.model)[name].data = weights
    state.optimizer = _make_optimizer(state.model, config)
    state.average = copy_weights(state.model) if config.teacher_ema > 0 else None
    state.published = copy_weights(state.model) if config.publish_average < 1 else None
    state.position_mean = torch.zeros(POSITIONS)
    torch.manual_seed(config.seed)


def read_adapter(model: PeftModel, folder: Path) -> Weights:
    """A stored adapter's weights, by the model's own names. Raises CheckpointDiffers if they do not fit."""
    stored = load_file(folder / ADAPTER_WEIGHTS)
    parameters = trainable(model)
    names = {name.replace(f".{model.active_adapter}.", "."): name for name in parameters}  # as peft stores them
    if stored.keys() != names.keys():
        raise CheckpointDiffers("the adapter has other layers than the model in training")
    for name, tensor in stored.items():
        if tensor.shape != parameters[names[name]].shape:
            raise CheckpointDiffers(f"the adapter's {name} has shape {tuple(tensor.shape)}")
    return {names[name]: tensor.to(parameters[names[name]]) for name, tensor in sorted(stored.items())}


def prune(checkpoints: ArtifactStore, keep: Sequence[str]) -> None:
    """Delete every checkpoint but those named, and partial ones that a crash left."""
    if not checkpoints.root.is_dir():
        return
    for entry in list(checkpoints.root.iterdir()):
        if entry.name in keep:
            continue
        doomed = entry
        if not entry.name.startswith("."):
            doomed = entry.with_name(f".pruned-{entry.name}")
            shutil.rmtree(doomed, ignore_errors=True)  # a crash left it
            with suppress(OSError):
                entry.rename(doomed)  # first, so that no reader finds half a checkpoint under its address
        shutil.rmtree(doomed, ignore_errors=True)
