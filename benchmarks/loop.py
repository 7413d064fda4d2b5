"""Does it learn? The product from a fresh data folder, an objective and seed at a time, on all held-out tasks.

    python -m benchmarks.loop --objectives distil sft --seeds 0 1 2 --updates 32

Each run is the demo's loop through the api: same tasks, rollouts, roll-in, experts and number of updates; what changes
is named on the command line. The base is measured once and shared: it is the same weights, tasks and draws for every
run. A setting is chosen on `--splits validation`; with both splits named, one training is measured on both. Prints, on
held-out tasks, the best trained less the best base, each at the temperature at which it passes most validation tasks,
with intervals paired over families; then both at equal temperatures, and the wall times.

Runs are written down one by one in `--folder`, and what is there is not run again: stop it and start it as you like. A
run that fails is left out, and the next one begins. With `--keep`, a training that was stopped while it was measured is
only measured again, and what was trained can be measured on another split later.

    python -m benchmarks.loop --leave-one-in --updates 32 --tasks 15 --temperatures 0 .5

trains with one source at a time in place of objectives: teachers are shown nothing else (`benchmarks.one_source`).
Writes leave_one_in.md and .png into `--report` after each run. A source with nothing to show makes fewer updates, until
`--minutes` are over; the table says so, and which runs have not ended.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.arguments import positive, require_folder
from benchmarks.one_source import SOURCES, Trained, draw, write_table
from benchmarks.shootout.report import find_commit
from services.cli.client import ApiClient
from services.cli.commands import demo, demo_person, starter
from services.cli.output import measures
from services.cli.output.progress import Progress
from services.contracts.evaluations import (
    NUM_VALIDATION_TASKS,
    TEMPERATURES,
    Evaluation,
    EvaluationCreate,
    EvaluationDetail,
    EvaluationStatus,
)
from services.contracts.experts import Expert, ExpertWeight, OwnKind
from services.contracts.tasks import Split
from services.local.layout import Layout
from services.local.supervise.stack import Stack, running
from services.local.supervise.supervisor import Interrupted
from services.policy.model.convert import resolve_model
from services.store.stats.estimates import headline

RESULTS = Path(__file__).parent / "results"
MARKER = "trained.json"  # in a kept data folder, once its training is finished
MINUTES_ALONE = 6.0  # of one training with one source: one with nothing to show makes no updates, however long
MINUTES = 24 * 60.0  # of one training with an objective


@dataclass(frozen=True)
class Run:
    """One run: an objective with its λ, a seed, and the one source that may train; None for the defaults."""

    objective: str
    lam: float | None
    seed: int
    source: str | None = None

    @property
    def name(self) -> str:
        """Also its file's name."""
        if self.source is not None:
            return f"one-in-{self.source}-seed{self.seed}"
        return f"{self.objective}-lam{self.lam:g}-seed{self.seed}"


