"""What was run: one line a run in a file that only grows, so that nothing is run twice."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from benchmarks.shootout.runs import Plan, Point, Setting

NUM_DIGITS: Final = 9
"""To which means are compared: the order in which equal ones were summed up decides nothing."""


class Run(BaseModel):
    """A run that came to its end. base_sha256: the policy it began with; commit, machine: the code that ran, and where.
    The rest as in `Outcome`."""

    model_config = ConfigDict(frozen=True)

    plan: Plan
    base_sha256: str
    commit: str
    curve: tuple[Point, ...]
    num_untrained: int
    num_invalid: int
    num_charged: int
    num_clipped: int
    machine: str


@dataclass
class Results:
    """The runs in a file. Only those that began with the same policies are seen."""

    path: Path
    base_sha256: dict[str, str]

    def __post_init__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = self.path.read_text() if self.path.exists() else ""
        found = list(_read(text.splitlines()))
        if text and not text.endswith("\n"):
            self._append("")
        self._by_plan = {
            _key(one.plan): one for one in found if one.base_sha256 == self.base_sha256.get(one.plan.world)
        }

    def add(self, one: Run) -> None:
        """Write it down."""
        self._append(one.model_dump_json())
        self._by_plan[_key(one.plan)] = one

    def missing(self, plans: Sequence[Plan]) -> list[Plan]:
        """The plans that are still to be run."""
        return [plan for plan in plans if _key(plan) not in self._by_plan]

    def runs(self, plans: Sequence[Plan]) -> list[Run]:
        """Those of the plans that were run."""
        found = (self._by_plan.get(_key(plan)) for plan in plans)
        return [one for one in found if one is not None]

    def starts(self) -> dict[str, Point]:
        """What was measured before the first update, by the start of the plans it holds for."""
        return {run.plan.start: run.curve[0] for run in self._by_plan.values()}

    def _append(self, line: str) -> None:
        with self.path.open("a") as file:
            file.write(line + "\n")

    def tune(self, plans: Sequence[Plan]) -> "Tuning":
        """What there was after the last update by setting, averaged over seeds."""
        ends: dict[Setting, list[Point]] = {}
        for run in self.runs(plans):
            ends.setdefault(run.plan.setting, []).append(run.curve[-1])
        return Tuning({setting: average(points) for setting, points in ends.items()})


@dataclass(frozen=True)
class ByTemperature:
    """pass@1 and pass@8 on validation tasks by temperature, means over seeds."""

    pass_1: dict[float, float]
    pass_8: dict[float, float]

    @property
    def best(self) -> float:
        """The temperature with the highest pass@1; the lowest among equals."""
        return _find_best(self.pass_1)

    @property
    def best_8(self) -> float:
        """The same for pass@8."""
        return _find_best(self.pass_8)


def _find_best(passed: dict[float, float]) -> float:
    return max(sorted(passed), key=lambda temperature: round(passed[temperature], NUM_DIGITS))


def average(points: Sequence[Point]) -> ByTemperature:
    """The mean over measurements, at least one, at every temperature."""
    temperatures = [one.temperature for one in points[0].measured]
    several = [t for t in temperatures if points[0].at(t).pass_8 is not None]
    return ByTemperature(
        pass_1={t: fmean(point.at(t).pass_1 for point in points) for t in temperatures},
        pass_8={t: fmean(value for p in points if (value := p.at(t).pass_8) is not None) for t in several},
    )


@dataclass(frozen=True)
class Tuning:
    """An arm's grid, by setting."""

    settings: dict[Setting, ByTemperature]

    @property
    def best(self) -> Setting:
        """The setting with the highest pass@1, each at its own best temperature; the first of the grid among equals."""
        return self._best_of(list(self.settings))

    def best_at(self, learning_rate: float) -> Setting | None:
        """The same among those of one learning rate; None where it was not tried."""
        tried = [setting for setting in self.settings if setting.learning_rate == learning_rate]
        return self._best_of(tried) if tried else None

    def _best_of(self, settings: Sequence[Setting]) -> Setting:
        found = {setting: self.settings[setting] for setting in settings}
        return max(settings, key=lambda setting: round(found[setting].pass_1[found[setting].best], NUM_DIGITS))


def _read(lines: Sequence[str]) -> Iterator[Run]:
    """What the lines hold; one that was cut short when its writer was killed holds nothing."""
    for line in lines:
        with suppress(ValidationError):
            yield Run.model_validate_json(line)


def _key(plan: Plan) -> str:
    """What makes two plans the same run: everything but where the policy lies."""
    return plan.model_copy(update={"policy": ""}).model_dump_json(exclude_defaults=True)
