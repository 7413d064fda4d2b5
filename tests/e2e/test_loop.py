"""The whole loop as a user starts it: real processes, HTTP, Celery, sandbox and trainer, with a tiny random policy."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import psutil
import pytest

from services.cli.client import ApiClient, ApiProblem, ApiUnreachable
from services.contracts.corrections import (
    Correction,
    CorrectionCreate,
    CorrectionItem,
    CorrectionOutcome,
    CorrectionSubmit,
)
from services.contracts.evaluations import Evaluation, EvaluationCreate, EvaluationDetail, EvaluationStatus
from services.contracts.policies import PolicyVersion
from services.contracts.status import LoopState, LoopSwitch, Status
from services.contracts.updates import TermKind, UpdateDetail
from services.local.credentials import read_credentials
from services.local.layout import Layout
from services.local.supervise.run_state import RunState, read_running
from services.policy.model.tiny import make_tiny_policy
from tests.e2e.environment import loop_environment

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(900)]

PEOPLE = {TermKind.LABEL, TermKind.IMITATION}


def tasks() -> list[dict[str, object]]:
    """Sums with a reference, functions with tests, and some held out."""
    rows: list[dict[str, object]] = []
    for i in range(8):
        rows.append(
            {
                "key": f"sum-{i}",
                "domain": "math",
                "family": "sums",
                "messages": [{"role": "user", "content": f"{i} + {i}?"}],
                "metadata": {"answer": str(2 * i), "reference": str(2 * i)},
            }
        )
        rows.append(
            {
                "key": f"add-{i}",
                "domain": "code/python",
                "family": "adders",
                "messages": [{"role": "user", "content": f"def add(x) adds {i}"}],
                "metadata": {
                    "tests": {"entry_point": "add", "cases": [{"args": [1], "expected": 1 + i}]},
                    "reference": f"```python\ndef add(x):\n    return x + {i}\n```",
                },
            }
        )
    for i in range(4):
        rows.append(
            {
                "key": f"held-{i}",
                "domain": "math",
                "family": f"held-{i}",
                "split": "heldout",
                "messages": [{"role": "user", "content": f"{i} - {i}?"}],
                "metadata": {"answer": "0"},
            }
        )
    return rows


@dataclass
class Running:
    """A stack that a command started."""

    home: Path
    api: ApiClient
    process: subprocess.Popen[bytes]
    log: Path

    def cli(self, *arguments: str) -> str:
        """What the command prints."""
        return preceptor(self.home, *arguments)

    def status(self) -> Status:
        """The loop's state; what the command said, when it has ended."""
        try:
            return self.api.get("/v1/status", Status)
        except ApiUnreachable:
            self.process.wait(60)
            raise AssertionError(self.log.read_text()) from None


def preceptor(home: Path, *arguments: str) -> str:
    """Run one command of the command line."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("preceptor")), *arguments, "--home", str(home)],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout


def wait_for(what: str, condition: Callable[[], bool], seconds: float = 240) -> None:
    """Return when the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still waiting for {what} after {seconds} s"
        time.sleep(0.5)


@pytest.fixture
def home(server_folder: Path) -> Path:
    """A data folder."""
    return server_folder / "loop"


@pytest.fixture
def start(home: Path, server_folder: Path) -> Iterator[Callable[[], Running]]:
    """A function that runs `preceptor up --paused` on the data folder and returns when its api answers."""
    model = make_tiny_policy(server_folder / "tiny")
    started: list[subprocess.Popen[bytes]] = []
    clients: list[ApiClient] = []

    def up() -> Running:
        path = server_folder / "up.log"
        mark = path.stat().st_size if path.exists() else 0
        command = [str(Path(sys.executable).with_name("preceptor")), "up", "--paused"]
        command += ["--home", str(home), "--model", str(model), "--threads", "1"]
        with path.open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=loop_environment())
        started.append(process)
        layout = Layout(home)

        def is_up() -> bool:
            assert process.poll() is None, path.read_text()
            return "paused: no sampling" in path.read_text()[mark:]

        wait_for("the stack", is_up)
        credentials = read_credentials(layout)
        assert credentials is not None
        clients.append(ApiClient(credentials.api_url, credentials.api_key))
        return Running(home, clients[-1], process, path)

    yield up
    for client in clients:
        client.close()
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(120)


def state_of(home: Path) -> RunState:
    """What runs on the data folder."""
    state = read_running(Layout(home))
    assert state is not None
    return state


