"""Student and teacher on a micro-batch, in the form the losses take: fused, or with logits over the whole vocabulary.

The settings and the model's output layer decide between the two, here and only here; the losses take either.
"""

from collections.abc import Callable
from typing import cast

import torch
from peft import PeftModel
from torch import Tensor, nn

from services.policy.model.linear import is_plain_linear
from services.policy.model.modeling import find_causal_model, project
from trainer.losses.fused import FusedStudent
from trainer.losses.student import Rollouts, ScoredStudent, Student
from trainer.losses.terms import FullVocabulary, HiddenStates, tempered_logprobs


def find_plain_head(model: PeftModel) -> Tensor | None:
    """The weight [V, H] of an output layer without a bias; None for any other layer."""
    find = cast(Callable[[], nn.Module], find_causal_model(model).get_output_embeddings)
    head = find()
    return cast(nn.Linear, head).weight if is_plain_linear(head) and head.bias is None else None


def read_student(model: PeftModel, hidden: Tensor, rollouts: Rollouts, fused: bool) -> Student:
    """The student at the action tokens, from the states [B, T, H] that predict the rollouts' tokens.

    Raises ValueError naming a row with invalid numbers.
    """
    head = find_plain_head(model) if fused else None
    if head is None:
        return ScoredStudent(project(model, hidden), rollouts)
    return FusedStudent(hidden, head, rollouts)


@torch.no_grad()
def read_teacher(model: PeftModel, hidden: Tensor, temperature: float, fused: bool) -> FullVocabulary | HiddenStates:
    """The teacher's distribution from its states [B, T, H], in the form that `read_student`'s reading takes."""
    if fused and find_plain_head(model) is not None:
        return HiddenStates(hidden, temperature)
    return FullVocabulary(tempered_logprobs(project(model, hidden), temperature))
