"""Which objective learns best? The shoot-out: same base policy, tasks, rollouts, experts and teacher context for all.

    python -m benchmarks.learn --tier tiny             (make bench-learn TIER=tiny; QUICK=1 is a rehearsal of minutes)

For each world: the policy is made ready, the gap between student and teacher is measured, every arm is tuned by the
same grid on validation tasks, and the best setting of each runs with new seeds and is measured on held-out tasks, of
families never trained on. Every measurement is made at several temperatures, and what counts is best trained less best
base, each at the temperature that was best on validation tasks. A control has a teacher that is shown another task's
solution. The report has this headline, paired differences over seeds, the grid, and a figure with the curves, by
rollouts and by seconds.

Runs are written down one by one in `--folder`, and what is there is not run again: stop it and start it as you like.

tiny    synthetic worlds (`benchmarks.shootout.synthetic`) and policies made here: some hours on 2 cores
small   SmolLM2-135M-Instruct on the starter tasks, one kind at a time: the arms that the trainer's defaults are chosen
        by; hours an arm and kind
gpu     GSM8K and SciKnowEval physics (`benchmarks.shootout.published`: their files in `--data`), a model of yours in
        `--model`
"""

import argparse
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from pydantic import TypeAdapter
from rich.console import Console

from benchmarks.arguments import find_model, positive, require_folder, usable_device
from benchmarks.shootout.published import DataUnusable
from benchmarks.shootout.report import ArmResults, Section, find_commit, name_machine, write_report
from benchmarks.shootout.results import Results, Run, Tuning, average
from benchmarks.shootout.runs import (
    Arm,
    Budget,
    Gap,
    Outcome,
    Plan,
    Point,
    Setting,
    measure_gap,
    measure_start,
    train,
)
from benchmarks.shootout.schedule import make_runs
from benchmarks.shootout.worlds import SYNTHETIC, about, opened, prepare_policy, serving_judges, shown
from services.cli.output.progress import Progress
from services.contracts.tasks import Split
from services.policy.model.modeling import hash_base

DISTIL = Arm(name="distil", objective="distil")
SHIPPED = Arm(name="shipped", objective="distil", shown="product")


def arms(student_top_k: int) -> tuple[Arm, ...]:
    """What is compared. student_top_k: how many tokens of the student's those look at that do not look at all."""
    return (
        DISTIL,
        Arm(name="distil λ=.1", objective="distil", lam=0.1),
        Arm(name="distil λ=10", objective="distil", lam=10.0),
        Arm(name="distil + grpo", objective="distil", mixed=(("grpo", 1.0),)),
        Arm(name="forward_ce", objective="forward_ce"),
        Arm(name="paper", objective="paper", teacher_ema=0.01, student_top_k=student_top_k),
        Arm(name="sdpo", objective="sdpo", teacher_ema=0.05, student_top_k=student_top_k),
        Arm(name="reverse_kl", objective="reverse_kl"),
        Arm(name="grpo", objective="grpo", has_teacher=False),
        Arm(name="maxrl", objective="maxrl", has_teacher=False),
        Arm(name="sft", objective="sft", has_teacher=False),
        Arm(name="rft", objective="rft", has_teacher=False),
    )


def default_arms() -> tuple[Arm, ...]:
    """What the trainer's defaults are chosen by: the product without an answer key, and one thing changed at a time."""

    def change(name: str, **changes: object) -> Arm:
        return SHIPPED.model_copy(update={"name": name, **changes})

    return (
        SHIPPED,
        change("τ 1", teacher_temperature=1.0),
        change("matched", sampling_temperature=0.5),
        change("sharpen-only", shown="nothing"),
        change("roll-in .5", roll_in=0.5),
        change("averaged", publish_average=0.1),
        change("distil + .3 sft", mixed=(("sft", 0.3),)),
        change("clip 1", clip=1.0),
        change("no clip", clip=math.inf),
        change("sdpo", objective="sdpo", teacher_ema=0.05),
        change("sft", objective="sft", has_teacher=False),
        change("grpo", objective="grpo", has_teacher=False),
        change("reference", shown="solution"),
    )


def decision_arms() -> tuple[Arm, ...]:
    """What is compared where there is one decision to make: experts that know, that only draw, and that err."""
    names = ("distil", "sdpo", "reverse_kl", "grpo", "maxrl", "sft", "rft")
    exact = [arm for arm in arms(20) if arm.name in names]
    mistaken = [arm.model_copy(update={"name": f"{arm.name}, 30 % wrong", "expert": "mistaken"}) for arm in exact[:5]]
    samples = DISTIL.model_copy(update={"name": "distil, samples", "expert": "samples"})
    return (*exact, samples, *mistaken)


