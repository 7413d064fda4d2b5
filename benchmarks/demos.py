"""Several demos as one result: rises pooled over seeds and families, and what each expert taught, as Markdown.

    preceptor demo --home FOLDER --seed 0                  (once for each seed, each with a data folder of its own)
    python -m benchmarks.demos FOLDER/reports/demo-*.json …

Or of one domain on more tasks, each policy measured once more (`preceptor eval --domain … --full --json > FILE`):

    python -m benchmarks.demos --pair BEFORE.json AFTER.json --pair …

How seeds are pooled: `benchmarks.pooling`.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from benchmarks.pooling import Figure, Seed, find_temperature, pool_level, pool_rise, say
from services.contracts.evaluations import EvaluationDetail
from services.store.stats import estimates
from services.store.stats.estimates import Interval
from services.web.presenters.worth import ExpertWorth


class Plan(BaseModel):
    """What a demo was asked for, as far as it is read here."""

    seed: int
    minutes: float


class Demo(BaseModel):
    """A demo's report, as far as it is read here. Further keys are passed over."""

    plan: Plan
    before: EvaluationDetail
    after: EvaluationDetail
    experts: list[ExpertWorth]
    num_updates: int
    training_seconds: float


Read = TypeVar("Read", Demo, EvaluationDetail)
NAMES: dict[type[BaseModel], str] = {Demo: "demo's report", EvaluationDetail: "evaluation"}


def main(arguments: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demos", description=__doc__.splitlines()[0])
    parser.add_argument("reports", nargs="*", type=Path, help="the JSON reports of demos that differ in their seed")
    parser.add_argument(
        "--pair",
        nargs=2,
        action="append",
        type=Path,
        metavar=("BEFORE", "AFTER"),
        help="in their place, two evaluations that `preceptor eval --json` printed; a pair for each seed",
    )
    options = parser.parse_args(arguments)
    if bool(options.reports) == bool(options.pair):
        parser.error("name reports of demos, or pairs of evaluations")
    if options.pair:
        pairs = [Seed(*(_read(path, EvaluationDetail) for path in pair)) for pair in options.pair]
        print("\n".join(_say_rises(pairs)))
        return 0
    demos = [_read(path, Demo) for path in options.reports]
    seeds = [demo.plan.seed for demo in demos]
    if len(set(seeds)) < len(seeds):
        sys.exit(f"two of these reports have the same seed: {', '.join(map(str, sorted(seeds)))}")
    rises = _say_rises([Seed(demo.before, demo.after) for demo in demos])
    print("\n".join([*_say_runs(demos), "", *rises, "", *_say_experts(demos)]))
    return 0


def _read(path: Path, kind: type[Read]) -> Read:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        sys.exit(f"{path}: {error.strerror}")
    except ValidationError as error:
        sys.exit(f"{path} is no {NAMES[kind]}: {error.errors()[0]['msg']}")


def _say_runs(demos: Sequence[Demo]) -> Iterator[str]:
    yield "| seed | updates | training, s |"
    yield "|---|---|---|"
    for demo in demos:
        yield f"| {demo.plan.seed} | {demo.num_updates} | {demo.training_seconds:.0f} |"


def _say_rises(seeds: Sequence[Seed]) -> Iterator[str]:
    everything = [task for seed in seeds for task in (*seed.before.results, *seed.after.results)]
    yield "| kind | figure | temperature | before | after | rise, 95 % over families | families |"
    yield "|---|---|---|---|---|---|---|"
    for domain in estimates.domains(everything):
        for k in estimates.figures(everything):
            for temperature in (None, *estimates.temperatures(everything)):
                figure = Figure(f"pass@{k}", k, temperature)
                rise = pool_rise(seeds, domain, figure)
                levels = [
                    pool_level(side, domain, figure)
                    for side in ([seed.before for seed in seeds], [seed.after for seed in seeds])
                ]
                num = 0 if rise is None else rise.num
                at = _say_temperature(seeds, domain, figure)
                cells = [domain, figure.title, at, *map(_say_level, levels), say(rise), str(num)]
                yield f"| {' | '.join(cells)} |"


def _say_temperature(seeds: Sequence[Seed], domain: str, figure: Figure) -> str:
    if figure.temperature is not None:
        return f"{figure.temperature:g}"
    chosen = [[find_temperature(side, domain, figure) for side in (seed.before, seed.after)] for seed in seeds]
    return "best: " + ", ".join(" → ".join("–" if t is None else f"{t:g}" for t in pair) for pair in chosen)


def _say_level(level: Interval | None) -> str:
    return "–" if level is None else f"{level.mean:.3f}"


def _say_experts(demos: Sequence[Demo]) -> Iterator[str]:
    """Every expert's share of each kind's loss, the mean over seeds, and each seed's last word on what it teaches."""
    of_domain: dict[tuple[str, str, str], list[float]] = {}
    measured: dict[str, dict[str, list[int]]] = {}
    for demo in demos:
        for expert in demo.experts:
            for taught in expert.taught:
                of_domain.setdefault((expert.name, taught.domain, taught.how), []).append(taught.share)
            for words in expert.measured:
                measured.setdefault(expert.name, {}).setdefault(words, []).append(demo.plan.seed)
    yield "| expert | kind | as | share of the kind's loss, mean over seeds |"
    yield "|---|---|---|---|"
    for (name, domain, how), shares in sorted(of_domain.items()):
        padded = [*shares, *[0.0] * (len(demos) - len(shares))]
        yield f"| {name} | {domain} | {how} | {fmean(padded):.0%} |"
    yield ""
    yield "| expert | measured | seeds |"
    yield "|---|---|---|"
    for name, found in sorted(measured.items()):
        for words, seeds in sorted(found.items()):
            yield f"| {name} | {words} | {', '.join(map(str, seeds))} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
