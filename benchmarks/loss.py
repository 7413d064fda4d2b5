"""What a loss costs: time and extra memory of loss and backward, beside the plain version and peers.

    python -m benchmarks.loss --vocabulary 49152 --tokens 1024        (make bench-loss runs all sizes)

Every contender runs in a process of its own, from the same hidden states, with a frozen output layer that student and
teacher share, as LoRA training has it. Extra memory is the peak over what was held before. `distil` is the default
objective with its future term; `forward_ce` and the peers are the forward KL alone: TRL's
compute_full_logit_self_distillation_loss and GKD loss, and Liger's fused JSD at beta 0. Liger computes the output
layer's gradient in any case: `trained forward_ce` is ours with that gradient, and what Liger is compared with. Seconds
are those of the processor, which a busy machine stretches less than the clock; on a GPU they are the clock's.

Not covered: the model around the loss (see `benchmarks.update`).
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias, cast

import psutil
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from benchmarks.arguments import positive, require_folder, usable_device
from trainer.losses.credit import CostKind, Credit, LeaveOneOut, Reach, Scale
from trainer.losses.distil import distil_loss, forward_ce_loss, reverse_kl_loss, sdpo_loss
from trainer.losses.fused import FusedStudent
from trainer.losses.student import Rollouts, ScoredStudent, Student
from trainer.losses.terms import FullVocabulary, HiddenStates, Term, WholeTerm, tempered_logprobs

WIDTHS = {49_152: 576, 151_936: 1024}  # SmolLM2-135M; Qwen3-0.6B
NUM_ROLLOUTS = 8
COPIES = 9  # tensors over the vocabulary that the plain version holds at once, to tell what cannot fit
PEER_COPIES = 15  # that TRL's losses hold
PAIRS = ("distil", "forward_ce", "sdpo", "reverse_kl")
PEERS = ("trl", "gkd", "liger")
CREDIT = Credit(
    weight=0.1, clip=5.0, cost=CostKind.KL, scale=Scale.MEAN_TO_GO, reach=Reach.LATER, gamma=1.0, max_tokens=4096
)

Contender: TypeAlias = Callable[["Inputs"], Tensor]


class Case(BaseModel):
    """One measurement to make."""

    model_config = ConfigDict(frozen=True)

    contender: str
    vocabulary: int
    tokens: int
    repeats: int
    threads: int
    device: str


class Cost(BaseModel):
    """What it took: seconds of the best repetition, bytes over what was held before; loss, size of its gradient."""

    model_config = ConfigDict(frozen=True)

    seconds: float
    wall_seconds: float
    extra_bytes: int
    loss: float
    gradient: float


class Inputs:
    """Hidden states of student and teacher [B, T, H], the output layer [V, H] they share, and the rollouts."""

    def __init__(self, case: Case) -> None:
        width, length = WIDTHS.get(case.vocabulary, 64), case.tokens // NUM_ROLLOUTS
        numbers = torch.Generator(case.device).manual_seed(0)
        size = (NUM_ROLLOUTS, length)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=numbers, device=case.device)

        self.weight = draw(case.vocabulary, width).mul_(3 / width**0.5)  # scores with a deviation of 3
        self.hidden = draw(*size, width).requires_grad_()
        self.shown = self.hidden.detach() + 0.3 * draw(*size, width)
        ids = torch.randint(case.vocabulary, size, generator=numbers, device=case.device)
        every_row = torch.ones(NUM_ROLLOUTS, device=case.device)
        self.rollouts = Rollouts(
            token_ids=ids,
            action_mask=torch.ones(size, dtype=torch.bool, device=case.device),
            temperature=every_row,
            sampler_logprobs=torch.full(size, -10.0, device=case.device),
            credited=every_row == 1,
            emphasis=every_row,
        )


def _train_head(inputs: Inputs) -> Tensor:
    inputs.weight.requires_grad_()
    inputs.weight.grad = None
    return _ours("forward_ce", fused=True)(inputs)


def _read(inputs: Inputs, fused: bool) -> tuple[Student, list[Term]]:
    everywhere = torch.ones(NUM_ROLLOUTS, device=inputs.weight.device)
    if fused:
        student: Student = FusedStudent(inputs.hidden, inputs.weight, inputs.rollouts)
        return student, [WholeTerm("teacher", HiddenStates(inputs.shown, 1.0), everywhere)]
    expert = FullVocabulary(tempered_logprobs(inputs.shown @ inputs.weight.T, 1.0))
    student = ScoredStudent(inputs.hidden @ inputs.weight.T, inputs.rollouts)
    return student, [WholeTerm("teacher", expert, everywhere)]


def _ours(objective: str, fused: bool) -> Contender:
    def run(inputs: Inputs) -> Tensor:
        student, terms = _read(inputs, fused)
        rollouts, count = inputs.rollouts, inputs.rollouts.action_mask.numel()
        if objective == "sdpo":
            return sdpo_loss(student, rollouts, terms, 0.5, 100, count).loss
        if objective == "reverse_kl":
            return reverse_kl_loss(student, rollouts, terms, count).loss
        if objective == "forward_ce":
            return forward_ce_loss(student, rollouts, terms, count).loss
        group = torch.arange(NUM_ROLLOUTS, device=rollouts.token_ids.device) // 4
        fallback = torch.zeros(rollouts.token_ids.shape[1], device=group.device)
        siblings = LeaveOneOut(group, torch.zeros_like(group), fallback)
        return distil_loss(student, rollouts, terms, siblings, CREDIT, count).loss

    return run


def _trl(inputs: Inputs) -> Tensor:
    from trl.experimental.sdpo.loss_utils import compute_full_logit_self_distillation_loss

    with torch.no_grad():
        shown = inputs.shown @ inputs.weight.T
    losses: Tensor = compute_full_logit_self_distillation_loss(
        inputs.hidden @ inputs.weight.T, shown, distillation_alpha=0.0
    )
    return losses.mean()


def _gkd(inputs: Inputs) -> Tensor:
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    with torch.no_grad():
        shown = inputs.shown @ inputs.weight.T
    measure_jsd = cast(Callable[..., Tensor], GKDTrainer.generalized_jsd_loss)
    loss = measure_jsd(inputs.hidden @ inputs.weight.T, shown, beta=0, reduction="sum")
    return loss / inputs.rollouts.token_ids.numel()


def _liger(inputs: Inputs) -> Tensor:
    from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss

    compiled = inputs.weight.device.type == "cuda"
    measure = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=compiled)
    ids = inputs.rollouts.token_ids.flatten()
    loss: Tensor = measure(inputs.hidden.flatten(0, 1), inputs.weight, inputs.shown.flatten(0, 1), inputs.weight, ids)
    return loss


CONTENDERS: dict[str, Contender] = {
    **{f"{way} {name}": _ours(name, way == "fused") for name in PAIRS for way in ("plain", "fused")},
    "trained forward_ce": _train_head,
    "trl": _trl,
    "gkd": _gkd,
    "liger": _liger,
}


# --- measuring, in a process of its own ---


def measure(case: Case) -> Cost:
    """Loss and backward, repeated. A token a rollout comes before, so that no library's own buffers are counted."""
    torch.set_num_threads(case.threads)
    inputs, run = Inputs(case), CONTENDERS[case.contender]
    on_gpu = case.device != "cpu"
    torch.autograd.backward(run(Inputs(case.model_copy(update={"tokens": NUM_ROLLOUTS}))))
    before = reset_peak(on_gpu)
    best, best_wall, loss = float("inf"), float("inf"), torch.zeros(())
    for _ in range(case.repeats):
        inputs.hidden.grad = None
        wall, used = time.perf_counter(), time.process_time()
        loss = run(inputs)
        torch.autograd.backward(loss)
        if on_gpu:
            torch.cuda.synchronize()
        wall, used = time.perf_counter() - wall, time.process_time() - used
        best, best_wall = min(best, wall if on_gpu else used), min(best_wall, wall)
    assert inputs.hidden.grad is not None
    return Cost(
        seconds=best,
        wall_seconds=best_wall,
        extra_bytes=read_peak(on_gpu) - before,
        loss=float(loss.detach()),
        gradient=float(inputs.hidden.grad.norm()),
    )


