"""`preceptor demo`: the whole loop once, on the starter tasks, within a time limit.

It acts as a user: everything goes through the api with the owner's key. Phases are bounded; the time of the final
measurement is reserved from the start, so a slow machine trains less rather than not measuring.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from uuid import UUID

from pydantic import JsonValue, TypeAdapter

from services.cli.client import ApiClient, ApiProblem
from services.cli.commands import measuring
from services.cli.output import measures, report
from services.cli.output.outcome import DemoOutcome, Trained
from services.cli.output.progress import Progress
from services.contracts.base import JsonObject
from services.contracts.corrections import (
    Correction,
    CorrectionCreate,
    CorrectionItem,
    CorrectionOutcome,
    CorrectionSkip,
    CorrectionStatus,
    CorrectionSubmit,
)
from services.contracts.evaluations import (
    Evaluation,
    EvaluationCreate,
    EvaluationDetail,
    EvaluationStatus,
)
from services.contracts.measurements import Measurement, MeasurementCreate, MeasurementsAsked, say_about
from services.contracts.rollouts import Purpose, RolloutStatus
from services.contracts.sources import ContextSource
from services.contracts.status import LoopState, LoopSwitch, Status
from services.contracts.tasks import COMMAND_DOMAIN, Split, Task
from services.contracts.updates import UpdateDetail

POLL_SECONDS = 1.0
FINAL_MARGIN = 1.25  # the last measurement may take this much longer than the first: versions switch, caches are cold
LEAST_TRAINING = 1 / 3  # of the minutes, however long the measurements before it took
MEASURING = 1 / 10  # of the minutes, for what teaches before training; what is left goes on beside it


@dataclass(frozen=True)
class DemoPlan:
    """How much the demo does. The defaults fit two cores in about 15 minutes."""

    minutes: float = 15.0
    num_updates: int = 16
    num_eval_tasks: int | None = 15
    num_samples: int = 8
    seed: int = 0


def run(api: ApiClient, plan: DemoPlan, progress: Progress, check: Callable[[], None], kept: str) -> DemoOutcome:
    """Measure, train, correct, measure again. `check` raises when a process of the stack has crashed.

    kept: the report's line about where the data is.

    `api` itself waits while the api is unreachable (`ApiClient.wait_with`).
    """
    deadline = time.monotonic() + plan.minutes * 60
    wanted = EvaluationCreate(
        split=Split.HELDOUT, num_tasks=plan.num_eval_tasks, num_samples=plan.num_samples, seed=plan.seed
    )
    began = time.monotonic()
    before = _evaluate(api, wanted, progress, check, "held-out tasks, before")
    eval_seconds = time.monotonic() - began
    progress.say(measures.scores_line("before", before))

    for one in _measure(api, plan, progress, check):
        progress.say(say_about(one))
    until = max(deadline - eval_seconds * FINAL_MARGIN, time.monotonic() + plan.minutes * 60 * LEAST_TRAINING)
    trained = train(api, plan, progress, check, until)
    after = _evaluate(api, wanted, progress, check, "held-out tasks, after")
    updates = [
        api.get(f"/v1/updates/{number}", UpdateDetail)
        for number in range(trained.first_update, trained.first_update + trained.num_updates)
    ]
    measurements = [Measurement.model_validate(one) for one in api.pages("/v1/measurements", 1000)]
    outcome = DemoOutcome(before, after, measurements, trained, updates, trained.notes)
    for line in measures.summary(outcome, updates, api.get("/v1/status", Status), kept):
        progress.say(line)
    return outcome


def _evaluate(
    api: ApiClient, wanted: EvaluationCreate, progress: Progress, check: Callable[[], None], label: str
) -> EvaluationDetail:
    started = api.post("/v1/evaluations", wanted, Evaluation)
    return wait_for_evaluation(api, started.id, progress, check, label)


def _measure(api: ApiClient, plan: DemoPlan, progress: Progress, check: Callable[[], None]) -> list[Measurement]:
    """Whether references and the policy's own successes teach, as far as a part of the minutes tells."""
    asked: list[Measurement] = []
    for source in (ContextSource.REFERENCE, ContextSource.OWN_SUCCESS):
        wanted = MeasurementCreate(source=source)
        try:
            asked += api.post("/v1/measurements", wanted, MeasurementsAsked).measurements
        except ApiProblem as problem:  # no expert gives it
            if problem.status_code != 422:
                raise
    return measuring.wait_for(api, asked, progress, check, time.monotonic() + plan.minutes * 60 * MEASURING)


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
    """Let the loop run until its updates are done or the time is up; correct one answer on the way.

    deadline: in seconds of `time.monotonic`.
    """
    start = api.get("/v1/status", Status)
    trained = Trained(first_update=start.num_updates + 1)
    goal = start.num_updates + plan.num_updates
    began = time.monotonic()
    api.post("/v1/loop", LoopSwitch(sampling=True, training=True, max_updates=goal), LoopState)
    seen, rates, is_late = start.num_updates, report.Rates(), False
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
            if trained.correction is None:
                trained.correction = _correct_one(api, progress, status)
            elif trained.correction_update is None:
                trained.correction_update = _find_update(api, trained.correction.id, progress)
            if status.num_updates >= goal:
                break
            if time.monotonic() > deadline:
                is_late = True
                progress.say("The time is up; the current update is finished first.")
                break
            time.sleep(POLL_SECONDS)
    api.post("/v1/loop", LoopSwitch(sampling=False, training=False), LoopState)
    _await_quiet(api, check)
    if trained.correction is not None and trained.correction_update is None:
        trained.correction_update = _find_update(api, trained.correction.id, progress)
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


