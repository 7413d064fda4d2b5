"""The tiny policy of the synthetic worlds: a million parameters, pre-trained here in two minutes on one core."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from benchmarks.shootout.synthetic import Synthetic, Turn
from services.policy.model.modeling import encode_text, load_policy
from services.policy.model.tiny import make_tiny_policy

HIDDEN_SIZE = 192
NUM_LAYERS = 3
STEPS = 500
BATCH = 64
LEARNING_RATE = 3e-3
WARMUP = 50
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'user' %}?{{ m.content }}={% else %}{{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)


def pretrain(world: Synthetic, folder: Path, report: Callable[[str], None]) -> Path:
    """Write the world's policy into `folder`, unless it is there; the folder. Deterministic on one machine."""
    if (folder / "config.json").exists():
        return folder
    began = time.monotonic()
    scratch = folder.with_name(folder.name + ".part")
    make_tiny_policy(scratch, seed=0, hidden_size=HIDDEN_SIZE, num_layers=NUM_LAYERS)
    policy = load_policy(scratch)
    policy.tokenizer.chat_template = TEMPLATE
    model = policy.model
    parameters = [p.requires_grad_() for p in model.parameters()]
    for parameter in parameters:
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, 1.0) * (1 - step / STEPS) ** 0.5
    )
    lessons = world.lessons(random.Random(0))
    total = 0.0
    for step in range(1, STEPS + 1):
        ids, learned = _stack([_encode(policy.tokenizer, next(lessons)) for _ in range(BATCH)])
        logits = model(input_ids=ids[:, :-1]).logits
        wanted = torch.where(learned[:, 1:], ids[:, 1:], -100)
        loss = cross_entropy(logits.flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        total += float(loss.detach())
        if step % 100 == 0:
            report(f"{world.name}: pre-training step {step} of {STEPS}, loss {total / 100:.3f}")
            total = 0.0
    model.save_pretrained(scratch)
    policy.tokenizer.save_pretrained(scratch)
    scratch.rename(folder)
    size = sum(parameter.numel() for parameter in parameters)
    report(f"{world.name}: pre-trained {size:,} parameters in {time.monotonic() - began:.0f} s")
    return folder


def _encode(tokenizer: PreTrainedTokenizerBase, turns: list[Turn]) -> tuple[list[int], list[bool]]:
    ids: list[int] = []
    learned: list[bool] = []
    for turn in turns:
        asked, said = encode_text(tokenizer, f"?{turn.question}="), encode_text(tokenizer, turn.answer)
        said.append(cast(int, tokenizer.eos_token_id))
        ids += asked + said
        learned += [False] * len(asked) + [turn.is_learned] * len(said)
    return ids, learned


def _stack(rows: list[tuple[list[int], list[bool]]]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = pad_sequence([torch.tensor(own) for own, _ in rows], batch_first=True)
    return ids, pad_sequence([torch.tensor(taught) for _, taught in rows], batch_first=True)
