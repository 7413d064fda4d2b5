"""`preceptor demo`: the whole loop once, on the starter tasks, within a time limit.

It acts as a user: everything goes through the api with the owner's key. Phases are bounded; the time of the final
measurement is reserved from the start, so a slow machine trains less rather than not measuring. Hardly any train task
has a right answer: verdicts, tool outputs, precedents and a person's few corrections are what there is to learn from.
"""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from uuid import UUID

from pydantic_core import to_jsonable_python

from services.cli.client import ApiClient, ApiProblem
from services.cli.commands import demo_person, measuring
from services.cli.output import measures, report
from services.cli.output.outcome import DemoOutcome, Trained
from services.cli.output.progress import Progress
from services.contracts.base import JsonObject
from services.contracts.evaluations import (
    TEMPERATURES,
    Evaluation,
    EvaluationCreate,
    EvaluationDetail,
    EvaluationStatus,
)
from services.contracts.experts import Expert
from services.contracts.measurements import Measurement, MeasurementCreate, MeasurementsAsked, say_about
from services.contracts.rollouts import Purpose, Rollout
from services.contracts.sources import ContextSettings, ContextSource
from services.contracts.status import LoopState, LoopSwitch, Status
from services.contracts.tasks import Split
from services.contracts.updates import UpdateDetail
from services.web.presenters import worth

POLL_SECONDS = 1.0
FINAL_MARGIN = 1.25  # the last measurement may take this much longer than the first: versions switch, caches are cold
LEAST_TRAINING = 1 / 3  # of the minutes, however long the measurements before it took
SETTINGS = {
    "PRECEPTOR_ROLL_IN": "0.5",  # command words that are never drawn are learned sooner with it
    "PRECEPTOR_TRAINER_GROUPS_PER_UPDATE": "1",  # drawing takes most of the time: more steps for the same rollouts
    "PRECEPTOR_TRAINER_PUBLISH_EVERY": "4",
}
"""What a demo runs with where nobody set it."""


def settle() -> None:
    """Set what a demo runs with in the environment, for the processes to come."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


MEASURED = (ContextSource.OWN_SUCCESS, ContextSource.PRECEDENTS, ContextSource.REFERENCE)
MEASURING_SHARE = 1 / 5  # of the minutes, for measuring what teaches before training
MANY = 10_000  # as many as there are: validation tasks of a domain, and minutes


@dataclass(frozen=True)
class DemoPlan:
    """How much the demo does. The defaults fit two cores in about 15 minutes."""

    minutes: float = 15.0
    measures_all: bool = False
    num_updates: int = 192
    num_eval_tasks: int | None = 15
    num_validation_tasks: int = 7
    num_samples: int = 8
    num_corrections: int = demo_person.MOST_CORRECTIONS
    temperatures: tuple[float, ...] = (0.0, 0.5)
    seed: int = 0

    @property
    def measuring_minutes(self) -> float:
        """The longest time for measuring what teaches before training."""
        return MANY if self.measures_all else self.minutes * MEASURING_SHARE


def plan_in_full(num_updates: int, num_samples: int, seed: int) -> DemoPlan:
    """All held-out and validation tasks at every temperature, and every source measured, however long it takes."""
    return DemoPlan(
        minutes=24 * 60,
        measures_all=True,
        num_updates=num_updates,
        num_eval_tasks=None,
        num_validation_tasks=MANY,
        num_samples=num_samples,
        temperatures=TEMPERATURES,
        seed=seed,
    )


def run(api: ApiClient, plan: DemoPlan, progress: Progress, check: Callable[[], None], kept: str) -> DemoOutcome:
    """Measure, measure what teaches, train, correct, measure again. `check` raises when a process has crashed.

    kept: the report's line about where the data is.

    `api` itself waits while the api is unreachable (`ApiClient.wait_with`).
    """
    deadline = time.monotonic() + plan.minutes * 60
    wanted = EvaluationCreate(
        split=Split.HELDOUT,
        num_tasks=plan.num_eval_tasks,
        num_validation_tasks=plan.num_validation_tasks,
        num_samples=plan.num_samples,
        temperatures=[*plan.temperatures],
        seed=plan.seed,
    )
    began = time.monotonic()
    before = _evaluate(api, wanted, progress, check, "held-out and validation tasks, before")
    eval_seconds = time.monotonic() - began
    progress.say(measures.scores_line("before", before))

    notes = _measure_what_teaches(api, plan, progress, check)
    until = max(deadline - eval_seconds * FINAL_MARGIN, time.monotonic() + plan.minutes * 60 * LEAST_TRAINING)
    trained = train(api, plan, progress, check, until)
    after = _evaluate(api, wanted, progress, check, "held-out and validation tasks, after")
    updates = [
        api.get(f"/v1/updates/{number}", UpdateDetail)
        for number in range(trained.first_update, trained.first_update + trained.num_updates)
    ]
    found = weigh_experts(api, updates)
    outcome = DemoOutcome(before, after, trained, updates, found, notes + trained.notes)
    for line in measures.summary(outcome, updates, api.get("/v1/status", Status), kept):
        progress.say(line)
    return outcome


def weigh_experts(api: ApiClient, updates: Sequence[UpdateDetail]) -> list[worth.ExpertWorth]:
    """Every expert's part in these updates, and what it was measured to teach."""
    found = [Expert.model_validate(item) for item in api.pages("/v1/experts", 1000)]
    experts = [(one.id, one.name, one.measured) for one in found]
    used = {lesson.rollout_id for update in updates for lesson in update.lessons}
    domains = {
        rollout_id: domain
        for domain in _train_domains(api.get("/v1/status", Status))
        for rollout_id in _rollouts_of(api, domain)
        if rollout_id in used
    }
    return worth.weigh(experts, updates, domains)