def reset_peak(on_gpu: bool) -> int:
    """Forget the peak so far; what is held now, in bytes. On a CPU this is Linux's VmHWM."""
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return psutil.Process().memory_info().rss


def read_peak(on_gpu: bool) -> int:
    """The most that was held since `reset_peak`, in bytes."""
    if on_gpu:
        return torch.cuda.max_memory_allocated()
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def run_apart(module: str, case: BaseModel) -> str | None:
    """The last line that `python -m module --case CASE` printed; None if it failed, and then why was printed."""
    command = [sys.executable, "-m", module, "--case", case.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        sys.stdout.write(f"  failed: {reason[:200]}\n")
        return None
    return done.stdout.strip().splitlines()[-1]


def fits(case: Case) -> bool:
    """Whether a version that holds tensors over the vocabulary could hold its own."""
    free = torch.cuda.mem_get_info()[0] if case.device != "cpu" else psutil.virtual_memory().available
    if case.contender.startswith(("fused", "trained")) or case.contender == "liger":
        return True
    copies = PEER_COPIES if case.contender in PEERS else COPIES
    return copies * 4 * case.tokens * case.vocabulary < free


def report(case: Case, found: dict[str, Cost]) -> list[str]:
    """A line a contender, with its ratio to the plain version of the same objective."""
    lines = []
    for name, cost in found.items():
        own = name.split()[-1]
        plain = found.get(f"plain {own if own in PAIRS else 'forward_ce'}")
        ratio = ""
        if plain is not None and cost is not plain:
            ratio = f"  x {cost.seconds / plain.seconds:.2f} time, x {cost.extra_bytes / plain.extra_bytes:.3f} memory"
        lines.append(f"  {name:<18} {cost.seconds:8.3f} s {cost.extra_bytes / 2**20:9.1f} MiB{ratio}")
        if plain is not None and name.startswith("fused"):
            lines[-1] += f"  (loss off by {abs(cost.loss / plain.loss - 1):.1e})"
        if name == "liger" and (trained := found.get("trained forward_ce")) is not None:
            lines[-1] += f"  (ours with a trained head: x {trained.seconds / cost.seconds:.2f} of its time)"
    return lines


def main(arguments: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loss", description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=positive, nargs="+", default=sorted(WIDTHS))
    parser.add_argument("--tokens", type=positive, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--device", type=usable_device, default="cpu")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    parser.add_argument("--case", help="measure this one here, as JSON; used by the command itself")
    options = parser.parse_args(arguments)
    if options.case:
        sys.stdout.write(measure(Case.model_validate_json(options.case)).model_dump_json() + "\n")
        return 0
    if min(options.tokens) < NUM_ROLLOUTS:
        parser.error(f"--tokens are dealt to {NUM_ROLLOUTS} rollouts: at least one each")
    if options.out is not None:
        require_folder(options.out.parent)
    figures: list[dict[str, object]] = []
    failed = False
    for vocabulary in options.vocabulary:
        for tokens in options.tokens:
            sys.stdout.write(f"V = {vocabulary:,}, {tokens:,} tokens, H = {WIDTHS.get(vocabulary, 64)}\n")
            found: dict[str, Cost] = {}
            for contender in options.contenders:
                case = Case(
                    contender=contender,
                    vocabulary=vocabulary,
                    tokens=tokens,
                    repeats=options.repeats,
                    threads=options.threads,
                    device=options.device,
                )
                if not fits(case):
                    sys.stdout.write(f"  {contender:<18} does not fit into memory\n")
                    continue
                line = run_apart("benchmarks.loss", case)
                failed |= line is None and contender not in PEERS
                if line is not None:
                    found[contender] = Cost.model_validate_json(line)
                    figures.append(case.model_dump() | found[contender].model_dump())
            sys.stdout.write("\n".join(report(case, found)) + "\n")
            sys.stdout.flush()
            if options.out is not None:
                options.out.write_text(json.dumps(figures, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
