"""The trainer's settings, read once at its entrypoint. Environment: PRECEPTOR_TRAINER_*. Loads without torch.

Objectives have settings of their own, declared beside them (`trainer.objectives`). Settings that the loop shares with
other services (leases, staleness, the sampler's limits) are in `services.runtime.settings`.
"""

import math
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.contracts.sources import ContextSettings
from trainer.objectives.registry import ObjectiveName, ObjectiveSettings


class TrainerConfig(ContextSettings, ObjectiveSettings, BaseSettings):
    """How an update is made and when it is published. Costs in nats, times in seconds."""

    model_config = SettingsConfigDict(
        env_prefix="PRECEPTOR_TRAINER_", frozen=True, extra="forbid", ser_json_inf_nan="strings"
    )

    model: Path | None = None
    """Folder of the base model; by default the one the lineage was begun with."""

    objective: ObjectiveName = "distil"
    """The loss that is descended: `distil`, `forward_ce`, `paper`, `sdpo`, `reverse_kl`, `grpo`, `maxrl`, `sft` or
    `rft`, as the [method](method.md) has them."""
    mix: dict[ObjectiveName, float] = {}
    """Objectives added to it with their weights: PRECEPTOR_TRAINER_MIX='{"grpo": 0.1}'. Each is logged by itself."""
    question_weights: Literal["none", "pass_rate"] = "none"
    """`pass_rate`: everything a group adds to the loss is multiplied with √(p(1-p)), p its share of successes. Groups
    without a score, and those whose rollouts all agree, are then left out."""
    groups_per_update: int = Field(default=2, ge=1)
    """Groups in an update, or as many smaller ones as have GROUP_SIZE rollouts together in the place of each."""
    patience_seconds: float = Field(default=60, ge=0)
    """After waiting this long for a full batch, an update is made of the lessons that are ready."""

    contexts: Literal["merged", "per_expert"] = "merged"
    """One teacher context made of all answers about a rollout, or one for each answer, each a term of its own."""
    teacher_ema: float = Field(default=0.0, ge=0, le=1)
    """Share of the new student mixed into the teacher after each update: 0 is the frozen base, 1 the student itself."""

    learning_rate: float = Field(default=5e-4, gt=0, allow_inf_nan=False)
    """Of AdamW; tune it first, as the highest usable one differs by a factor of 8 between objectives."""
    warmup_updates: int = Field(default=0, ge=0)
    """First updates, over which the learning rate rises linearly."""
    lora_r: int = Field(default=16, ge=1)
    """Rank of the adapter."""
    lora_alpha: int = Field(default=32, ge=1)
    """Scale of the adapter: its output is multiplied with alpha / rank."""
    micro_batch_rows: int = Field(default=8, ge=1)
    """Rows put through the model at once. Siblings that share a baseline (`distil` with λ above 0) are never parted,
    however many they are."""
    fused: bool = True
    """Compute losses from hidden states, tile by tile of the output layer, instead of holding logits over the whole
    vocabulary. The same numbers but for rounding; an output layer with a bias has the plain version in any case."""

    publish_every: int = Field(default=2, ge=1)
    """Updates between two published versions."""
    publish_average: float = Field(default=1.0, gt=0, le=1)
    """Share of the newest weights mixed, after each update, into the average that is published in their place: at 1 the
    weights themselves. An average wanders less where updates are small (Polyak and Juditsky, 1992)."""
    keep_checkpoints: int = Field(default=4, ge=1)
    """Checkpoints that are kept, the newest ones; those of versions that training may fall back to stay too."""
    gate_tolerance: float = Field(default=1e-3, gt=0, le=1)
    """How far the server's logprobs may be from the trainer's, in nats."""
    gate_max_kl_base: float = Field(default=3.0, gt=0)
    """Nats per token between a version and the base. Runs that learned moved 0.05 to 0.35; at 3 the base finds each
    token e³ = 20 times less likely than the version does, which is another language, not a better answer. Raise it for
    a long run that is meant to go this far from its base, and for a lineage of nothing but private words: command words
    reach 2 to 3.4."""
    gate_max_kl_previous: float = Field(default=0.5, gt=0)
    """Nats per token between a version and the one that serves. Versions two updates apart differed by 0.02 to 0.04;
    ten times that is a jump, and rollouts in flight would be learned from with ratios of e^0.5 per token and more."""
    gate_length_ratio: float = Field(default=8.0, gt=1)
    """How many times longer or shorter a version's answers may be than the rollouts it was trained on."""

    seed: int = 0
    """Decides the adapter's initial weights."""
    device: str = "cpu"
    """`cpu`, `cuda`, or one device such as `cuda:1`; under torchrun `cuda` is each process's own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the base model; the adapter is trained in float32."""
    threads: int = Field(default=1, ge=1)
    """Threads that torch computes with."""

    @model_validator(mode="after")
    def _a_mix_adds_other_objectives(self) -> Self:
        if self.objective in self.mix:
            raise ValueError(f"mix names the objective {self.objective} itself, whose weight is 1")
        if wrong := [name for name, weight in self.mix.items() if not 0 < weight < math.inf]:
            raise ValueError(f"mix: the weight of {wrong[0]} must be above 0")
        return self

    @property
    def objectives(self) -> dict[str, float]:
        """Every objective of an update with its weight."""
        return {self.objective: 1.0, **self.mix}

    @property
    def objective_title(self) -> str:
        """The objective as the ledger names it, such as `distil + 0.1 grpo`."""
        return " + ".join([self.objective, *(f"{weight:g} {name}" for name, weight in self.mix.items())])
