"""What the sandbox counts, and who may read it."""

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from sandbox.server.app import create_app
from sandbox.settings import SandboxSettings
from tests.sandbox.conftest import SandboxServer

METRICS_KEY = "only-for-metrics"


def read(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every sample by name and label values."""
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def far_client(settings: SandboxSettings) -> TestClient:
    """A caller on another machine, of a sandbox that is not started."""
    return TestClient(create_app(settings), client=("192.0.2.7", 5000))


def test_from_another_machine_metrics_need_a_key() -> None:
    settings = SandboxSettings.model_validate({"api_key": "key", "metrics_key": METRICS_KEY})
    http = far_client(settings)
    assert http.get("/metrics").status_code == 401
    assert http.get("/metrics", headers={"Authorization": f"Bearer {METRICS_KEY}"}).status_code == 200
    assert http.get("/metrics", headers={"Authorization": "Bearer key"}).status_code == 200


def test_the_key_for_metrics_runs_nothing() -> None:
    settings = SandboxSettings.model_validate({"api_key": "key", "metrics_key": METRICS_KEY})
    http = far_client(settings)
    answer = http.post("/v1/run", json={"code": "1"}, headers={"Authorization": f"Bearer {METRICS_KEY}"})
    assert answer.status_code == 401


@pytest.mark.integration
@pytest.mark.namespaces
def test_runs_verdicts_slots_and_requests_are_counted() -> None:
    with SandboxServer(key="key", arguments=("--slots", "2")) as server:
        server.client.post("/v1/run", json={"code": "print(1)"})
        server.client.post("/v1/run", json={"code": "raise SystemExit(3)"})
        server.client.post(
            "/v1/judge",
            json={
                "solution": "print(input())",
                "tests": {
                    "kind": "stdio",
                    "cases": [{"stdin": "1", "stdout": "1"}, {"stdin": "1", "stdout": "2"}],
                },
            },
        ).raise_for_status()
        found = read(httpx2.get(f"http://127.0.0.1:{server.port}/metrics", timeout=None).text)
    assert found["preceptor_sandbox_runs_total", ("ok",)] == 1
    assert found["preceptor_sandbox_runs_total", ("failed",)] == 1
    assert found["preceptor_sandbox_judgements_total", ("judged",)] == 1
    assert found["preceptor_sandbox_verdicts_total", ("passed",)] == 1
    assert found["preceptor_sandbox_slots", ()] == 2
    assert found["preceptor_sandbox_running", ()] == 0
    assert found["preceptor_http_requests_total", ("POST", "/v1/run", "200")] == 2