GAP_SAMPLES = 8
GAPS = TypeAdapter(list[Gap])
FIRST_FINAL_SEED = 100  # held-out runs share no seed with the tuning


@dataclass(frozen=True)
class Course:
    """What is run in a world. The grid is every learning rate with every teacher temperature; an arm that reads no
    teacher, or has a temperature of its own, has the learning rates alone. tuning_seeds: of every setting."""

    arms: tuple[Arm, ...]
    learning_rates: tuple[float, ...]
    temperatures: tuple[float, ...]
    tuning_seeds: int
    final: Budget

    @property
    def tuning(self) -> Budget:
        """The same as the held-out runs', measured before and after alone."""
        return self.final.model_copy(update={"measure_every": self.final.updates})

    @property
    def control(self) -> tuple[Arm, Arm] | None:
        """The first arm whose teacher is shown solutions, and the same with other tasks'; None without one."""
        first = next((arm for arm in self.arms if arm.has_teacher and arm.shown == "solution"), None)
        return None if first is None else (first, first.model_copy(update={"name": "control", "other_feedback": True}))

    def grid(self, arm: Arm) -> list[Setting]:
        """The settings an arm is tuned over."""
        temperatures = self.temperatures if arm.has_teacher else self.temperatures[:1]
        if arm.teacher_temperature is not None:
            temperatures = (arm.teacher_temperature,)
        return [
            Setting(learning_rate=rate, teacher_temperature=temperature)
            for rate in self.learning_rates
            for temperature in temperatures
        ]


@dataclass(frozen=True)
class Tier:
    """What is run, by world. needs_model: the model that ships is too small for its worlds."""

    courses: dict[str, Course]
    final_seeds: int
    device: str = "cpu"
    needs_model: bool = False


