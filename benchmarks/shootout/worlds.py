"""The worlds by name, and the policy each begins with."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from benchmarks.shootout.pretrain import Teachable, pretrain
from benchmarks.shootout.questions import World
from benchmarks.shootout.starter import FILES, Starter, running_sandbox
from benchmarks.shootout.synthetic import Fork, Rules
from services.policy.convert import resolve_model

SYNTHETIC: dict[str, type[Rules] | type[Fork]] = {"rules": Rules, "fork": Fork}


@contextmanager
def opened(name: str) -> Iterator[World]:
    """A world, until the block ends. Raises KeyError for a name that is none."""
    world: World = Starter(name) if name in FILES else SYNTHETIC[name]()
    try:
        yield world
    finally:
        world.close()


def about(name: str) -> str:
    """What a world is, and what it can and cannot show, for the report."""
    return Starter.about if name in FILES else SYNTHETIC[name].about


def serving_judges(
    worlds: tuple[str, ...], folder: Path, report: Callable[[str], None]
) -> AbstractContextManager[None]:
    """What the worlds' judges need running: a sandbox for the starter tasks, nothing for the others."""
    return running_sandbox(folder, report) if FILES.keys() & set(worlds) else nullcontext()


def prepare_policy(name: str, folder: Path, model: str | None, report: Callable[[str], None]) -> Path:
    """The folder of the policy a world's runs begin with; made or converted if it is not there."""
    if name in FILES:
        return resolve_model(model, report)
    world: Teachable = SYNTHETIC[name]()
    return pretrain(world, folder / f"base-{name}", report)
