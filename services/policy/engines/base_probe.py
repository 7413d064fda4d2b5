"""The logprobs of a fixed text computed from a model's folder, to check whether a server holds the same weights."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from services.contracts.answers import MAX_TOP_K
from services.contracts.tasks import Message
from services.policy.model.modeling import (
    LoadedPolicy,
    encode_text,
    prefill_prompt,
    project,
    render_prompt,
    score_responses,
)

QUESTION: Final = "How many legs have three cats and two birds together? Answer in one sentence."
ANSWER: Final = "Three cats have 12 legs and two birds have 4, so together they have 16 legs."
HOT_TEMPERATURE: Final = 2.0
"""As far from 1 as vLLM goes: the logprob of even a likely token is then another one."""

TOLERANCES: Final = {"float32": 1e-3, "bfloat16": 0.25}
"""In nats, the largest over the answer's tokens; weights of another model are off by several."""

WIDTH: Final = MAX_TOP_K + 56


@dataclass(frozen=True)
class BaseProbe:
    """prompt [P], response [T] and its logprobs [T] at temperature 1; the logprob of the likeliest first token at
    `hot_temperature`; the dtype the server is expected to compute in and how far it may be off, in nats; width: how
    many of the likeliest tokens a server must be ready to tell."""

    prompt: list[int]
    response: list[int]
    logprobs: list[float]
    hot_temperature: float
    hot_likeliest: float
    dtype: str
    tolerance: float
    width: int


def forget_weights(policy: LoadedPolicy) -> None:
    """Keep the model's names and shapes, by which adapters are checked, and give its memory back."""
    nn.Module.to(policy.model, torch.device("meta"))


@torch.inference_mode()
def measure_base(policy: LoadedPolicy) -> BaseProbe:
    """Compute the probe with the loaded weights."""
    prompt = render_prompt(policy.tokenizer, [Message(role="user", content=QUESTION)])
    response = encode_text(policy.tokenizer, ANSWER)
    device = policy.model.device
    prefill = prefill_prompt(policy.model, torch.tensor(prompt, device=device))
    ids = torch.tensor([response], device=device)
    scores = score_responses(policy.model, prefill, ids, torch.ones_like(ids, dtype=torch.bool))
    hot = (project(policy.model, prefill.last_hidden[0, 0]) / HOT_TEMPERATURE).log_softmax(-1)
    dtype = str(policy.model.dtype).removeprefix("torch.")
    return BaseProbe(
        prompt=prompt,
        response=response,
        logprobs=scores.logprobs[0].tolist(),
        hot_temperature=HOT_TEMPERATURE,
        hot_likeliest=float(hot.max()),
        dtype=dtype,
        tolerance=TOLERANCES[dtype],
        width=WIDTH,
    )
