"""The report of a shoot-out: one Markdown file with every table, one figure with every curve."""

import platform
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import torch

from benchmarks.shootout.results import ByTemperature, Run, Tuning
from benchmarks.shootout.runs import PASS_AT, Arm, Budget, Gap, Point, Setting
from services.store.stats.estimates import DIFFERENCE_OF_SHARES, SHARE, Interval, t_interval

COLOURS = (
    "#1b6ca8",
    "#58a4d6",
    "#0b3c5d",
    "#d1495b",
    "#8d6a9f",
    "#edae49",
    "#a0522d",
    "#2e8b57",
    "#7fb069",
    "#444444",
    "#999999",
    "#c77cff",
)


EXPLANATION = """\
Held-out tasks, of families never trained on, after the last update; every arm with the setting of its grid that was
best on validation tasks, with seeds of its own.

**Best trained less best base** is the headline: every policy is drawn at temperatures 0 (greedy, one answer a task),
.25, .5 and 1; of each, the temperature that was best on validation tasks counts, chosen for pass@1 and pass@8
separately. An arm that only makes the policy surer of what it says anyway has nothing here, since the base may be drawn
colder too; at temperature 1 alone it would look like learning. `over families`: 95 % t-interval over held-out families,
each averaged over seeds. `over seeds`: over seeds, paired with the base drawn with the same seed.

The second table of each world compares arms: differences are paired by seed and not adjusted for how many there are,
each arm at its own best temperature. A seed decides the adapter's first weights, the order of tasks and every
draw: base policy and tasks are the same for all, so an interval over seeds says nothing of other policies or tasks. Nor
does any interval include the uncertainty of the choices made on validation tasks, on as few tuning seeds as each world
says. The setting is the learning rate and, where a teacher is read, its temperature τ; * marks a rate at an end of the
grid. Arms whose settings differ in the rate are thereby compared at different rates: the third table of each world has
all arms at every rate, on validation tasks. `equal time`: when the quickest arm's runs were done, read off the curve;
every arm is charged for drawing and judging all rollouts, `sft` too, which does not look at them. Tokens, ended
answers, entropy and KL are those at temperature 1, the last two in nats a token; log p(right): nats, of the whole right
answer at temperature 1, in worlds whose tasks have only one; `clipped`: the share of charged tokens
whose future term was cut. Seconds are the processor's for runs on a CPU, where each has one core, and the clock's for
runs on a GPU; both without the measuring.
`sdpo` and `paper` have the moving teachers of their authors (EMA .05, .01) and look at the student's likeliest tokens
alone (20 in tier tiny, 100 in the others); all other teachers are frozen."""


@dataclass(frozen=True)
class ArmResults:
    """An arm in one world: its held-out runs, its grid on the validation tasks, and the temperatures it was best at
    there."""

    arm: Arm
    runs: list[Run]
    tuning: Tuning
    validation: ByTemperature

    @property
    def temperature(self) -> float:
        """Where pass@1 counts."""
        return self.validation.best

    def pass_1(self, point: Point) -> float:
        """What a measurement comes to."""
        return point.at(self.temperature).pass_1

    def pass_8(self, point: Point) -> float:
        """The same for pass@8."""
        return _pass_8(point, self.validation.best_8)


@dataclass(frozen=True)
class Section:
    """A world: what it is, what a teacher is shown and what that is worth, and its arms, the one compared with first.
    base: the untrained policy on validation tasks. tuning_seeds: on how many the settings were chosen."""

    world: str
    about: str
    shown: str
    gaps: list[Gap]
    base: ByTemperature
    budget: Budget
    tuning_seeds: int
    entries: list[ArmResults]


