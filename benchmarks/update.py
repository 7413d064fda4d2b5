"""What an update costs: student, teacher, loss, backward, optimizer step; beside TRL's SDPOTrainer on the same batch.

    python -m benchmarks.update                                        (make bench-update)

8 prompts × 4 rollouts × 128 tokens (`--mixed`: 16 to 128), LoRA r16 on all linear layers, the frozen base as teacher
under a context of its own for each prompt. Both sides get the same token ids, drawn at random: neither generates, and
what tokens say changes neither time nor memory. TRL runs with the full logits and alpha 0, the forward KL, once with as
many rollouts in a forward pass as ours has and once with all 32; ours is the default objective, future term included.
The sides take turns, each in a process of its own; the first update of each warms up and is not counted.

Seconds are those of the processor, so a busy machine spoils them less. Memory is the peak over the loaded model.

Not covered: sampling, and what the updates teach.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from uuid import UUID

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.arguments import find_model, positive
from benchmarks.loss import read_peak, reset_peak, run_apart
from services.contracts.ids import new_id
from services.policy.model.modeling import load_policy
from services.policy.model.tiny import make_tiny_policy
from services.runtime.settings import Settings
from trainer.batch.rows import Batch, Context, Row, Source
from trainer.config import TrainerConfig
from trainer.step.ranks import Ranks
from trainer.step.state import begin
from trainer.step.update import make_update

NUM_PROMPTS = 8
NUM_ROLLOUTS = 4
PROMPT_TOKENS = 48
CONTEXT_TOKENS = 160  # the prompt, a solution, the prompt again
NOBODY = Source((), ())


class Case(BaseModel):
    """One side's run."""

    model_config = ConfigDict(frozen=True)

    side: str
    model: str
    tokens: int
    mixed: bool
    updates: int
    threads: int


class Cost(BaseModel):
    """An update's processor seconds and wall seconds, the median; bytes over the loaded model at the peak."""

    model_config = ConfigDict(frozen=True)

    seconds: float
    wall_seconds: float
    extra_bytes: int


@dataclass(frozen=True, eq=False)
class Draws:
    """Token ids by prompt: the prompt, what the teacher is shown, the rollouts."""

    prompts: list[list[int]]
    contexts: list[list[int]]
    rollouts: list[list[list[int]]]

    @classmethod
    def make(cls, vocabulary: int, case: Case) -> "Draws":
        numbers = torch.Generator().manual_seed(0)
        lengths = draw_lengths(case.tokens, case.mixed)

        def draw(length: int) -> list[int]:
            ids: list[int] = torch.randint(3, vocabulary, (length,), generator=numbers).tolist()
            return ids

        return cls(
            prompts=[draw(PROMPT_TOKENS) for _ in range(NUM_PROMPTS)],
            contexts=[draw(CONTEXT_TOKENS) for _ in range(NUM_PROMPTS)],
            rollouts=[[draw(length) for length in own] for own in lengths],
        )