def _rollouts_of(api: ApiClient, domain: str) -> list[UUID]:
    query = {"purpose": Purpose.TRAIN.value, "domain": domain}
    return [Rollout.model_validate(item).id for item in api.pages("/v1/rollouts", 100_000, query)]


def _train_domains(status: Status) -> set[str]:
    return {count.domain for count in status.tasks if count.split == Split.TRAIN}


def _measure_what_teaches(api: ApiClient, plan: DemoPlan, progress: Progress, check: Callable[[], None]) -> list[str]:
    """Measure the sources on train tasks while nothing trains, within the plan's time; returns notes.

    Where the time is short, only what teachers are shown unmeasured, by the template that they would see.
    """
    minutes = plan.measuring_minutes
    asked = (
        _ask_to_measure(api, MeasurementCreate(minutes=minutes))
        if plan.measures_all
        else [
            one
            for source in MEASURED
            for one in _ask_to_measure(
                api, MeasurementCreate(source=source, template=ContextSettings().template_of(source), minutes=minutes)
            )
        ]
    )
    measured = measuring.wait_for(api, asked, progress, check, time.monotonic() + minutes * 60)
    names = {UUID(str(item["id"])): str(item["name"]) for item in api.pages("/v1/experts", 1000)}
    for one in measured:
        if one.num_tasks:
            progress.say(f"{names[one.expert_id]}: {say_about(one)}")
    num_open = sum(one.decided_at is None for one in measured)
    if not num_open:
        return []
    notes = [
        f"{num_open} of {len(measured)} measurements of what teaches were undecided, or had nothing to show, when "
        "training began. They go on beside it, as a small share of the draws."
    ]
    progress.say(notes[0])
    return notes


def _ask_to_measure(api: ApiClient, wanted: MeasurementCreate) -> list[Measurement]:
    try:
        return api.post("/v1/measurements", wanted, MeasurementsAsked).measurements
    except ApiProblem as problem:
        if problem.status_code != 422:  # no expert gives it
            raise
        return []


