"""`preceptor tasks import reasoning-gym:NAME?…`: tasks made by the package reasoning-gym.

The parts of the query: `size` (train tasks), `heldout` and `validation` (tasks of those splits), `seed`, and the
family's own settings. Splits are made with seeds of their own and never share a question. Since one family may not be
in two splits, the held-out ones are the family `NAME/heldout`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl

from services.contracts.base import JsonObject
from services.contracts.tasks import Message, Split, TaskCreate
from services.experts.own.reasoning import DOMAIN, METADATA_KEY, FamilyRefused, Gym, Recipe
from services.experts.own.reasoning_gym import build_prompt, write_answer

PREFIX: Final = "reasoning-gym:"
DEFAULT_SIZE: Final = 100
HELDOUT_SHARE: Final = 5
"""A fifth as many held-out tasks as train tasks, by default."""
MAX_SIZE: Final = 100_000
TRIES_A_TASK: Final = 10
"""Places looked at for every question wanted: small families repeat themselves."""
MAKE_SECONDS: Final = 60.0
SEED_STEP: Final = 1_000_003
"""Between the seeds of two splits."""


@dataclass(frozen=True)
class Wanted:
    """A parsed source."""

    name: str
    seed: int
    sizes: dict[Split, int]
    config: dict[str, bool | int | float]


def parse(source: str) -> Wanted:
    """Read `reasoning-gym:NAME?…`. Errors: FamilyRefused (422)."""
    name, _, query = source.removeprefix(PREFIX).partition("?")
    given = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=False))
    size = _read_count(given, "size", DEFAULT_SIZE)
    sizes = {
        Split.TRAIN: size,
        Split.VALIDATION: _read_count(given, "validation", 0),
        Split.HELDOUT: _read_count(given, "heldout", size // HELDOUT_SHARE),
    }
    seed = _read_count(given, "seed", 0)
    config = {key: _read_setting(key, value) for key, value in given.items()}
    return Wanted(name, seed, sizes, config)


def _read_count(given: dict[str, str], key: str, default: int) -> int:
    text = given.pop(key, str(default))
    if not (text.isascii() and text.isdecimal() and int(text) <= (2**31 if key == "seed" else MAX_SIZE)):
        raise FamilyRefused(f"{key}={text!r} is not a whole number up to {MAX_SIZE}")
    return int(text)


def _read_setting(key: str, text: str) -> bool | int | float:
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if not isinstance(value, bool | int | float):
        raise FamilyRefused(f"{key}={text!r}: settings are numbers, `true` or `false`")
    return value


def list_families() -> list[str]:
    """The names there are."""
    gym = Gym(MAKE_SECONDS)
    try:
        return gym.families().names
    finally:
        gym.close()


def make_tasks(wanted: Wanted) -> list[TaskCreate]:
    """The tasks of every split; fewer where the family has no more different questions. Errors: FamilyRefused (422)."""
    gym = Gym(MAKE_SECONDS)
    try:
        if wanted.name not in gym.families().names:
            gym.make(_recipe(wanted, wanted.seed, 0, 1))  # says why it is refused
        seen: set[str] = set()
        return [
            task for place, split in enumerate(wanted.sizes) for task in _make_split(gym, wanted, split, place, seen)
        ]
    finally:
        gym.close()


def _recipe(wanted: Wanted, seed: int, index: int, size: int) -> Recipe:
    return Recipe(name=wanted.name, seed=seed, index=index, size=size, config=wanted.config)


def _make_split(gym: Gym, wanted: Wanted, split: Split, place: int, seen: set[str]) -> Iterator[TaskCreate]:
    seed = (wanted.seed + place * SEED_STEP) % 2**32
    left, size = wanted.sizes[split], wanted.sizes[split] * TRIES_A_TASK
    for index in range(size):
        if left == 0:
            return
        recipe = _recipe(wanted, seed, index, size)
        made = gym.make(recipe)
        plain = " ".join(made.question.split())
        if plain in seen:
            continue
        seen.add(plain)
        left -= 1
        metadata: JsonObject = {METADATA_KEY: recipe.model_dump(mode="json")}
        if split is Split.TRAIN and made.answer is not None:
            metadata["reference"] = write_answer(made.answer)
        settings = "".join(f",{key}={value}" for key, value in sorted(wanted.config.items()))
        yield TaskCreate(
            key=f"{DOMAIN}/{wanted.name}/{seed}{settings}/{size}/{index}"[:200],
            domain=f"{DOMAIN}/{wanted.name}",
            family=wanted.name if split is Split.TRAIN else f"{wanted.name}/{split.value}",
            split=split,
            messages=[Message(role="user", content=build_prompt(made.question))],
            metadata=metadata,
        )
