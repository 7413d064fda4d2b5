"""Adapters as peft itself runs them, to hold ours against."""

from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from services.policy.model.adapters import _quiet_peft


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The model with the adapter in `folder` on it, not merged."""
    with _quiet_peft():
        return PeftModel.from_pretrained(model, str(folder))
