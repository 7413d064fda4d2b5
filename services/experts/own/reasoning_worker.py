"""`python -m services.experts.own.reasoning_worker`: makes questions and scores answers, a JSON line for each.

Started by `services.experts.own.reasoning` without secrets in its environment; bounds its own memory and files first.
"""

import dataclasses
import importlib.metadata
import json
import math
import resource
import sys
from functools import lru_cache
from typing import Any, Final

from pydantic import BaseModel
from reasoning_gym.factory import DATASETS, create_dataset

from services.experts.own.reasoning import Failed, Families, Made, Recipe, Scored

MEMORY_BYTES: Final = 4 << 30
OPEN_FILES: Final = 64


def bound_self() -> None:
    """Limit the memory, and forbid writing to disk."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))


@lru_cache(maxsize=64)
def open_family(name: str, seed: int, size: int, config: str) -> Any:
    """The family with these settings. Raises ValueError with the reason where they do not fit."""
    if name not in DATASETS:
        raise ValueError(f"reasoning-gym has no family {name!r}")
    settings = json.loads(config)
    known = {field.name for field in dataclasses.fields(DATASETS[name][1])}
    if strange := sorted(settings.keys() - known):
        raise ValueError(f"{name} has no setting {', '.join(strange)}; it has {', '.join(sorted(known))}")
    try:
        return create_dataset(name, seed=seed, size=size, **settings)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"{name} does not take these settings: {error}") from None


@lru_cache(maxsize=4096)
def make_entry(name: str, seed: int, size: int, config: str, index: int) -> dict[str, Any]:
    """One question with the family's own notes about it."""
    entry: dict[str, Any] = open_family(name, seed, size, config)[index]
    return entry


def read_recipe(recipe: Recipe) -> tuple[Any, dict[str, Any]]:
    """The family and the question of a recipe."""
    config = json.dumps(recipe.config, sort_keys=True)
    if recipe.index >= recipe.size:
        raise ValueError(f"there is no place {recipe.index} among {recipe.size}")
    family = open_family(recipe.name, recipe.seed, recipe.size, config)
    return family, make_entry(recipe.name, recipe.seed, recipe.size, config, recipe.index)


def score(family: Any, entry: dict[str, Any], answer: str) -> float:
    """The family's verdict, within 0..1; an answer its verifier cannot read is wrong."""
    try:
        verdict = float(family.score_answer(answer, entry))
    except Exception:  # noqa: BLE001 - a verifier may fail in any way on a model's text
        return 0.0
    return min(1.0, max(0.0, verdict)) if math.isfinite(verdict) else 0.0


def serve(order: dict[str, Any]) -> BaseModel:
    """The reply to one order."""
    if order["do"] == "list":
        return Families(version=importlib.metadata.version("reasoning-gym"), names=sorted(DATASETS))
    try:
        family, entry = read_recipe(Recipe.model_validate(order["recipe"]))
    except (ValueError, IndexError) as error:
        return Failed(error=str(error)[:1000])
    if order["do"] == "score":
        return Scored(question=entry["question"], score=score(family, entry, order["answer"]))
    answer = entry["answer"]
    is_right = isinstance(answer, str) and score(family, entry, answer) == 1.0
    return Made(question=entry["question"], answer=answer if is_right else None)


def main() -> None:
    """Answer until the input ends."""
    bound_self()
    answers = sys.stdout
    sys.stdout = sys.stderr  # a family that prints must not be taken for a reply
    for line in sys.stdin:
        answers.write(serve(json.loads(line)).model_dump_json() + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
