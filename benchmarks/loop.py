"""Does it learn? The product from a fresh data folder, an objective and seed at a time, on all held-out tasks.

    python -m benchmarks.loop --objectives distil sft --seeds 0 1 2 --updates 16 --folder results

Each run is the demo's loop through the api: same tasks, rollouts, experts and number of updates; what changes is named
on the command line. The base is measured once and shared: it is the same weights, tasks and draws for every run. A
setting is chosen on `--splits validation`; with both splits named, one training is measured on both. Runs that are done
are not repeated, so it can be stopped and started again; with `--keep`, what was trained can be measured on another
split later. Prints, on held-out tasks, the best trained less the best base, each at the temperature at which it passes
most validation tasks, with intervals paired over families; then both at equal temperatures, and the wall times.

    python -m benchmarks.loop --leave-one-in --seeds 0 1 2 --updates 16 --folder results

trains with one source at a time in place of objectives: the experts of the others answer with weight 0. Writes
benchmarks/results/leave_one_in.md and .png. A source with nothing to show makes fewer updates, until `--minutes`.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.one_source import SOURCES, Trained, draw, write_table
from services.cli.client import ApiClient
from services.cli.commands import demo, demo_person, starter
from services.cli.output import measures
from services.cli.output.progress import Progress
from services.contracts.evaluations import Evaluation, EvaluationCreate, EvaluationDetail
from services.contracts.experts import Expert, ExpertWeight, OwnKind
from services.contracts.tasks import Split
from services.local.layout import Layout
from services.local.supervise.stack import Stack, running
from services.policy.model.convert import resolve_model
from services.store.stats.estimates import headline

RESULTS = Path(__file__).parent / "results"
MARKER = "trained.json"  # in a kept data folder, once its training is finished


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
class Measurement:
    """What one process does: train the run, if there is one, and measure it on each split that has no result yet."""

    run: Run | None
    home: Path | None  # kept data folder; None for a temporary one
    paths: Mapping[str, Path]  # result file by split
    num_samples: int
    num_updates: int
    minutes: float
    threads: int


def main(arguments: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description=__doc__.splitlines()[0])
    parser.add_argument("--objectives", nargs="+", default=["distil", "sft"], choices=["distil", "sft"])
    parser.add_argument("--lams", nargs="+", type=float, default=[1.0], help="weights of the future term, for distil")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8, help="answers a task at each temperature above 0")
    splits = [Split.HELDOUT.value, Split.VALIDATION.value]
    parser.add_argument("--splits", nargs="+", choices=splits, default=[Split.HELDOUT.value])
    parser.add_argument("--leave-one-in", nargs="*", choices=[*SOURCES], help="one source at a time; all by default")
    parser.add_argument("--minutes", type=float, default=24 * 60, help="time limit of one training")
    parser.add_argument("--threads", type=int, default=2, help="threads of the policy's engine")
    parser.add_argument("--folder", type=Path, required=True, help="where results are kept, one file a run and split")
    parser.add_argument("--keep", action="store_true", help="keep the data folder of each run in FOLDER/data")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    sources = None if options.leave_one_in is None else options.leave_one_in or [*SOURCES]
    if sources is not None:
        runs = [Run("distil", None, seed, source) for seed in options.seeds for source in sources]
    else:
        runs = [
            Run(objective, lam, seed)
            for seed in options.seeds
            for objective in options.objectives
            for lam in (options.lams if objective == "distil" else [0.0])
        ]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    for run in [None, *runs]:
        paths = {split: result_path(options.folder, split, run) for split in options.splits}
        missing = {split: path for split, path in paths.items() if not path.exists()}
        if missing and not options.keep:
            missing = paths  # one training stands behind all results of a run
        home = options.folder.resolve() / "data" / run.name if options.keep and run is not None else None
        measurement = Measurement(
            run, home, missing, options.samples, options.updates, options.minutes, options.threads
        )
        if missing and not _in_own_process(measurement):
            return 1
    for split in options.splits:
        _print(options.folder, split, runs)
    if sources is not None:
        _write_sources(options, sources, runs)
    return 0


def _write_sources(options: argparse.Namespace, sources: Sequence[str], runs: Sequence[Run]) -> None:
    """The table and the figure of one source at a time, on the first split named."""
    split = options.splits[0]
    _, base = _read_result(options.folder, split, None)
    found = []
    for source in sources:
        read = [_read_result(options.folder, split, run) for run in runs if run.source == source]
        documents, evaluations = zip(*read, strict=True)
        found.append(Trained(source, evaluations, tuple(int(document["num_updates"]) for document in documents)))
    about = (
        f"{options.updates} updates with each source alone, {len(options.seeds)} seed(s), {split} tasks, "
        f"{options.samples} answers each; the rise over the base, its 95 % interval over families, seeds pooled. "
        f"`{' '.join(['python -m benchmarks.loop', *sys.argv[1:]])}`"
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "leave_one_in.md").write_text(write_table(base, found, options.samples, about))
    draw(base, found, RESULTS / "leave_one_in.png")


def result_path(folder: Path, split: str, run: Run | None) -> Path:
    """Where the results of one run on one split are kept; of the base without a run."""
    return folder / f"{split}-{'base' if run is None else run.name}.json"


def _in_own_process(measurement: Measurement) -> bool:
    """Whether it went well. Settings are read from the environment, which must be the run's alone."""
    child = multiprocessing.get_context("spawn").Process(target=_measure, args=(measurement,))
    child.start()
    try:
        child.join()
    finally:  # stopped by a signal: the child stops its stack and is waited for
        if child.is_alive():
            child.terminate()
            child.join()
    return child.exitcode == 0


