"""Does it learn? The product from a fresh data folder, an objective and seed at a time, on all held-out tasks.

    python -m benchmarks.learning --objectives distil sft --seeds 0 1 2 --updates 16 --folder results

Each run is the demo's loop through the api: same tasks, rollouts, experts and number of updates; what changes is named
on the command line. The base is measured once and shared: it is the same weights, tasks and draws for every run.
Runs that are done are not repeated, so it can be stopped and started again. Prints pass@1 and pass@k before and after
with paired intervals over families, and the wall time of each part.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter
from rich.console import Console

from services.cli import demo, report, starter
from services.cli.client import ApiClient
from services.cli.progress import Progress
from services.cli.statistics import paired_difference
from services.contracts.evaluations import Evaluation, EvaluationCreate, EvaluationDetail, TaskResult
from services.contracts.tasks import Split
from services.local.layout import Layout
from services.local.stack import Stack, running
from services.policy.convert import resolve_model

RESULTS = TypeAdapter(list[TaskResult])


@dataclass(frozen=True)
class Run:
    """One run: an objective with its λ, and a seed."""

    objective: str
    lam: float
    seed: int

    @property
    def name(self) -> str:
        """Also its file's name."""
        return f"{self.objective}-lam{self.lam:g}-seed{self.seed}"


def main(arguments: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__.splitlines()[0])
    parser.add_argument("--objectives", nargs="+", default=["distil", "sft"], choices=["distil", "sft"])
    parser.add_argument("--lams", nargs="+", type=float, default=[0.1], help="weights of the future term, for distil")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8, help="answers a task when measuring")
    parser.add_argument("--split", choices=[Split.HELDOUT.value, Split.VALIDATION.value], default=Split.HELDOUT.value)
    parser.add_argument("--threads", type=int, default=2, help="threads of the policy's engine")
    parser.add_argument("--folder", type=Path, required=True, help="where results are kept, one file a run")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    runs = [
        Run(objective, lam, seed)
        for seed in options.seeds
        for objective in options.objectives
        for lam in (options.lams if objective == "distil" else [0.0])
    ]
    wanted = EvaluationCreate.model_validate({"split": options.split, "num_samples": options.samples, "seed": 0})
    for run in [None, *runs]:
        path = options.folder / f"{options.split}-{'base' if run is None else run.name}.json"
        if not path.exists():
            # A process of its own: settings are read from the environment, which must be the run's alone.
            child = multiprocessing.get_context("spawn").Process(
                target=_measure, args=(run, wanted, options.updates, options.threads, path)
            )
            child.start()
            child.join()
            if child.exitcode != 0:
                return 1
    _print(options.folder, options.split, runs, options.samples)
    return 0


def _measure(run: Run | None, wanted: EvaluationCreate, num_updates: int, threads: int, path: Path) -> None:
    progress = Progress(Console())
    progress.say(f"--- {'base' if run is None else run.name}")
    if run is not None:
        os.environ["PRECEPTOR_TRAINER_OBJECTIVE"] = run.objective
        os.environ["PRECEPTOR_TRAINER_LAM"] = str(run.lam)
        os.environ["PRECEPTOR_SEED"] = os.environ["PRECEPTOR_TRAINER_SEED"] = str(run.seed)
    with _fresh_stack(progress, threads) as (stack, api):
        starter.import_into(api, progress)
        document: dict[str, object] = {"run": None if run is None else run.name, "updates": num_updates}
        if run is not None:
            plan = demo.DemoPlan(minutes=24 * 60, num_updates=num_updates, seed=run.seed)
            outcome = demo.train(api, plan, progress, stack.supervisor.check)
            document |= {"num_updates": outcome.num_updates, "training_seconds": outcome.training_seconds}
        began = time.monotonic()
        started = api.post("/v1/evaluations", wanted, Evaluation)
        found: EvaluationDetail = demo.wait_for_evaluation(
            api, started.id, progress, stack.supervisor.check, f"{wanted.split.value} tasks"
        )
        document |= {
            "policy_version": found.policy_version,
            "evaluation_seconds": time.monotonic() - began,
            "results": RESULTS.dump_python(found.results, mode="json"),
        }
        for line in report.scores(found.results, wanted.num_samples):
            progress.say(line)
    path.write_text(json.dumps(document, indent=1) + "\n")


@contextmanager
def _fresh_stack(progress: Progress, threads: int) -> Iterator[tuple[Stack, ApiClient]]:
    folder = Path(tempfile.mkdtemp(prefix="preceptor-learning-"))
    folder.chmod(0o711)
    try:
        model = resolve_model(os.environ.get("PRECEPTOR_MODEL"), progress.say)
        with running(Layout.open(folder / "data"), model, report=progress.say, policy_threads=threads) as stack:
            yield stack, ApiClient(stack.settings.api_url, stack.api_key)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _print(folder: Path, split: str, runs: Sequence[Run], num_samples: int) -> None:
    base = RESULTS.validate_python(json.loads((folder / f"{split}-base.json").read_text())["results"])
    sys.stdout.write(f"base on {split}\n" + "".join(f"  {line}\n" for line in report.scores(base, num_samples)))
    for run in runs:
        document = json.loads((folder / f"{split}-{run.name}.json").read_text())
        after = RESULTS.validate_python(document["results"])
        sys.stdout.write(
            f"{run.name}: {document['num_updates']} updates in {document['training_seconds']:.0f} s, "
            f"measured in {document['evaluation_seconds']:.0f} s\n"
        )
        sys.stdout.write("".join(f"  {line}\n" for line in report.table(base, after, num_samples)))
        for domain, tasks in report.by_domain(base).items():
            rise = paired_difference(tasks, report.by_domain(after)[domain], 1)
            if rise is not None and not rise.low > 0:
                sys.stdout.write(f"  {domain}: the interval of the rise in pass@1 reaches zero\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
