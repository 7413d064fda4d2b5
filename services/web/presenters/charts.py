"""Charts of an update's metrics and of versions' pass rates: figures in, shapes out.

Templates turn the shapes into SVG that needs no script, in pages and in the demo's report alike; static/charts.js only
shows the figures under the pointer, read from the table below each chart. Places are percent of the plot, x to the
right and y downwards, so that a drawing stretches with its card while its labels keep their size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.store.stats.estimates import Interval
from services.store.views.curves import Curves

NUM_TICKS: Final = 5
MAX_VERSION_LABELS: Final = 4  # as many as a phone has room for


@dataclass(frozen=True)
class Sight:
    """A chart by name: its metrics with their labels, and the unit of its axis.

    is_share: 0..1, shown as percent. hint: explains a line that its label does not.
    """

    name: str
    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    is_share: bool = False
    hint: str = ""


SIGHTS: Final = (
    Sight(
        "loss",
        "Loss terms",
        "nats per token",
        (
            ("loss", "loss"),
            ("local", "local"),
            ("future", "future"),
            ("imitation", "imitation"),
            ("partial", "partial"),
        ),
    ),
    Sight(
        "kl",
        "Distance from experts",
        "nats per token",
        (("kl", "KL to the experts"), ("gap", "teacher's gap")),
        hint="Teacher's gap: how much more likely the policy's tokens are to the teacher than to the policy.",
    ),
    Sight("pass-rate", "Pass rate of trained rollouts", "share", (("pass_rate", "passed"),), is_share=True),
    Sight("entropy", "Entropy of the policy", "nats per token", (("entropy", "entropy"),)),
    Sight("length", "Response length", "tokens", (("response_tokens", "mean length"),)),
    Sight("gradient", "Gradient norm", "before clipping", (("grad_norm", "norm"),)),
    Sight("seconds", "Time per update", "seconds", (("seconds", "seconds"),)),
)


@dataclass(frozen=True)
class Line:
    """One curve. values: one per update, None where there is none; points: SVG polylines between gaps.

    dots: values with a gap on both sides, which are on no line.
    """

    label: str
    values: tuple[float | None, ...]
    points: tuple[str, ...]
    dots: tuple[tuple[float, float], ...]
    place: int


@dataclass(frozen=True)
class Tick:
    """A mark on an axis, in percent of its length."""

    at: float
    label: str


@dataclass(frozen=True)
class Chart:
    """A drawn chart. numbers, at: the updates along the axis and their places; newest: the last value of its first
    line, in words."""

    sight: Sight
    numbers: tuple[int, ...]
    at: tuple[float, ...]
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    newest: str

    @property
    def described(self) -> str:
        """The chart in a sentence, for those who cannot see it."""
        parts = []
        for line in self.lines:
            known = [value for value in line.values if value is not None]
            if known:
                first, last = (write(value, self.sight) for value in (known[0], known[-1]))
                parts.append(f"{line.label} from {first} to {last}")
        return f"{self.sight.title}, {self.sight.unit}, updates {self.numbers[0]} to {self.numbers[-1]}: " + "; ".join(
            parts
        )


def draw(curves: Curves) -> list[Chart]:
    """Every chart that has something to show."""
    return [chart for sight in SIGHTS if (chart := draw_one(curves, sight)) is not None]


def draw_one(curves: Curves, sight: Sight) -> Chart | None:
    """One chart; None without any value. Lines that are zero all along are left out, except the first."""
    chosen = []
    for place, (name, label) in enumerate(sight.lines):
        values = curves.series.get(name)
        if values is not None and (place == 0 or any(values)):
            chosen.append((label, values, place))
    known = [value for _, values, _ in chosen for value in values if value is not None]
    if not known:
        return None
    ticks = choose_ticks(*((0.0, 1.0) if sight.is_share else (min(known), max(known))))
    low, high = ticks[0], ticks[-1]
    first, last = curves.numbers[0], curves.numbers[-1]

    def across(number: float) -> float:
        return 100 * (number - first) / (last - first) if last > first else 50.0

    def down(value: float) -> float:
        return 100 * (1 - (value - low) / (high - low))

    at = tuple(map(across, curves.numbers))
    lines = []
    for label, values, place in chosen:
        parts: list[list[tuple[float, float]]] = [[]]
        for x, value in zip(at, values, strict=True):
            if value is None:
                parts.append([])
            else:
                parts[-1].append((x, down(value)))
        points = tuple(" ".join(f"{x:.2f},{y:.2f}" for x, y in part) for part in parts if len(part) > 1)
        lines.append(Line(label, values, points, tuple(part[0] for part in parts if len(part) == 1), place))
    newest = next((value for value in reversed(lines[0].values) if value is not None), None)
    return Chart(
        sight=sight,
        numbers=curves.numbers,
        at=at,
        lines=tuple(lines),
        x_ticks=tuple(
            Tick(across(number), f"{number:.0f}")
            for number in choose_ticks(first, last, whole=True)
            if first <= number <= last
        ),
        y_ticks=tuple(Tick(down(value), write(value, sight)) for value in ticks),
        newest="–" if newest is None else write(newest, sight),
    )


def choose_ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Round numbers from at most `low` to at least `high`, about five of them."""
    if high <= low:
        low, high = (low - 0.5, high + 0.5) if not whole else (low, low + 1)
    step = 10.0 ** math.floor(math.log10((high - low) / NUM_TICKS))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= NUM_TICKS)
    if whole:
        step = max(1.0, step)
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(start, end + 1)]


def write(value: float, sight: Sight) -> str:
    """A value of a chart as people read it."""
    return f"{100 * value:.0f}\u202f%" if sight.is_share else f"{value:.3g}"


@dataclass(frozen=True)
class Whisker:
    """One version's pass rate on the chart of versions: its interval, and where its mean and bounds are."""

    label: str
    rate: Interval
    at: float
    mean: float
    low: float
    high: float

    @property
    def described(self) -> str:
        """The pass rate in words."""
        rate = self.rate
        return f"{self.label}: {100 * rate.mean:.0f} % [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"


@dataclass(frozen=True)
class VersionChart:
    """Pass rates with their intervals, oldest version first."""

    whiskers: tuple[Whisker, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]

    @property
    def described(self) -> str:
        """The chart in a sentence, for those who cannot see it."""
        return "Pass rate by version: " + "; ".join(one.described for one in self.whiskers)


def draw_versions(rates: Sequence[tuple[str, Interval]]) -> VersionChart | None:
    """The chart of versions, oldest first; None without any."""
    if not rates:
        return None
    room = 100 / len(rates)
    whiskers = tuple(
        Whisker(name, rate, room * (index + 0.5), *(100 * (1 - share) for share in (rate.mean, rate.low, rate.high)))
        for index, (name, rate) in enumerate(rates)
    )
    every = math.ceil(len(whiskers) / MAX_VERSION_LABELS)
    return VersionChart(
        whiskers,
        tuple(Tick(one.at, one.label) for one in whiskers[::-1][::every]),  # the newest is always named
        tuple(Tick(100 - 25 * quarter, f"{25 * quarter}\u202f%") for quarter in range(5)),
    )
