"""What the benchmarks' commands refuse, in a sentence each and before anything has run."""

import sys
import tempfile
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

import torch

from services.policy.model.convert import ModelUnavailable, resolve_model


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number


def usable_device(name: str) -> str:
    """A device that torch can use here, for argparse: `cpu`, or a GPU by its name in torch."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ArgumentTypeError(f"{name!r} is no device: it is cpu, cuda, or cuda:1 where there are several") from None
    if device.type == "cpu":
        return "cpu"
    if device.type != "cuda":
        raise ArgumentTypeError(f"{name!r} is neither a CPU nor a GPU of CUDA's")
    if not torch.cuda.is_available():
        raise ArgumentTypeError("there is no GPU that torch can use; --device cpu runs the same, slowly")
    if (device.index or 0) >= torch.cuda.device_count():
        raise ArgumentTypeError(f"there is no {name}: torch can use {torch.cuda.device_count()} GPU(s)")
    return name


def require_folder(folder: Path) -> None:
    """Make the folder if it is not there. Exits if nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        sys.exit(f"{folder} cannot be written to: {error.strerror}")


def find_model(spec: str | None, report: Callable[[str], None]) -> Path:
    """The folder of the model that `--model` means, the one that ships for None. Exits if it cannot be had."""
    try:
        return resolve_model(spec, report)
    except ModelUnavailable as error:
        sys.exit(error.detail)