def write_report(sections: Sequence[Section], folder: Path, name: str, command: str) -> list[Path]:
    """Write NAME.md and NAME.png; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    text, figure = folder / f"{name}.md", folder / f"{name}.png"
    draw_curves(sections, figure)
    lines = [*_head(sections, name, command), f"![held-out pass@1 by rollouts and by seconds]({figure.name})", ""]
    for section in sections:
        lines += _describe(section)
    text.write_text("\n".join(lines).rstrip() + "\n")
    return [text, figure]


def _head(sections: Sequence[Section], name: str, command: str) -> Iterator[str]:
    runs = [run for section in sections for entry in section.entries for run in entry.runs]
    commits = sorted({run.commit for run in runs})
    machines = sorted({run.machine for run in runs})
    yield f"# Which objective learns best? Tier {name}"
    yield ""
    yield f"`{command}`, {datetime.now(UTC):%Y-%m-%d}; held-out runs by commit {', '.join(commits)} on"
    yield f"{'; '.join(machines)}."
    yield ""
    yield EXPLANATION
    yield ""


def _describe(section: Section) -> Iterator[str]:
    budget = section.budget
    yield f"## {section.world}"
    yield ""
    yield section.about
    yield f"Each run: {budget.updates} updates of {budget.groups} tasks × {budget.group_size} rollouts."
    yield f"Settings were chosen on {_tuning_seeds(section)}."
    yield f"In training a teacher is shown {section.shown}. What showing something is worth before training, on train"
    yield "tasks, student and teacher drawn at the same temperature; the control is shown another task's:"
    yield ""
    if section.gaps:
        yield from _table(_gaps(section.gaps))
    told = [entry for entry in section.entries if entry.runs]
    if not told:
        return
    yield "Best trained less best base:"
    yield ""
    yield from _table(_headlines(told, section.base))
    yield "The arms compared, each at its own best temperature:"
    yield ""
    yield from _table(_comparisons(told))
    yield from _compare_rates(section)
    yield "The whole grid, pass@1 on validation tasks at temperatures 0, .25, .5, 1:"
    yield ""
    for entry in section.entries:
        if entry.tuning.settings:
            found = (
                f"{_name(entry, setting)}: {', '.join(f'{value:.3f}' for value in by.pass_1.values())}"
                for setting, by in entry.tuning.settings.items()
            )
            yield f"- {entry.arm.name}: {'; '.join(found)}"
    yield ""
    for entry in told:
        untrained, invalid = sum(run.num_untrained for run in entry.runs), sum(run.num_invalid for run in entry.runs)
        if untrained or invalid:
            yield f"- {entry.arm.name}: in all runs {untrained} updates changed nothing, {invalid} invalid rollouts"
    yield ""


def _gaps(gaps: Sequence[Gap]) -> Iterator[dict[str, str]]:
    for gap in gaps:
        yield {
            "the teacher is shown": gap.shown,
            "T": f"{gap.temperature:g}",
            "student": f"{gap.student:.3f}",
            "teacher": f"{gap.teacher:.3f}",
            "control": f"{gap.control:.3f}",
            "gap": f"{gap.teacher - gap.student:+.3f}",
            "less control": f"{gap.teacher - gap.control:+.3f}",
        }


def _table(rows: Iterator[dict[str, str]]) -> Iterator[str]:
    told = list(rows)
    yield f"| {' | '.join(told[0])} |"
    yield "|---" * len(told[0]) + "|"
    yield from (f"| {' | '.join(row.values())} |" for row in told)
    yield ""


def _headlines(entries: Sequence[ArmResults], base: ByTemperature) -> Iterator[dict[str, str]]:
    """The base, and every arm: what it has at each temperature, and best trained less best base."""
    starts = {run.plan.seed: run.curve[0] for entry in entries for run in entry.runs}
    untrained = list(starts.values())
    yield {
        "arm": "untrained",
        "setting": "",
        "seeds": str(len(untrained)),
        "T": f"{base.best:g}",
        "best trained less best base, over families": "",
        "over seeds": "",
        **_by_temperature(untrained),
        "pass@8": f"{fmean(_pass_8(point, base.best_8) for point in untrained):.3f}",
        "T of pass@8": f"{base.best_8:g}",
        "pass@8 less best base's, over families": "",
        "log p(right)": _right_logprob(untrained),
    }
    for entry in entries:
        validation, ends = entry.validation, [run.curve[-1] for run in entry.runs]
        rises = [run.curve[-1].at(validation.best).pass_1 - run.curve[0].at(base.best).pass_1 for run in entry.runs]
        yield {
            "arm": entry.arm.name,
            "setting": _name(entry, entry.runs[0].plan.setting) + ("*" if _at_an_end(entry) else ""),
            "seeds": str(len(ends)),
            "T": f"{validation.best:g}",
            "best trained less best base, over families": _rise(entry, validation.best, base.best, 1),
            "over seeds": _show(t_interval(rises, DIFFERENCE_OF_SHARES), "+"),
            **_by_temperature(ends),
            "pass@8": f"{fmean(_pass_8(point, validation.best_8) for point in ends):.3f}",
            "T of pass@8": f"{validation.best_8:g}",
            "pass@8 less best base's, over families": _rise(entry, validation.best_8, base.best_8, PASS_AT),
            "log p(right)": _right_logprob(ends),
        }


def _right_logprob(points: Sequence[Point]) -> str:
    known = [point.right_logprob for point in points if point.right_logprob is not None]
    return f"{fmean(known):.1f}" if known else ""


def _by_temperature(points: Sequence[Point]) -> dict[str, str]:
    temperatures = [one.temperature for one in points[0].measured]
    return {f"T={t:g}" if t else "greedy": f"{fmean(point.at(t).pass_1 for point in points):.3f}" for t in temperatures}


def _pass_8(point: Point, temperature: float) -> float:
    return fmean(point.at(temperature).families_8.values())


def _rise(entry: ArmResults, after: float, before: float, k: int) -> str:
    """The rise of pass@k between two temperatures with its interval over families, each averaged over the seeds."""

    def families(point: Point, temperature: float) -> dict[str, float]:
        found = point.at(temperature)
        return found.families if k == 1 else found.families_8

    rises = [
        fmean(families(run.curve[-1], after)[family] - families(run.curve[0], before)[family] for run in entry.runs)
        for family in families(entry.runs[0].curve[0], before)
    ]
    return _show(t_interval(rises, DIFFERENCE_OF_SHARES), "+")


def _compare_rates(section: Section) -> Iterator[str]:
    """A table of the grid: every arm at every learning rate, with its best teacher's temperature there."""
    tuned = [entry for entry in section.entries if entry.tuning.settings]
    rates = sorted({setting.learning_rate for entry in tuned for setting in entry.tuning.settings})
    if not rates:
        return
    yield "By learning rate: greedy, best pass@1, best pass@8 on validation tasks, at the τ with the best pass@1 there,"
    yield f"means over {_tuning_seeds(section)}:"
    yield ""
    yield f"| arm | {' | '.join(f'lr {rate:g}' for rate in rates)} |"
    yield "|---" * (1 + len(rates)) + "|"
    for entry in tuned:
        best = [entry.tuning.best_at(rate) for rate in rates]
        yield f"| {entry.arm.name} | {' | '.join(_at_rate(entry, setting) for setting in best)} |"
    yield ""


