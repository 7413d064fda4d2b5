"""The trainer's settings, read once at its entrypoint. Environment: PRECEPTOR_TRAINER_*. Loads without torch.

What the loop, the store and the other services share (leases, staleness, the sampler's limits) is in
`services.runtime.settings`; here is what only the trainer needs. Names of choices are those of `trainer.losses.credit`.
"""

import math
from pathlib import Path
from typing import Literal, Self, TypeAlias

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.contracts.templates import Template

ObjectiveName: TypeAlias = Literal["distil", "forward_ce", "paper", "sdpo", "reverse_kl", "grpo", "maxrl", "sft", "rft"]


class TrainerConfig(BaseSettings):
    """How an update is made and when it is published. Costs in nats, times in seconds."""

    model_config = SettingsConfigDict(
        env_prefix="PRECEPTOR_TRAINER_", frozen=True, extra="forbid", ser_json_inf_nan="strings"
    )

    model: Path | None = None
    """Folder of the base model; by default the one the lineage was begun with."""

    objective: ObjectiveName = "distil"
    """What is descended, on the same batches: `distil`; `forward_ce`, distil without credit for later costs; `paper`,
    as its authors released it; `sdpo`, `reverse_kl`: other divergences from the teacher; `grpo`, `maxrl`: the scores;
    `sft`: the log-likelihood of the very solutions the teacher would be shown; `rft`: of the policy's own successes."""
    mix: dict[ObjectiveName, float] = {}
    """Objectives added to it with their weights: PRECEPTOR_TRAINER_MIX='{"grpo": 0.1}'. Each is logged by itself."""
    question_weights: Literal["none", "pass_rate"] = "none"
    """`pass_rate`: what a group's rollouts give is multiplied with √(p(1-p)), p its share of successes; groups without
    a score, and those whose rollouts all agree, are left out then."""
    normaliser: Literal["tokens", "max_tokens"] = "tokens"
    """What sums over whole rollouts are divided by: the update's usable action tokens, or usable rollouts times the
    longest answer allowed. Terms that cover some tokens only, and imitation, have counts of their own."""
    groups_per_update: int = Field(default=2, ge=1)
    max_late_lessons: int = Field(default=8, ge=0)
    """Late lessons an update takes along, beside its groups."""
    patience_seconds: float = Field(default=60, ge=0)
    """After waiting this long for a full batch an update is made of what is there."""

    lam: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """λ, the weight of the future term; 0 is the tokenwise forward cross-entropy. Where earlier tokens decide what can
    be learned, .1 is too little; on the starter tasks no difference between 0, .1 and 1 was seen (LOG.md)."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    clip: float = Field(default=5.0, gt=0)
    """Bound on what a token is charged with, in nats, either way; `inf` for none."""
    cost: Literal["kl", "cross_entropy"] = "kl"
    scale: Literal["mean_to_go", "room_left", "none"] = "mean_to_go"
    reach: Literal["later", "whole_rollout"] = "later"
    baseline: Literal["leave_one_out", "running_mean", "none"] = "leave_one_out"
    local_ratio: Literal["none", "prefix"] = "none"
    """Off-policy correction of the local term: none (learn on the mixture of past policies), or the truncated product
    of the ratios of the tokens before. The future term always has its truncated token ratio."""
    sdpo_alpha: float = Field(default=0.5, ge=0, le=1)
    """0 is KL(teacher ‖ student), 1 KL(student ‖ teacher), between them the generalised Jensen-Shannon divergence."""
    student_top_k: int = Field(default=100, ge=1)
    """The student's likeliest tokens that `sdpo` and `paper` look at, beside a tail bucket."""
    grpo_std: bool = True
    """Divide a group's advantages by the standard deviation of its scores."""

    solutions: Literal["reference", "siblings", "both"] = "both"
    """What the teacher may be shown beside people's corrections; `both` takes the reference where there is one."""
    contexts: Literal["merged", "per_expert"] = "merged"
    """One teacher context made of all that was said about a rollout, or one for each answer, each a term of its own."""
    continuations: Literal["drop", "imitate"] = "drop"
    """What becomes of a black-box expert's continuation after its tokens stop being samples of the rollout's states."""
    template: Template = Template.TURNS
    teacher_ema: float = Field(default=0.0, ge=0, le=1)
    """Share of the new student mixed into the teacher after each update: 0 is the frozen base, 1 the student itself."""

    expert_weights: dict[str, float] = {}
    """Trust in active experts by name, instead of the weights they were registered with."""
    conditioned_weight: float = Field(default=1.0, ge=0)
    """Trust in our own teacher, multiplied with that in the experts whose answers it was shown."""
    partial_share: float = Field(default=0.1, ge=0)
    """Weight of a term that covers some tokens only (labels, samples at prefixes) beside the whole-coverage terms."""
    imitation_share: float = Field(default=0.1, ge=0)
    """Weight of imitating the rest of a person's text after the token they corrected."""

    learning_rate: float = Field(default=5e-4, gt=0, allow_inf_nan=False)
    warmup_updates: int = Field(default=0, ge=0)
    grad_clip: float = Field(default=1.0, gt=0)
    lora_r: int = Field(default=16, ge=1)
    lora_alpha: int = Field(default=32, ge=1)
    micro_batch_rows: int = Field(default=8, ge=1)
    """Rows put through the model at once. Siblings that share a baseline (`distil` with λ above 0 and the baseline
    `leave_one_out`) are never parted, however many they are."""
    fused: bool = True
    """Compute losses from hidden states, tile by tile of the output layer, instead of holding logits over the whole
    vocabulary. The same numbers but for rounding; an output layer with a bias has the plain version in any case."""

    publish_every: int = Field(default=2, ge=1)
    keep_checkpoints: int = Field(default=4, ge=1)
    gate_rollouts: int = Field(default=4, ge=1, le=64)
    """Rollouts of the last update the gate probes a version with."""
    gate_tolerance: float = Field(default=1e-3, gt=0, le=1)
    """How far the server's logprobs may be from the trainer's."""
    gate_max_kl_base: float = Field(default=3.0, gt=0)
    """Nats a token between a version and the base. Runs that learned moved 0.05 to 0.35; at 3 the base finds each
    token e³ = 20 times less likely than the version does, which is another language, not a better answer. A long run
    that is meant to go this far from its base needs it raised."""
    gate_max_kl_previous: float = Field(default=0.5, gt=0)
    """Nats a token between a version and the one that serves. Versions two updates apart differed by 0.02 to 0.04;
    ten times that is a jump, and rollouts in flight would be learned from with ratios of e^0.5 a token and more."""
    gate_length_ratio: float = Field(default=8.0, gt=1)
    """How many times longer or shorter a version's answers may be than the rollouts it was trained on."""

    max_refusals: int = Field(default=3, ge=1)
    """Versions the gate may refuse in a row; then training falls back to the version that serves, and says so."""

    seed: int = 0
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _the_whole_rollout_is_not_discounted(self) -> Self:
        if self.reach == "whole_rollout" and self.gamma != 1:
            raise ValueError("gamma must be 1 when every token is charged with the whole rollout")
        return self

    @model_validator(mode="after")
    def _a_mix_adds_other_objectives(self) -> Self:
        if self.objective in self.mix:
            raise ValueError(f"mix names the objective {self.objective} itself, whose weight is 1")
        if wrong := [name for name, weight in self.mix.items() if not 0 < weight < math.inf]:
            raise ValueError(f"mix: the weight of {wrong[0]} must be above 0")
        return self

    @property
    def objectives(self) -> dict[ObjectiveName, float]:
        """Every objective of an update with its weight."""
        return {self.objective: 1.0, **self.mix}

    @property
    def shares_baseline(self) -> bool:
        """Whether a rollout's loss depends on its siblings' costs, so that they must be read together."""
        return "distil" in self.objectives and self.lam > 0 and self.baseline == "leave_one_out"

    @property
    def objective_title(self) -> str:
        """The objective as the ledger names it, `distil + 0.1 grpo` say."""
        return " + ".join([self.objective, *(f"{weight:g} {name}" for name, weight in self.mix.items())])

    def weight_of(self, expert: str, registered: float) -> float:
        """The trust in an expert; one that is not active (`registered` 0) has none, whatever is set here."""
        return self.expert_weights.get(expert, registered) if registered > 0 else 0.0