def draw_lengths(tokens: int, mixed: bool) -> list[list[int]]:
    """How long each prompt's rollouts are: all the same, or anything from an eighth of that on."""
    numbers = torch.Generator().manual_seed(1)
    shape = (NUM_PROMPTS, NUM_ROLLOUTS)
    lengths = (
        torch.randint(max(1, tokens // 8), tokens + 1, shape, generator=numbers) if mixed else torch.full(shape, tokens)
    )
    return [[int(length) for length in own] for own in lengths]


class Clock:
    """Times updates: processor and wall seconds of each."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.wall_seconds: list[float] = []

    def start(self) -> None:
        self._used, self._wall = time.process_time(), time.perf_counter()

    def stop(self) -> None:
        self.seconds.append(time.process_time() - self._used)
        self.wall_seconds.append(time.perf_counter() - self._wall)

    def cost(self, extra_bytes: int) -> Cost:
        """The median of all but the first."""
        return Cost(
            seconds=median(self.seconds[1:]), wall_seconds=median(self.wall_seconds[1:]), extra_bytes=extra_bytes
        )


def measure_ours(case: Case, config: TrainerConfig) -> Cost:
    """Updates by the trainer's own step."""
    policy = load_policy(Path(case.model))
    draws = Draws.make(policy.vocab_size, case)
    state = begin(policy, config)
    settings = Settings(max_new_tokens=case.tokens, teacher_temperature=1.0)
    batch = Batch(tuple(_rows(draws)), {})
    before, clock = reset_peak(on_gpu=False), Clock()
    for _ in range(case.updates + 1):
        clock.start()
        result = make_update(state, batch, config, settings, Ranks(0, 1), lambda: False)
        clock.stop()
        if result.untrained is not None:
            raise RuntimeError(result.untrained)
    return clock.cost(read_peak(on_gpu=False) - before)


def _rows(draws: Draws) -> list[Row]:
    rows = []
    for number, (prompt, shown, rollouts) in enumerate(zip(draws.prompts, draws.contexts, draws.rollouts, strict=True)):
        context = Context(tuple(shown), "", None, (), False, 1.0, NOBODY)
        for ids in rollouts:
            rows.append(
                Row(
                    lesson_id=new_id(),
                    rollout_id=new_id(),
                    group_id=UUID(int=number),
                    siblings=str(number),
                    half=0,
                    domain="any",
                    prompt_ids=tuple(prompt),
                    token_ids=tuple(ids),
                    action_mask=(True,) * len(ids),
                    temperature=1.0,
                    sampler_logprobs=(-10.0,) * len(ids),
                    credited=True,
                    stopped=False,
                    score=None,
                    verdicts=NOBODY,
                    staleness=0,
                    contexts=(context,),
                )
            )
    return rows


def measure_trl(case: Case, rows_at_once: int) -> Cost:
    """Updates by TRL's SDPOTrainer, which is handed the batch in place of generating one."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

    policy = load_policy(Path(case.model))
    draws = Draws.make(policy.vocab_size, case)
    parts = list(_tensors(draws, rows_at_once))
    clock, memory = Clock(), dict[str, int]()

    class GivenRollouts(SDPOTrainer):
        def _prepare_inputs(self, generation_batch: object) -> dict[str, Tensor]:
            step: int = self._step
            return parts[step % len(parts)]

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            memory.setdefault("before", reset_peak(on_gpu=False))
            clock.start()

        def on_step_end(self, *_: object, **__: object) -> None:
            clock.stop()

    with tempfile.TemporaryDirectory() as folder:
        settings = SDPOConfig(
            output_dir=folder,
            per_device_train_batch_size=rows_at_once,
            gradient_accumulation_steps=len(parts),
            num_generations=NUM_ROLLOUTS,
            max_completion_length=case.tokens,
            max_steps=case.updates + 1,
            learning_rate=5e-4,
            distillation_mode="full_logits",
            distillation_alpha=0.0,
            distillation_is_clip=None,
            teacher_model_kind="base",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = GivenRollouts(
            model=policy.model,
            reward_funcs=lambda prompts, **_: [0.0] * len(prompts),
            args=settings,
            train_dataset=Dataset.from_dict({"prompt": ["unused"] * 64}),
            processing_class=policy.tokenizer,
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[Watch()],
        )
        trainer.loop.train()
    return clock.cost(read_peak(on_gpu=False) - memory["before"])


def _tensors(draws: Draws, rows_at_once: int) -> list[dict[str, Tensor]]:
    """The batch as SDPOTrainer makes it of its own rollouts, in parts, padded on the right."""
    flat = [
        (prompt, shown, ids)
        for prompt, shown, rollouts in zip(draws.prompts, draws.contexts, draws.rollouts, strict=True)
        for ids in rollouts
    ]
    parts = []
    for start in range(0, len(flat), rows_at_once):
        rows = flat[start : start + rows_at_once]
        prompts, shown = (torch.tensor([row[column] for row in rows]) for column in (0, 1))
        ids = pad_sequence([torch.tensor(own) for _, _, own in rows], batch_first=True)
        exists = pad_sequence([torch.ones(len(own), dtype=torch.long) for _, _, own in rows], batch_first=True)
        parts.append(
            {
                "prompt_ids": prompts,
                "prompt_mask": torch.ones_like(prompts),
                "completion_ids": ids,
                "completion_mask": exists,
                "teacher_input_ids": torch.cat([shown, ids], 1),
                "teacher_attention_mask": torch.cat([torch.ones_like(shown), exists], 1),
            }
        )
    return parts


SIDES: dict[str, Callable[[Case], Cost]] = {
    "ours": lambda case: measure_ours(case, TrainerConfig()),
    "ours, plain loss": lambda case: measure_ours(case, TrainerConfig(fused=False)),
    "ours, no future term": lambda case: measure_ours(case, TrainerConfig(objective="forward_ce")),
    "trl, 4 rollouts at once": lambda case: measure_trl(case, NUM_ROLLOUTS),
    "trl, 32 rollouts at once": lambda case: measure_trl(case, NUM_PROMPTS * NUM_ROLLOUTS),
}


def main(arguments: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.update", description=__doc__.splitlines()[0])
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--model", help="folder of the model, or `tiny`; by default the one that ships")
    parser.add_argument("--tokens", type=positive, default=128, help="tokens of the longest rollout")
    parser.add_argument("--mixed", action="store_true", help="rollouts of different lengths")
    parser.add_argument("--updates", type=positive, default=2, help="counted ones; one more warms up")
    parser.add_argument("--rounds", type=positive, default=1, help="turns of each side; the best counts")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--case", help="measure this one here, as JSON; used by the command itself")
    options = parser.parse_args(arguments)
    if options.case:
        case = Case.model_validate_json(options.case)
        torch.set_num_threads(case.threads)
        sys.stdout.write(SIDES[case.side](case).model_dump_json() + "\n")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        tiny = options.model == "tiny"
        model = make_tiny_policy(Path(folder) / "tiny") if tiny else find_model(options.model, _say)
        found: dict[str, list[Cost]] = {side: [] for side in options.sides}
        for _ in range(options.rounds):
            for side in options.sides:
                line = run_apart(
                    "benchmarks.update",
                    Case(
                        side=side,
                        model=str(model),
                        tokens=options.tokens,
                        mixed=options.mixed,
                        updates=options.updates,
                        threads=options.threads,
                    ),
                )
                if line is not None:
                    cost = Cost.model_validate_json(line)
                    found[side].append(cost)
                    _say(f"  measured {side}: {cost.seconds:.2f} s, {cost.extra_bytes / 2**20:.0f} MiB")
    return _report(found, sum(map(sum, draw_lengths(options.tokens, options.mixed))))


def _report(found: dict[str, list[Cost]], num_tokens: int) -> int:
    best = {side: min(costs, key=lambda cost: cost.seconds) for side, costs in found.items() if costs}
    for side, cost in best.items():
        _say(
            f"{side:<25} {cost.seconds:7.2f} s ({cost.wall_seconds:.2f} by the clock), "
            f"{num_tokens / cost.seconds:7.0f} tokens/s, {cost.extra_bytes / 2**20:7.0f} MiB over the model"
        )
    for side, cost in best.items():
        if side.startswith("trl") and "ours" in best:
            ours = best["ours"]
            _say(
                f"ours against {side}: x {cost.seconds / ours.seconds:.2f} tokens/s, "
                f"x {ours.extra_bytes / cost.extra_bytes:.2f} memory"
            )
    return int(any(not costs for costs in found.values()))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
