"""All of docker-compose.yml on a real engine: healthy from nothing, trains, loses nothing when containers are killed,
and when everything is taken down and brought up again.

Needs an engine with docker compose, and what the images are made of. Takes minutes; the first build more.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from pydantic import TypeAdapter

from services.cli.client import ApiClient, ApiProblem, ApiUnreachable
from services.contracts.base import JsonObject
from services.contracts.status import LoopState, LoopSwitch, Status
from services.contracts.tasks import TaskImport, TaskImported
from services.contracts.updates import UpdateDetail
from services.policy.model.tiny import make_tiny_policy
from tests.e2e.environment import SETTINGS
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(3600)]

REPOSITORY: Final = Path(__file__).parents[2]
UPDATE_SECONDS: Final = 900.0
PORTS: Final = {"api": 8700, "policy": 8710, "sandbox": 8130, "experts": 8730}
RUNNING: Final = {"postgres", "redis", "sandbox", "policy", "experts", "api", "worker", "beat", "trainer"}
OVERRIDE: Final = """
services:
  model: {{environment: [PRECEPTOR_MODEL=/own], volumes: ["{model}:/own:ro"]}}
  policy: {{volumes: ["{model}:/own:ro"]}}
  trainer: {{volumes: ["{model}:/own:ro"]}}
"""
"""A model of one's own, as docs/containers.md says: here a tiny random one, which learns nothing in seconds."""

_objects = TypeAdapter(list[JsonObject])


@dataclass
class Installation:
    """One compose project of the test's own."""

    project: str
    port: int
    folder: Path

    def compose(self, *arguments: str) -> str:
        """What docker compose prints. Raises CalledProcessError."""
        environment = os.environ | {
            "PRECEPTOR_PORT": str(self.port),
            "PRECEPTOR_ENV_FILE": str(self.folder / "settings.env"),
            "PRECEPTOR_THREADS": "1",
        }
        files = ["--file", "docker-compose.yml", "--file", str(self.folder / "override.yaml")]
        command = ["docker", "compose", *files, "--project-name", self.project, "--progress", "plain", *arguments]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, text=True, capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-6000:]}")
        return done.stdout

    def up(self, *arguments: str) -> None:
        try:
            self.compose("up", "--build", "--wait", *arguments)
        except RuntimeError as error:
            raise RuntimeError(f"{error}\n{self.compose('logs', '--no-color', '--tail', '30')}") from None

    def containers(self) -> list[JsonObject]:
        lines = self.compose("ps", "--format", "json").splitlines()
        return _objects.validate_python([json.loads(line) for line in lines])

    def api(self) -> ApiClient:
        key = self.compose("run", "--rm", "-T", "cli", "key").strip()
        return ApiClient(f"http://127.0.0.1:{self.port}", key)

    def sql(self, query: str) -> int:
        """A count, as the database's own superuser sees it."""
        shell = ["exec", "-T", "postgres", "psql", "-U", "postgres", "-d", "preceptor", "-Atc", query]
        return int(self.compose(*shell))


def look_for_engine() -> str:
    """What is missing to run containers, or nothing."""
    if shutil.which("docker") is None:
        return "there is no docker"
    for command in (["docker", "info", "--format", "{{.ServerVersion}}"], ["docker", "compose", "version"]):
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
        if asked.returncode:
            return (asked.stderr or asked.stdout).strip().splitlines()[0]
    for image in ("python:3.11-slim", "postgres:16-alpine", "redis:7-alpine"):
        if subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode:
            return f"the image {image} is not here: docker pull {image}"
    return ""


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    """A project that is removed afterwards with its volumes and images."""
    if problem := look_for_engine():
        pytest.skip(f"needs a Docker engine: {problem}")
    lent = lend_wheels()
    model = make_tiny_policy(tmp_path / "model")
    for path in (model, *model.iterdir()):  # the containers' user is another one
        path.chmod(0o755)
    (tmp_path / "override.yaml").write_text(OVERRIDE.format(model=model))
    (tmp_path / "settings.env").write_text("".join(f"{name}={value}\n" for name, value in SETTINGS.items()))
    made = Installation(f"preceptor-e2e-{os.getpid()}", free_port(), tmp_path)
    try:
        yield made
    finally:
        made.compose("--profile", "*", "down", "--volumes", "--rmi", "local", "--remove-orphans")
        for path in lent:
            path.unlink()