TINY = Budget(updates=12, groups=4, group_size=8, measure_every=4, samples=16)
SMALL = Budget(updates=12, groups=2, group_size=8, measure_every=6, samples=8, tasks=30)
LARGE = Budget(updates=60, groups=8, group_size=8, measure_every=15, samples=8, tasks=100)
RULES = Course(
    arms=arms(20),
    learning_rates=(5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
    temperatures=(0.5, 1.0),
    tuning_seeds=3,
    final=TINY,
)
DECISION = Course(
    arms=decision_arms(),
    learning_rates=(1e-3, 2e-3, 4e-3, 8e-3),
    temperatures=(1.0,),
    tuning_seeds=20,  # so that every rate is kept, as well known as the best one
    final=TINY.model_copy(update={"updates": 36, "measure_every": 12}),
)
STARTER = Course(
    arms=default_arms(),
    learning_rates=(1e-4, 3e-4, 1e-3),
    temperatures=(0.5,),
    tuning_seeds=3,
    final=SMALL,
)
HOUSE = replace(
    STARTER,
    learning_rates=(3e-4, 5e-4, 1e-3),
    final=SMALL.model_copy(update={"updates": 48, "groups": 4, "group_size": 2, "measure_every": 12}),
)
PUBLISHED = Course(
    arms=arms(100),
    learning_rates=(3e-5, 1e-4, 3e-4),
    temperatures=(0.5, 1.0),
    tuning_seeds=1,
    final=LARGE,
)
TIERS = {
    "tiny": Tier({"rules": RULES, "fork": RULES, "unheard": DECISION, "doubted": DECISION}, final_seeds=20),
    "small": Tier({"functions": STARTER, "tool-calls": STARTER, "house": HOUSE}, final_seeds=3),
    "gpu": Tier({"gsm8k": PUBLISHED, "physics": PUBLISHED}, final_seeds=5, device="cuda", needs_model=True),
}


def main(arguments: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learn", description=__doc__.splitlines()[0])
    parser.add_argument("--tier", choices=list(TIERS), default="tiny")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a rehearsal of minutes: two updates, few tasks and seeds; its figures mean nothing",
    )
    parser.add_argument("--worlds", nargs="+", help="only these of the tier's worlds")
    parser.add_argument("--arms", nargs="+", help="only these arms")
    parser.add_argument("--rates", nargs="+", type=float, help="only these of the tier's learning rates")
    parser.add_argument(
        "--seeds", type=positive, help="tune every setting on so many seeds; by default the tier's number"
    )
    parser.add_argument("--folder", type=Path, default=Path("build/learn"), help="runs, policies and the report")
    parser.add_argument("--report", type=Path, help="another folder for the report: table, figure")
    parser.add_argument(
        "--jobs", type=positive, help="runs at a time, a thread each; by default a core each, 1 on a GPU"
    )
    parser.add_argument(
        "--model",
        help="folder or Hugging Face id of the base policy of worlds that are not synthetic; by default the one that "
        "ships, but for tier gpu",
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the files tier gpu reads")
    parser.add_argument("--device", type=usable_device, help="by default cpu, cuda for tier gpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args(arguments)
    tier = _narrow(TIERS[options.tier], options)
    folder = options.folder / (options.tier + "-quick" if options.quick else options.tier)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if tier.needs_model and options.model is None:
        parser.error(f"tier {options.tier} needs --model: a model's folder, or its Hugging Face id")
    try:
        device = options.device or usable_device(tier.device)
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    jobs = options.jobs or (os.cpu_count() or 1 if device == "cpu" else 1)
    data_sha256 = _check(tier.courses, options.data)
    for needed in (folder, options.report or folder):
        require_folder(needed)
    progress = Progress(Console())
    model = find_model(options.model, progress.say) if tier.courses.keys() - SYNTHETIC.keys() else None
    try:
        with serving_judges(tuple(tier.courses), folder / "sandbox", progress.say), _workers(jobs) as pool:
            shootout = Shootout(
                tier, folder, model, options.data, data_sha256, device, options.dtype, progress, pool, jobs
            )
            sections = shootout.run()
    except KeyboardInterrupt:
        progress.say("stopped; what was run is kept, and the same command goes on from there")
        return 128 + signal.SIGINT
    command = " ".join(["python -m benchmarks.learn", *arguments])
    for path in write_report(sections, options.report or folder, options.tier, command):
        progress.say(f"written: {path}")
    return 0


def _narrow(tier: Tier, options: argparse.Namespace) -> Tier:
    """The tier as asked for. Exits if a name is unknown."""
    courses = {w: c for w, c in tier.courses.items() if options.worlds is None or w in options.worlds}
    arms = {arm.name for course in courses.values() for arm in course.arms}
    rates = {rate for course in courses.values() for rate in course.learning_rates}
    unknown = [
        *sorted({*(options.worlds or ())} - courses.keys()),
        *sorted({*(options.arms or ())} - arms),
        *(f"{rate:g}" for rate in sorted({*(options.rates or ())} - rates)),
    ]
    if unknown:
        sys.exit(f"unknown here: {', '.join(unknown)}")
    courses = {world: _narrow_course(course, options) for world, course in courses.items()}
    return replace(tier, courses=courses, final_seeds=1 if options.quick else tier.final_seeds)


def _narrow_course(course: Course, options: argparse.Namespace) -> Course:
    course = replace(
        course,
        arms=tuple(arm for arm in course.arms if options.arms is None or arm.name in options.arms),
        learning_rates=tuple(r for r in course.learning_rates if options.rates is None or r in options.rates),
        tuning_seeds=options.seeds or course.tuning_seeds,
    )
    if not options.quick:
        return course
    short = Budget(updates=2, groups=1, group_size=8, measure_every=1, samples=8, tasks=4)
    return replace(
        course,
        final=short,
        tuning_seeds=1,
        temperatures=course.temperatures[:1],
        learning_rates=course.learning_rates[-1:],
    )


def _check(worlds: Iterable[str], data: Path) -> dict[str, str]:
    """What the worlds read of the data, as digests. Exits if it is not there, or not what it should be."""
    found = dict[str, str]()
    for name in worlds:
        try:
            with opened(name, data) as world:
                found[name] = world.data_sha256
        except DataUnusable as error:
            sys.exit(str(error))
    return found


@contextmanager
def _workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes with a thread each; when the block ends by an error or a signal, what they do is given up."""
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(max_workers=jobs, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown()


@dataclass(frozen=True)
class Shootout:
    """The runs of a tier, in the order they need each other. data_sha256: of the files that each world reads. jobs: at
    a time, in the pool's processes."""

    tier: Tier
    folder: Path
    model: Path | None
    data: Path
    data_sha256: dict[str, str]
    device: str
    dtype: str
    progress: Progress
    pool: ProcessPoolExecutor
    jobs: int

    def run(self) -> list[Section]:
        """Everything that is missing, and what there is to say of each world."""
        policies = self._prepare()
        base_sha256 = {world: hash_base(path)[0] for world, path in policies.items()}
        gaps = {
            world: self.pool.submit(
                gap_of,
                world,
                self.data,
                path,
                self.device,
                self.dtype,
                gap_file(self.folder, world, base_sha256[world], self.data_sha256[world]),
            )
            for world, path in policies.items()
        }
        results = Results(self.folder / "runs.jsonl", base_sha256)
        tuning = {
            (world, arm): self._tuning(world, arm, policies)
            for world, course in self.tier.courses.items()
            for arm in course.arms
        }
        self._make(results, [plan for plans in tuning.values() for plan in plans], "tuning")
        tuned = {pair: results.tune(plans) for pair, plans in tuning.items()}
        chosen = {pair: one.best for pair, one in tuned.items()}
        validation = {pair: one.settings[chosen[pair]] for pair, one in tuned.items()}
        for world, course in self.tier.courses.items():
            if course.control is not None:
                original, control = course.control  # it differs in what is shown alone, its settings and temperatures
                chosen[world, control] = chosen[world, original]
                validation[world, control] = validation[world, original]
        finals = {pair: self._finals(*pair, setting, policies) for pair, setting in chosen.items()}
        self._make(results, [plan for plans in finals.values() for plan in plans], "held-out runs")
        sections = []
        for world, course in self.tier.courses.items():
            entries = [
                ArmResults(arm, results.runs(plans), tuned.get((world, arm), Tuning({})), validation[world, arm])
                for (where, arm), plans in finals.items()
                if where == world
            ]
            untrained = [run.curve[0] for arm in course.arms for run in results.runs(tuning[world, arm])]
            sections.append(
                Section(
                    world=world,
                    about=about(world),
                    shown=shown(world),
                    gaps=gaps[world].result(),
                    base=average(untrained),
                    budget=course.final,
                    tuning_seeds=course.tuning_seeds,
                    entries=entries,
                )
            )
        return sections

    def _prepare(self) -> dict[str, Path]:
        waiting = {w: self.pool.submit(prepare_policy, w, self.folder, self.model, print) for w in self.tier.courses}
        return {world: future.result() for world, future in waiting.items()}

    def _tuning(self, world: str, arm: Arm, policies: dict[str, Path]) -> list[Plan]:
        course = self.tier.courses[world]
        return [
            self._plan(world, arm, setting, seed, Split.VALIDATION, course.tuning, policies)
            for setting in course.grid(arm)
            for seed in range(course.tuning_seeds)
        ]

    def _finals(self, world: str, arm: Arm, setting: Setting, policies: dict[str, Path]) -> list[Plan]:
        seeds, budget = (
            range(FIRST_FINAL_SEED, FIRST_FINAL_SEED + self.tier.final_seeds),
            self.tier.courses[world].final,
        )
        return [self._plan(world, arm, setting, seed, Split.HELDOUT, budget, policies) for seed in seeds]

    def _plan(
        self, world: str, arm: Arm, setting: Setting, seed: int, split: Split, budget: Budget, policies: dict[str, Path]
    ) -> Plan:
        return Plan(
            world=world,
            arm=arm,
            setting=setting,
            seed=seed,
            split=split,
            budget=budget,
            policy=str(policies[world]),
            device=self.device,
            dtype=self.dtype,
            data_sha256=self.data_sha256[world],
        )

    def _make(self, results: Results, plans: Sequence[Plan], label: str) -> None:
        """Run what is missing, seed by seed, so that a stopped shoot-out has a bit of everything."""
        missing = sorted(results.missing(plans), key=lambda plan: plan.seed)
        done, commit, machine = len(plans) - len(missing), find_commit(), name_machine(self.device)
        measure, run = partial(start_of, data=self.data), partial(run_plan, data=self.data)
        with self.progress.bar(label) as bar:
            bar.set(done, len(plans))
            for plan, outcome in make_runs(self.pool, self.jobs, missing, results.starts(), measure, run):
                results.add(
                    Run(
                        plan=plan,
                        base_sha256=results.base_sha256[plan.world],
                        commit=commit,
                        machine=machine,
                        curve=outcome.curve,
                        num_untrained=outcome.num_untrained,
                        num_invalid=outcome.num_invalid,
                        num_charged=outcome.num_charged,
                        num_clipped=outcome.num_clipped,
                    )
                )
                done += 1
                bar.set(done, len(plans), f"{plan.world}, {plan.arm.name}")


def run_plan(plan: Plan, start: Point, data: Path) -> Outcome:
    """What became of a run that begins with this measurement."""
    with opened(plan.world, data) as world:
        return train(plan, world, start)


def start_of(plan: Plan, data: Path) -> Point:
    """The measurement a run begins with."""
    with opened(plan.world, data) as world:
        return measure_start(plan, world)


def gap_file(folder: Path, world: str, base_sha256: str, data_sha256: str) -> Path:
    """Where a world's gap is kept that was measured with this policy and these data files, if it reads any."""
    digests = [sha256[:12] for sha256 in (base_sha256, data_sha256) if sha256]
    return folder / f"{'-'.join(['gap', world, *digests])}.json"


def gap_of(world_name: str, data: Path, policy: Path, device: str, dtype: str, kept: Path) -> list[Gap]:
    """What feedback is worth in a world before any training; measured once, and then read from the file `kept`."""
    if kept.exists():
        return GAPS.validate_json(kept.read_bytes())
    with opened(world_name, data) as world:
        gaps = measure_gap(policy, world, GAP_SAMPLES, device, dtype)
    kept.write_bytes(GAPS.dump_json(gaps))
    return gaps


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