def _evaluate(
    api: ApiClient, wanted: EvaluationCreate, progress: Progress, check: Callable[[], None], label: str
) -> EvaluationDetail:
    started = api.post("/v1/evaluations", wanted, Evaluation)
    return wait_for_evaluation(api, started.id, progress, check, label)


def wait_for_evaluation(
    api: ApiClient, evaluation_id: UUID, progress: Progress, check: Callable[[], None], label: str
) -> EvaluationDetail:
    """The evaluation once every answer of it is judged."""
    with progress.bar(label) as bar:
        while True:
            check()
            state = api.get(f"/v1/evaluations/{evaluation_id}", EvaluationDetail)
            bar.set(state.num_settled, state.num_rollouts)
            if state.status is not EvaluationStatus.RUNNING:
                return state
            time.sleep(POLL_SECONDS)


def train(
    api: ApiClient,
    plan: DemoPlan,
    progress: Progress,
    check: Callable[[], None],
    deadline: float = math.inf,
) -> Trained:
    """Let the loop run until its updates are done or the time is up; correct a few answers on the way.

    deadline: in seconds of `time.monotonic`.
    """
    start = api.get("/v1/status", Status)
    trained = Trained(first_update=start.num_updates + 1)
    goal = start.num_updates + plan.num_updates
    began = time.monotonic()
    api.post("/v1/loop", LoopSwitch(sampling=True, training=True, max_updates=goal), LoopState)
    seen, rates, is_late = start.num_updates, report.Rates(), False
    person = demo_person.Person(plan.num_corrections)
    with progress.bar("updates") as bar:
        while True:
            check()
            status = api.get("/v1/status", Status)
            for update in sorted(status.last_updates, key=lambda u: u.number):
                if update.number > seen:
                    seen = update.number
                    progress.say(report.update_line(update, status))
            doing = report.activity(status, rates.measure(status, time.monotonic()))
            bar.set(status.num_updates - start.num_updates, plan.num_updates, doing)
            person.look(api, _train_domains(status), progress)
            if status.num_updates >= goal:
                break
            if time.monotonic() > deadline:
                is_late = True
                progress.say("The time is up; the current update is finished first.")
                break
            time.sleep(POLL_SECONDS)
    api.post("/v1/loop", LoopSwitch(sampling=False, training=False), LoopState)
    _await_quiet(api, check)
    person.find_updates(api, progress)
    trained.corrections, trained.used_by = person.corrections, person.used_by
    trained.num_updates = api.get("/v1/status", Status).num_updates - start.num_updates
    if is_late:
        trained.notes.append(f"Time was up after {trained.num_updates} of {plan.num_updates} updates.")
        progress.say(trained.notes[-1])
    trained.training_seconds = time.monotonic() - began
    return trained


def _await_quiet(api: ApiClient, check: Callable[[], None], seconds: float = 90.0) -> None:
    """Wait until the trainer has finished its step and published its version."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        check()
        trainer = next((p for p in api.get("/v1/status", Status).processes if p.name == "trainer"), None)
        if trainer is None or trainer.activity in report.IDLE_ACTIVITIES:
            return
        time.sleep(POLL_SECONDS)


def as_document(plan: DemoPlan, outcome: DemoOutcome) -> JsonObject:
    """The demo as one JSON document: plan, measurements and updates."""
    trained = outcome.trained
    document: JsonObject = to_jsonable_python(
        {
            "plan": asdict(plan) | {"measuring_minutes": plan.measuring_minutes},
            "before": outcome.before.model_dump(mode="json"),
            "after": outcome.after.model_dump(mode="json"),
            "corrections": [
                correction.model_dump(mode="json") | {"update": trained.used_by.get(correction.id)}
                for correction in trained.corrections
            ],
            "experts": [asdict(one) for one in outcome.worth],
            "num_updates": trained.num_updates,
            "training_seconds": trained.training_seconds,
            "notes": outcome.notes,
        }
    )
    return document