def _correct_one(api: ApiClient, progress: Progress, status: Status) -> CorrectionOutcome | None:
    """Take one item from the human queue and correct it as a person would who knows the right answer."""
    try:
        item = api.post("/v1/corrections/claim", None, CorrectionItem)
    except ApiProblem as problem:
        if problem.status_code != 404:
            raise
        if not status.corrections.get(CorrectionStatus.OPEN.value):
            _ask_for_correction(api)  # only some groups are shown to people unasked
        return None
    rollout = api.get_json(f"/v1/rollouts/{item.rollout_id}")
    task = api.get(f"/v1/tasks/{rollout['task_id']}", Task)
    right = task.metadata.get("answer" if task.domain == COMMAND_DOMAIN else "reference")
    if not isinstance(right, str) or not right:
        reason = f"task {task.key} has no right answer that the demo could correct with"
        api.post(f"/v1/corrections/{item.id}/skip", CorrectionSkip(reason=reason), CorrectionOutcome)
        progress.say(f"correction {item.id} skipped: {reason}")
        return None
    decision = (
        CorrectionSubmit(verdict="fine")
        if right.splitlines() == item.rollout_text.splitlines()
        else CorrectionSubmit(verdict="corrected", text=right, comment="This is how the answer should look.")
    )
    submitted = api.post(f"/v1/corrections/{item.id}/submit", decision, CorrectionOutcome)
    progress.say(f"correction {item.id} submitted for task {task.key}, by the demo in place of a person")
    return submitted


def _ask_for_correction(api: ApiClient) -> None:
    """Put the newest settled train rollout in the human queue; the next claim finds it."""
    query = {"purpose": Purpose.TRAIN.value, "status": RolloutStatus.READY.value}
    for item in api.pages("/v1/rollouts", 1, query):
        api.post("/v1/corrections", CorrectionCreate(rollout_id=UUID(str(item["id"]))), Correction)


def _find_update(api: ApiClient, correction_id: UUID, progress: Progress) -> int | None:
    became = api.get(f"/v1/corrections/{correction_id}", CorrectionOutcome)
    if not became.update_numbers:
        return None
    number = became.update_numbers[0]
    progress.say(f"correction {correction_id} was used by update {number}: `preceptor updates show {number}`")
    return number


def as_document(plan: DemoPlan, outcome: DemoOutcome) -> JsonObject:
    """The demo as one JSON document: plan, measurements and updates."""
    trained = outcome.trained
    adapter = TypeAdapter(dict[str, JsonValue])
    return adapter.validate_python(
        {
            "plan": asdict(plan),
            "before": outcome.before.model_dump(mode="json"),
            "after": outcome.after.model_dump(mode="json"),
            "measurements": [one.model_dump(mode="json") for one in outcome.measurements],
            "correction": trained.correction.model_dump(mode="json") if trained.correction is not None else None,
            "correction_update": trained.correction_update,
            "num_updates": trained.num_updates,
            "training_seconds": trained.training_seconds,
            "notes": outcome.notes,
        }
    )