def _tuning_seeds(section: Section) -> str:
    return f"{section.tuning_seeds} tuning seed{'s' if section.tuning_seeds > 1 else ''}"


def _at_rate(entry: ArmResults, setting: Setting | None) -> str:
    if setting is None:
        return ""
    found = entry.tuning.settings[setting]
    temperature = f" (τ {setting.teacher_temperature:g})" if entry.arm.has_teacher else ""
    best, best_8 = found.pass_1[found.best], found.pass_8[found.best_8]
    return f"{found.pass_1[0.0]:.3f}, {best:.3f}, {best_8:.3f}{temperature}"


def _comparisons(entries: Sequence[ArmResults]) -> Iterator[dict[str, str]]:
    first = entries[0]
    soon = min(fmean(run.curve[-1].seconds for run in entry.runs) for entry in entries)
    for entry in entries:
        ends = [run.curve[-1] for run in entry.runs]
        plain = [end.at(1.0) for end in ends]
        yield {
            "arm": entry.arm.name,
            "pass@1": _show(t_interval([entry.pass_1(end) for end in ends], SHARE)),
            f"less {first.arm.name}": _difference(entry, first, lambda one, run: one.pass_1(run.curve[-1])),
            "pass@8": _show(t_interval([entry.pass_8(end) for end in ends], SHARE)),
            f"pass@8 less {first.arm.name}": _difference(entry, first, lambda one, run: one.pass_8(run.curve[-1])),
            "pass@1 at equal time": f"{fmean(_at(entry, run, soon) for run in entry.runs):.3f}",
            f"that less {first.arm.name}": _difference(entry, first, lambda one, run: _at(one, run, soon)),
            "tokens": f"{fmean(one.tokens for one in plain):.1f}",
            "ended": f"{fmean(one.stopped for one in plain):.2f}",
            "entropy": f"{fmean(end.entropy for end in ends):.2f}",
            "KL to base": f"{fmean(end.kl_base for end in ends):.2f}",
            "clipped": _clipped(entry),
            "s": f"{fmean(end.seconds for end in ends):.1f}",
        }