def _measure(measurement: Measurement) -> None:
    progress, run = Progress(Console()), measurement.run
    progress.say(f"--- {'base' if run is None else run.name}")
    if run is not None:
        os.environ["PRECEPTOR_TRAINER_OBJECTIVE"] = run.objective
        if run.lam is not None:
            os.environ["PRECEPTOR_TRAINER_LAM"] = str(run.lam)
        os.environ["PRECEPTOR_SEED"] = os.environ["PRECEPTOR_TRAINER_SEED"] = str(run.seed)
    with _data_folder(measurement) as folder, _stack(folder, progress, measurement.threads) as (stack, api):
        facts = _trained(measurement, folder, progress, stack, api)
        for split, path in measurement.paths.items():
            began = time.monotonic()
            wanted = EvaluationCreate.model_validate(
                {"split": split, "num_samples": measurement.num_samples, "seed": 0}
            )
            started = api.post("/v1/evaluations", wanted, Evaluation)
            found: EvaluationDetail = demo.wait_for_evaluation(
                api, started.id, progress, stack.supervisor.check, f"{split} tasks"
            )
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
    facts: dict[str, object] = {"run": None if run is None else run.name, "updates": measurement.num_updates}
    if run is not None:
        corrects = run.source is None or OwnKind.HUMAN in SOURCES[run.source]
        plan = demo.DemoPlan(
            num_updates=measurement.num_updates,
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
    """Let the experts of one source alone train until the block ends; their weights are as before then, so that
    evaluations are judged."""
    kept = frozenset() if source is None else SOURCES[source]
    experts = [Expert.model_validate(item) for item in api.pages("/v1/experts", 1000)]
    others = [one for one in experts if source is not None and one.own not in kept and one.weight > 0]
    for one in others:
        api.put(f"/v1/experts/{one.id}/weight", ExpertWeight(weight=0), Expert)
    yield
    for one in others:
        api.put(f"/v1/experts/{one.id}/weight", ExpertWeight(weight=one.weight), Expert)


def _read_facts(folder: Path, measurement: Measurement) -> dict[str, object] | None:
    """What is known of the finished training in a folder; None if there is none of as many updates."""
    try:
        facts: dict[str, object] = json.loads((folder / MARKER).read_text())
    except FileNotFoundError:
        return None
    return facts if facts["updates"] == measurement.num_updates else None


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
