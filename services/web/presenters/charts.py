"""Curves: what to draw of an update's metrics, and the drawing itself as SVG that needs no script.

A page's script (static/charts.js) draws the same curves again with uPlot, to be read under the pointer; the report of
the demo, which is one file, keeps these. Pure: figures in, shapes out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.store.views.curves import Curves
from services.store.views.estimates import Interval

WIDTH: Final = 640
HEIGHT: Final = 220
LEFT: Final = 66  # room for “100 %” in the larger letters of a phone
RIGHT: Final = 10
TOP: Final = 10
BOTTOM: Final = 26
NUM_TICKS: Final = 5


@dataclass(frozen=True)
class Sight:
    """A chart by name: its metrics with their labels, and the unit of its axis.

    is_share: 0..1, shown as percent. hint: what a line is that its label does not say.
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
        "nats a token",
        (
            ("loss", "loss"),
            ("local", "local"),
            ("future", "future"),
            ("imitation", "imitation"),
            ("partial", "partial"),
        ),
    ),
    Sight("pass-rate", "Pass rate of the rollouts trained on", "share", (("pass_rate", "passed"),), is_share=True),
    Sight(
        "kl",
        "Distance from the experts",
        "nats a token",
        (("kl", "KL to the experts"), ("gap", "teacher's gap")),
        hint="Teacher's gap: how much likelier the teacher, shown what experts said, finds the policy's tokens. "
        "It is below 0 where they disagree.",
    ),
    Sight("entropy", "Entropy of the policy", "nats a token", (("entropy", "entropy"),)),
    Sight("length", "Response length", "tokens", (("response_tokens", "mean length"),)),
    Sight("gradient", "Gradient norm", "before clipping", (("grad_norm", "norm"),)),
    Sight("seconds", "Time of an update", "seconds", (("seconds", "seconds"),)),
)


@dataclass(frozen=True)
class Line:
    """One curve. values: one a place on the axis, None where there is none; points: SVG polylines between gaps.

    dots: where a value has a gap on both sides, and no line to be on.
    """

    label: str
    values: tuple[float | None, ...]
    points: tuple[str, ...]
    dots: tuple[tuple[float, float], ...]
    place: int


@dataclass(frozen=True)
class Tick:
    """A mark on an axis, at this coordinate."""

    at: float
    label: str


@dataclass(frozen=True)
class Chart:
    """A drawn chart. numbers: the updates along the axis; newest: the last value of its first line, in words."""

    sight: Sight
    numbers: tuple[int, ...]
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
    """One chart; None without any value. Lines that are zero all along are left out, but for the first."""
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
        return LEFT + (WIDTH - LEFT - RIGHT) * ((number - first) / (last - first) if last > first else 0.5)

    def up(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / (high - low))

    lines = []
    for label, values, place in chosen:
        parts: list[list[tuple[float, float]]] = [[]]
        for number, value in zip(curves.numbers, values, strict=True):
            if value is None:
                parts.append([])
            else:
                parts[-1].append((across(number), up(value)))
        points = tuple(" ".join(f"{x:.1f},{y:.1f}" for x, y in part) for part in parts if len(part) > 1)
        lines.append(Line(label, values, points, tuple(part[0] for part in parts if len(part) == 1), place))
    newest = next((value for value in reversed(lines[0].values) if value is not None), None)
    return Chart(
        sight=sight,
        numbers=curves.numbers,
        lines=tuple(lines),
        x_ticks=tuple(
            Tick(across(number), f"{number:.0f}")
            for number in choose_ticks(first, last, whole=True)
            if first <= number <= last
        ),
        y_ticks=tuple(Tick(up(value), write(value, sight)) for value in ticks),
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
    """One version's pass rate on the chart of versions: where it is, and its interval."""

    label: str
    at: float
    mean: float
    low: float
    high: float
    said: str


def draw_versions(rates: Sequence[tuple[str, Interval]]) -> list[Whisker]:
    """Pass rates with their intervals, oldest version first, at coordinates of the same frame as the curves."""
    room = (WIDTH - LEFT - RIGHT) / max(1, len(rates))

    def up(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - value)

    return [
        Whisker(
            label=label,
            at=LEFT + room * (index + 0.5),
            mean=up(rate.mean),
            low=up(rate.low),
            high=up(rate.high),
            said=f"{label}: {100 * rate.mean:.0f} % [{100 * rate.low:.0f}, {100 * rate.high:.0f}]",
        )
        for index, (label, rate) in enumerate(rates)
    ]


SHARE_TICKS: Final = tuple(
    Tick(TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / 4), f"{25 * value}\u202f%") for value in range(5)
)
"""The axis of shares."""