def lend_wheels() -> list[Path]:
    """Builds of torch that this machine's pip finds in a folder are laid where the images' builds find them too."""
    folders = [Path(place) for place in os.environ.get("PIP_FIND_LINKS", "").split() if Path(place).is_dir()]
    found = [wheel for folder in folders for wheel in folder.glob("torch-*.whl")]
    targets = {wheel: REPOSITORY / "containers" / "wheels" / wheel.name for wheel in found}
    missing = {wheel: target for wheel, target in targets.items() if not target.exists()}
    return [Path(shutil.copyfile(wheel, target)) for wheel, target in missing.items()]


def wait_for(what: str, is_so: Callable[[], bool], seconds: float = UPDATE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if is_so():
                return
        except (ApiProblem, ApiUnreachable) as error:
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not come: {error}") from error
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(1)


def import_tasks(api: ApiClient) -> None:
    rows = [
        TypeAdapter(JsonObject).validate_python(
            {
                "key": f"sum-{i}",
                "domain": "math",
                "messages": [{"role": "user", "content": f"What is {i} + {i}?"}],
                "metadata": {"answer": str(2 * i), "reference": str(2 * i)},
            }
        )
        for i in range(12)
    ]
    assert api.post("/v1/tasks/import", TaskImport(tasks=rows), TaskImported).num_created == 12


def train_until(api: ApiClient, number: int) -> None:
    api.post("/v1/loop", LoopSwitch(sampling=True, training=True, max_updates=number), LoopState)
    wait_for(f"update {number}", lambda: api.get("/v1/status", Status).num_updates >= number)


def test_a_clean_checkout_trains_survives_kills_and_is_found_again_after_down_and_up(
    installation: Installation,
) -> None:
    installation.up()
    containers = installation.containers()
    assert {str(each["Service"]) for each in containers} == RUNNING
    assert {str(each["Health"]) for each in containers} == {"healthy"}

    for service, port in PORTS.items():
        ask = f'import urllib.request as r; print(r.urlopen("http://127.0.0.1:{port}/metrics").status)'
        assert installation.compose("exec", "-T", service, "python3", "-c", ask).strip() == "200", service

    with installation.api() as api:
        import_tasks(api)
        train_until(api, 1)

        # a worker that dies in the middle of its work loses nothing
        api.post("/v1/loop", LoopSwitch(sampling=True, training=True, max_updates=2), LoopState)
        installation.compose("kill", "worker", "trainer")
        installation.up("--scale", "worker=3")
        assert [each["Service"] for each in installation.containers()].count("worker") == 3
        wait_for("update 2", lambda: api.get("/v1/status", Status).num_updates >= 2)
        details = [api.get(f"/v1/updates/{number}", UpdateDetail) for number in (1, 2)]
        used = [lesson.lesson_id for update in details for lesson in update.lessons]
        assert len(used) == len(set(used)) > 0
        before = api.get("/v1/status", Status)

    # one rollout can be followed through the logs, from its draw to its update
    rollout = str(details[0].lessons[0].rollout_id)
    lines = [line.partition("|")[2] for line in installation.compose("logs", "--no-color").splitlines()]
    events = [json.loads(line)["event"] for line in lines if rollout in line]
    assert {"rollout drawn", "answered", "consultation settled", "lesson used"} <= set(events)

    # everything is there again, the owner's key among it
    installation.compose("down")
    installation.up()
    with installation.api() as api:
        wait_for("the api", lambda: api.get("/v1/status", Status).num_updates >= 2)
        after = api.get("/v1/status", Status)
        assert (after.lineage, after.tasks, after.num_updates) == (before.lineage, before.tasks, before.num_updates)
        assert installation.sql("SELECT count(*) FROM consultation WHERE status = 'dead'") == 0
        train_until(api, 3)