def test_the_loop_turns_feedback_into_policy_versions_and_survives_a_restart(
    start: Callable[[], Running], home: Path, tmp_path: Path
) -> None:
    stack = start()
    assert not stack.status().loop.sampling
    assert not stack.status().loop.training
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in tasks()))
    assert json.loads(stack.cli("tasks", "import", str(file), "--json")) == {"num_created": 20, "num_existing": 0}
    assert json.loads(stack.cli("tasks", "import", str(file), "--json")) == {"num_created": 0, "num_existing": 20}

    # An evaluation is judged by the verifiers, and trains nothing.
    assert evaluate(stack.api).policy_version == "base"
    assert stack.status().lessons == {}

    # The loop: draw, ask, learn, publish.
    stack.api.post("/v1/loop", LoopSwitch(sampling=True, training=True, max_updates=3), LoopState)
    correction = correct_one(stack.api)
    wait_for("three updates", lambda: stack.status().num_updates >= 3)
    wait_for("a version of the last update", lambda: served_update(stack.api) == 3)
    details = [stack.api.get(f"/v1/updates/{number}", UpdateDetail) for number in (1, 2, 3)]
    assert any(lesson.future_nonzero for update in details for lesson in update.lessons)
    used = [lesson.lesson_id for update in details for lesson in update.lessons]
    assert len(used) == len(set(used))

    # The correction trains too, in an update that names it.
    stack.api.post("/v1/loop", LoopSwitch(sampling=True, training=True, no_end=True), LoopState)
    wait_for("the teacher's lessons", lambda: TermKind.CONDITIONED in term_kinds(stack.api))
    assert TermKind.TOPK not in term_kinds(stack.api), "a distribution has no weight before it is measured to gain"
    wait_for("the correction's update", lambda: bool(kinds_of(stack.api, correction) & PEOPLE))

    # Later rollouts come from a published version, by the same names everywhere.
    wait_for("rollouts of a new version", lambda: any(v.startswith("main-v") for v in versions_of_rollouts(stack.api)))

    # Ctrl-C leaves nothing running; the same folder goes on where it stopped.
    before = stack.status()
    pids = [p.pid for p in state_of(home).processes if p.pid is not None]
    assert preceptor(home, "down").strip() == "stopped"
    stack.process.wait(60)
    assert [
        pid for pid in pids if psutil.pid_exists(pid) and "preceptor" in " ".join(psutil.Process(pid).cmdline())
    ] == []
    assert "no stack runs" in preceptor(home, "status")
    again = start()
    assert again.status().num_updates >= before.num_updates

    # The policy server has just started with the base alone: an evaluation of the serving version waits for it.
    assert evaluate(again.api).policy_version != "base"
    again.api.post("/v1/loop", LoopSwitch(sampling=True, training=True, no_end=True), LoopState)
    wait_for("one more update", lambda: again.status().num_updates > before.num_updates)
    assert preceptor(home, "down").strip() == "stopped"


def evaluate(api: ApiClient) -> EvaluationDetail:
    """The held-out tasks measured, two answers each, all of them judged."""
    wanted = EvaluationCreate.model_validate({"split": "heldout", "num_samples": 2})
    started = api.post("/v1/evaluations", wanted, Evaluation)

    def read() -> EvaluationDetail:
        return api.get(f"/v1/evaluations/{started.id}", EvaluationDetail)

    wait_for("the evaluation", lambda: read().status is EvaluationStatus.DONE)
    found = read()
    assert {task.key: task.num_judged for task in found.results} == {f"held-{i}": 2 for i in range(4)}
    return found


def correct_one(api: ApiClient) -> UUID:
    """Claim an item of the human queue and correct it, as a person does."""
    claimed: list[CorrectionItem] = []

    def claim() -> bool:
        try:
            claimed.append(api.post("/v1/corrections/claim", None, CorrectionItem))
        except ApiProblem as problem:
            if problem.status_code != 404:
                raise
            for item in api.pages(
                "/v1/rollouts", 1, {"purpose": "train", "status": "ready"}
            ):  # not all are shown unasked
                api.post("/v1/corrections", CorrectionCreate(rollout_id=UUID(str(item["id"]))), Correction)
        return bool(claimed)

    wait_for("something to correct", claim)
    decision = CorrectionSubmit(verdict="corrected", text="it is 4", comment="add them")
    return api.post(f"/v1/corrections/{claimed[0].id}/submit", decision, CorrectionOutcome).id


def became(api: ApiClient, correction: UUID) -> CorrectionOutcome:
    """What became of a correction."""
    return api.get(f"/v1/corrections/{correction}", CorrectionOutcome)


def kinds_of(api: ApiClient, correction: UUID) -> set[TermKind]:
    """How the updates that used a correction used its rollout."""
    found = became(api, correction)
    updates = [api.get(f"/v1/updates/{number}", UpdateDetail) for number in found.update_numbers]
    lessons = [lesson for update in updates for lesson in update.lessons if lesson.rollout_id == found.rollout_id]
    return {term.kind for lesson in lessons for term in lesson.terms}


def term_kinds(api: ApiClient) -> set[TermKind]:
    """Which kinds of expert distributions the newest updates used."""
    numbers = [item["number"] for item in api.pages("/v1/updates", 50) if item["status"] == "applied"]
    updates = [api.get(f"/v1/updates/{number}", UpdateDetail) for number in numbers]
    return {term.kind for update in updates for lesson in update.lessons for term in lesson.terms}


def served_update(api: ApiClient) -> int:
    """After which update the serving version was published."""
    return api.get("/v1/policies/serving", PolicyVersion).update_number


def versions_of_rollouts(api: ApiClient) -> set[str]:
    """Which versions the newest rollouts were drawn from."""
    return {str(item["policy_version"]) for item in api.pages("/v1/rollouts", 20)}