def _clipped(entry: ArmResults) -> str:
    """The share of charged tokens whose charge was cut; empty where nothing is charged."""
    charged = sum(run.num_charged for run in entry.runs)
    return f"{sum(run.num_clipped for run in entry.runs) / charged:.3f}" if charged else ""


def _name(entry: ArmResults, setting: Setting) -> str:
    return str(setting) if entry.arm.has_teacher else f"lr {setting.learning_rate:g}"


def _at_an_end(entry: ArmResults) -> bool:
    """Whether a learning rate outside of the grid might have been better."""
    rates = sorted({setting.learning_rate for setting in entry.tuning.settings})
    return bool(rates) and entry.runs[0].plan.setting.learning_rate in (rates[0], rates[-1])


def _difference(entry: ArmResults, first: ArmResults, value: Callable[[ArmResults, Run], float]) -> str:
    if entry is first:
        return ""
    theirs = {run.plan.seed: value(first, run) for run in first.runs}
    paired = [value(entry, run) - theirs[run.plan.seed] for run in entry.runs if run.plan.seed in theirs]
    return _show(t_interval(paired, DIFFERENCE_OF_SHARES), "+") if paired else ""


def _show(interval: Interval, sign: str = "") -> str:
    if not interval.is_known:  # a single run has no interval
        return f"{interval.mean:{sign}.3f}"
    return f"{interval.mean:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"


def _at(entry: ArmResults, run: Run, seconds: float) -> float:
    """pass@1 after so many seconds, between two measurements on the line that joins them."""
    for left, right in pairwise(run.curve):
        if right.seconds >= seconds:
            share = (seconds - left.seconds) / max(right.seconds - left.seconds, 1e-9)
            return entry.pass_1(left) + share * (entry.pass_1(right) - entry.pass_1(left))
    return entry.pass_1(run.curve[-1])


def draw_curves(sections: Sequence[Section], path: Path) -> None:
    """pass@1 of every arm at its best temperature, by rollouts with the interval over seeds, and by seconds; the best
    base as a line; a row for each world."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4 * len(sections)), layout="constrained")
    panels = figure.subplots(len(sections), 2, squeeze=False, sharey="row")
    for (by_rollouts, by_seconds), section in zip(panels, sections, strict=True):
        per_update = section.budget.groups * section.budget.group_size
        for number, entry in enumerate(entry for entry in section.entries if entry.runs):
            style = {
                "color": COLOURS[0 if entry.arm.other_feedback else number % len(COLOURS)],
                "linestyle": "--" if entry.arm.other_feedback else "-",
                "label": entry.arm.name,
            }
            points = list(zip(*(run.curve for run in entry.runs), strict=True))
            spread = [t_interval([entry.pass_1(point) for point in at], SHARE) for at in points]
            means = [interval.mean for interval in spread]
            rollouts = [at[0].update * per_update for at in points]
            by_rollouts.plot(rollouts, means, **style)
            lows, highs = [interval.low for interval in spread], [interval.high for interval in spread]
            by_rollouts.fill_between(rollouts, lows, highs, color=style["color"], alpha=0.15, linewidth=0)
            by_seconds.plot([fmean(point.seconds for point in at) for at in points], means, **style)
        starts = [run.curve[0].at(section.base.best).pass_1 for entry in section.entries for run in entry.runs]
        for panel in (by_rollouts, by_seconds):
            panel.axhline(fmean(starts or [0.0]), color="#bbbbbb", linestyle=":", label="best base")
        by_rollouts.set(title=section.world, xlabel="rollouts", ylabel="held-out pass@1, best temperature")
        by_seconds.set(title=section.world, xlabel=f"seconds of {name_clock(section)}")
        by_seconds.legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        for panel in (by_rollouts, by_seconds):
            panel.grid(alpha=0.3)
            panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def name_clock(section: Section) -> str:
    """Whose seconds the section's runs were measured in."""
    devices = {run.plan.device for entry in section.entries for run in entry.runs}
    return " or ".join(
        sorted({"the processor" if device == "cpu" else "the clock" for device in devices}, reverse=True)
    )


def find_commit() -> str:
    """The commit that ran; `+` where files differ from it, `unknown` outside of a checkout."""
    try:
        name = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=7"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name.stdout.strip()


def name_machine(device: str) -> str:
    """What a run on this device of this machine runs on."""
    if device != "cpu":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    cores = sum(line.startswith("processor") for line in lines)
    return f"{cores or '?'} cores of {model}, torch {torch.__version__}"
