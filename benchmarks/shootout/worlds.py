"""The worlds by name, and the policy each begins with."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path

from benchmarks.shootout.pretrain import pretrain
from benchmarks.shootout.published import SOURCES, Published
from benchmarks.shootout.questions import World
from benchmarks.shootout.starter import TABLES, Starter, running_sandbox
from benchmarks.shootout.synthetic import Doubted, Fork, Rules, Synthetic, Unheard

SANDBOXED = {"functions", "tool-calls"}
SYNTHETIC: dict[str, type[Synthetic]] = {world.name: world for world in (Rules, Fork, Unheard, Doubted)}


@contextmanager
def opened(name: str, data: Path) -> Iterator[World]:
    """A world, until the block ends. data: the folder of published data sets; the other worlds need none.

    Raises KeyError for a name that is none, DataUnusable where the data set's files are not there.
    """
    if name in TABLES:
        with closing(Starter(name)) as world:
            yield world
    elif name in SOURCES:
        yield Published(SOURCES[name], data)
    else:
        yield SYNTHETIC[name]()


def about(name: str) -> str:
    """What a world is, and what it can and cannot show, for the report."""
    if name in TABLES:
        return Starter.about
    return SOURCES[name].about if name in SOURCES else SYNTHETIC[name].about


def shown(name: str) -> str:
    """What a teacher is shown in a world, for the report."""
    if name in TABLES:
        return "what the product has without an answer key, unless the name of an arm says otherwise"
    siblings_alone = name in SOURCES and SOURCES[name].only_siblings
    return "a right answer of its own where it had one" if siblings_alone else "the solution"


def serving_judges(
    worlds: tuple[str, ...], folder: Path, report: Callable[[str], None]
) -> AbstractContextManager[None]:
    """What the worlds' judges need running: a sandbox for functions and tool calls, nothing for the others."""
    return running_sandbox(folder, report) if SANDBOXED & set(worlds) else nullcontext()


def prepare_policy(name: str, folder: Path, model: Path | None, report: Callable[[str], None]) -> Path:
    """The folder of the policy a world's runs begin with: `model`, or, for a synthetic world, one that is made if it is
    not there. Raises ValueError where a model is needed and there is none."""
    if name not in SYNTHETIC:
        if model is None:
            raise ValueError(f"the world {name} needs a model")
        return model
    return pretrain(SYNTHETIC[name](), folder / f"base-{name}", report)