@dataclass(frozen=True)
class Budget:
    """How much each run trains and is measured. num_tasks: of a kind and split; all for None."""

    num_updates: int
    num_tasks: int | None
    num_samples: int
    temperatures: tuple[float, ...]

    def wants(self, split: str) -> EvaluationCreate:
        """What is measured. Temperatures are chosen on half as many validation tasks as are measured."""
        few = (
            {}
            if self.num_tasks is None
            else {"num_validation_tasks": min(NUM_VALIDATION_TASKS, -(-self.num_tasks // 2))}
        )
        return EvaluationCreate.model_validate(
            {
                "split": split,
                "num_tasks": self.num_tasks,
                "num_samples": self.num_samples,
                "temperatures": list(self.temperatures),
                "seed": 0,
                **few,
            }
        )


@dataclass(frozen=True)
class Measurement:
    """What one process does: train the run, if there is one, and measure it on each split that has no result yet."""

    run: Run | None
    home: Path | None  # kept data folder; None for a temporary one
    paths: Mapping[str, Path]  # result file by split
    budget: Budget
    minutes: float
    threads: int


def main(arguments: Sequence[str]) -> int:
    """The command."""
    options = _parse(arguments)
    sources = None if options.leave_one_in is None else options.leave_one_in or [*SOURCES]
    runs = _choose_runs(options, sources)
    budget = Budget(options.updates, options.tasks, options.samples, tuple(options.temperatures))
    for folder in (options.folder, *([] if sources is None else [options.report])):
        require_folder(folder)
    _refuse_other_budgets(options, runs, budget)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    progress = Progress(Console())
    try:
        failed = _make(options, sources, runs, budget, progress)
    except KeyboardInterrupt:
        progress.say("stopped; what was run is kept, and the same command goes on from there")
        return 128 + signal.SIGINT
    if _name(None) not in failed:
        for split in options.splits:
            _print(options.folder, split, [run for run in runs if run.name not in failed])
    return 1 if failed else 0


def _make(
    options: argparse.Namespace,
    sources: Sequence[str] | None,
    runs: Sequence[Run],
    budget: Budget,
    progress: Progress,
) -> list[str]:
    """Make the runs that are missing; the names of those that did not end. Without the base there are none."""
    failed: list[str] = []
    for number, run in enumerate([None, *runs]):
        if not _is_done(options, run):
            progress.say(f"--- {_name(run)}, run {number} of {len(runs)}" if number else f"--- {_name(run)}")
            if not _in_own_process(_plan(options, run, budget, sources is not None)):
                failed.append(_name(run))
                progress.say(f"{_name(run)} did not end; the same command tries it again")
        if run is None and failed:
            break
        if sources is not None:
            _write_sources(options, sources, runs, budget)
    return failed


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description=__doc__.splitlines()[0])
    parser.add_argument("--objectives", nargs="+", default=["distil", "sft"], choices=["distil", "sft"])
    parser.add_argument("--lams", nargs="+", type=float, default=[1.0], help="weights of the future term, for distil")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--updates", type=positive, default=32)
    parser.add_argument(
        "--tasks",
        type=positive,
        help="held-out tasks a kind, all by default; and half as many to choose temperatures on",
    )
    parser.add_argument("--samples", type=positive, default=8, help="answers a task at each temperature above 0")
    parser.add_argument("--temperatures", nargs="+", type=float, default=[*TEMPERATURES])
    splits = [Split.HELDOUT.value, Split.VALIDATION.value]
    parser.add_argument("--splits", nargs="+", choices=splits, default=[Split.HELDOUT.value])
    parser.add_argument("--leave-one-in", nargs="*", choices=[*SOURCES], help="one source at a time; all by default")
    parser.add_argument("--minutes", type=float, help=f"time limit of one training; {MINUTES_ALONE:g} with one source")
    parser.add_argument("--threads", type=int, default=2, help="threads of the policy's engine")
    parser.add_argument("--folder", type=Path, default=Path("build/loop"), help="results, one file a run and split")
    parser.add_argument("--report", type=Path, default=RESULTS, help="the table and figure of one source at a time")
    parser.add_argument("--keep", action="store_true", help="keep the data folder of each run in FOLDER/data")
    return parser.parse_args(arguments)


def _choose_runs(options: argparse.Namespace, sources: Sequence[str] | None) -> list[Run]:
    if sources is not None:
        return [Run("distil", None, seed, source) for seed in options.seeds for source in sources]
    return [
        Run(objective, lam, seed)
        for seed in options.seeds
        for objective in options.objectives
        for lam in (options.lams if objective == "distil" else [0.0])
    ]


def _name(run: Run | None) -> str:
    return "base" if run is None else run.name


def _paths(options: argparse.Namespace, run: Run | None) -> dict[str, Path]:
    return {split: result_path(options.folder, split, run) for split in options.splits}


def _is_done(options: argparse.Namespace, run: Run | None) -> bool:
    return all(path.exists() for path in _paths(options, run).values())


def _refuse_other_budgets(options: argparse.Namespace, runs: Sequence[Run], budget: Budget) -> None:
    """Exits if a result that would be read has another budget: it could not be compared with the rest."""
    for path in (path for run in [None, *runs] for path in _paths(options, run).values() if path.exists()):
        found, wanted = json.loads(path.read_text())["budget"], _as_document(budget)
        if found != wanted:
            sys.exit(f"{path} was made with another budget, {found} in place of {wanted}: name another --folder")


def _as_document(budget: Budget) -> dict[str, object]:
    document: dict[str, object] = json.loads(json.dumps(asdict(budget)))
    return document


def _plan(options: argparse.Namespace, run: Run | None, budget: Budget, is_alone: bool) -> Measurement:
    paths = _paths(options, run)
    missing = {split: path for split, path in paths.items() if not path.exists()}
    if not options.keep:
        missing = paths  # one training stands behind all results of a run
    home = options.folder.resolve() / "data" / run.name if options.keep and run is not None else None
    minutes = options.minutes or (MINUTES_ALONE if is_alone else MINUTES)
    return Measurement(run, home, missing, budget, minutes, options.threads)


def _write_sources(options: argparse.Namespace, sources: Sequence[str], runs: Sequence[Run], budget: Budget) -> None:
    """The table and the figure of one source at a time, on the first split named, of the runs that have ended."""
    split = options.splits[0]
    _, base = _read_result(options.folder, split, None)
    found = []
    for source in sources:
        own = [run for run in runs if run.source == source]
        read = {run: _read_result(options.folder, split, run) for run in own if _is_done(options, run)}
        made = tuple(int(read[run][0]["num_updates"]) if run in read else None for run in own)
        found.append(Trained(source, tuple(evaluation for _, evaluation in read.values()), made, budget.num_updates))
    tasks = "all" if budget.num_tasks is None else f"{budget.num_tasks} a kind of the"
    drawn_at = ", ".join(f"{one:g}" for one in budget.temperatures)
    about = (
        f"{budget.num_updates} updates with each source alone, or fewer in {options.minutes or MINUTES_ALONE:g} "
        f"minutes; seeds {', '.join(map(str, options.seeds))}; {tasks} {split} tasks at temperatures {drawn_at}, "
        f"{budget.num_samples} answers each above 0. Cells: the rise over the base and its 95 % interval over "
        "families, seeds pooled; the best temperatures are chosen on validation tasks. "
        f"Made by `python -m benchmarks.loop --leave-one-in` at commit {find_commit()}."
    )
    (options.report / "leave_one_in.md").write_text(write_table(base, found, budget.num_samples, about))
    draw(base, found, options.report / "leave_one_in.png")


def result_path(folder: Path, split: str, run: Run | None) -> Path:
    """Where the results of one run on one split are kept; of the base without a run."""
    return folder / f"{split}-{_name(run)}.json"


def _in_own_process(measurement: Measurement) -> bool:
    """Whether it went well. Settings are read from the environment, which must be the run's alone."""
    child = multiprocessing.get_context("spawn").Process(target=_measure_until_stopped, args=(measurement,))
    child.start()
    try:
        child.join()
    finally:  # stopped by a signal: the child stops its stack and is waited for
        if child.is_alive():
            child.terminate()
            child.join()
    return child.exitcode == 0


def _measure_until_stopped(measurement: Measurement) -> None:
    try:
        _measure(measurement)
    except Interrupted:
        sys.exit(1)


def _measure(measurement: Measurement) -> None:
    progress, run = Progress(Console()), measurement.run
    demo.settle()
    if run is not None:
        os.environ["PRECEPTOR_TRAINER_OBJECTIVE"] = run.objective
        if run.lam is not None:
            os.environ["PRECEPTOR_TRAINER_LAM"] = str(run.lam)
        if run.source is not None and (shown := SOURCES[run.source].shown) is not None:
            os.environ["PRECEPTOR_TRAINER_SOURCES"] = json.dumps(shown)
        os.environ["PRECEPTOR_SEED"] = os.environ["PRECEPTOR_TRAINER_SEED"] = str(run.seed)
    with _data_folder(measurement) as folder, _stack(folder, progress, measurement.threads) as (stack, api):
        facts = _trained(measurement, folder, progress, stack, api)
        for split, path in measurement.paths.items():
            began = time.monotonic()
            started = api.post("/v1/evaluations", measurement.budget.wants(split), Evaluation)
            found: EvaluationDetail = demo.wait_for_evaluation(
                api, started.id, progress, stack.supervisor.check, f"{split} tasks"
            )
            if found.status is not EvaluationStatus.DONE:
                sys.exit(f"the evaluation was {found.status}")
            document = facts | {
                "evaluation_seconds": time.monotonic() - began,
                "evaluation": found.model_dump(mode="json"),
            }
            path.write_text(json.dumps(document, indent=1) + "\n")
            for line in measures.scores(found):
                progress.say(line)


def _trained(
    measurement: Measurement, folder: Path, progress: Progress, stack: Stack, api: ApiClient
) -> dict[str, object]:
    """Train, unless this folder holds a finished training; returns what there is to say of it."""
    run = measurement.run
    if (kept := _read_facts(folder, measurement)) is not None:
        return kept
    starter.import_into(api, progress)
    facts: dict[str, object] = {"run": _name(run), "budget": _as_document(measurement.budget)}
    if run is not None:
        corrects = run.source is None or OwnKind.HUMAN in SOURCES[run.source].teaches
        plan = demo.DemoPlan(
            num_updates=measurement.budget.num_updates,
            seed=run.seed,
            num_corrections=demo_person.MOST_CORRECTIONS if corrects else 0,
        )
        until = time.monotonic() + measurement.minutes * 60
        with _only(api, run.source):
            outcome = demo.train(api, plan, progress, stack.supervisor.check, until)
        facts |= {"num_updates": outcome.num_updates, "training_seconds": outcome.training_seconds}
        (folder / MARKER).write_text(json.dumps(facts) + "\n")
    return facts


@contextmanager
def _only(api: ApiClient, source: str | None) -> Iterator[None]:
    """Let the experts of one source alone teach until the block ends; verifiers go on judging."""
    kept = frozenset(OwnKind) if source is None else SOURCES[source].teaches
    experts = [Expert.model_validate(item) for item in api.pages("/v1/experts", 1000)]
    quiet = [one for one in experts if one.own not in kept and not one.descriptor.verifier and one.weight > 0]
    for one in quiet:
        api.put(f"/v1/experts/{one.id}/weight", ExpertWeight(weight=0), Expert)
    yield
    for one in quiet:
        api.put(f"/v1/experts/{one.id}/weight", ExpertWeight(weight=one.weight), Expert)


def _read_facts(folder: Path, measurement: Measurement) -> dict[str, object] | None:
    """What is known of the finished training in a folder; None if there is none of this budget."""
    try:
        facts: dict[str, object] = json.loads((folder / MARKER).read_text())
    except FileNotFoundError:
        return None
    return facts if facts["budget"] == _as_document(measurement.budget) else None


@contextmanager
def _data_folder(measurement: Measurement) -> Iterator[Path]:
    """A folder for one stack. A kept one that holds no finished training is emptied first."""
    kept = measurement.home
    folder = kept or Path(tempfile.mkdtemp(prefix="preceptor-loop-"))
    if kept is not None and _read_facts(kept, measurement) is None:
        shutil.rmtree(kept, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        if kept is None:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _stack(folder: Path, progress: Progress, threads: int) -> Iterator[tuple[Stack, ApiClient]]:
    model = resolve_model(os.environ.get("PRECEPTOR_MODEL"), progress.say)
    with running(Layout.open(folder / "data"), model, report=progress.say, policy_threads=threads) as stack:
        yield stack, ApiClient(stack.settings.api_url, stack.api_key)


def _print(folder: Path, split: str, runs: Sequence[Run]) -> None:
    _, base = _read_result(folder, split, None)
    sys.stdout.write(f"base on {split}\n" + "".join(f"  {line}\n" for line in measures.scores(base)))
    for run in runs:
        document, after = _read_result(folder, split, run)
        sys.stdout.write(
            f"{run.name}: {document['num_updates']} updates in {document['training_seconds']:.0f} s, "
            f"measured in {document['evaluation_seconds']:.0f} s\n"
        )
        sys.stdout.write("".join(f"  {line}\n" for line in measures.comparison(base, after)))
        for change in headline(base, after):
            if change.k == 1 and change.rise is not None and not change.rise.low > 0:
                sys.stdout.write(f"  {change.domain}: the interval of the rise in pass@1 reaches zero\n")


def _read_result(folder: Path, split: str, run: Run | None) -> tuple[dict[str, Any], EvaluationDetail]:
    document: dict[str, Any] = json.loads(result_path(folder, split, run).read_text())
    return document, EvaluationDetail.model_validate(document["evaluation"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
