"""What /metrics shows, and to whom."""

import importlib.metadata
from collections.abc import Iterator

import httpx2
import pytest
from fastapi import APIRouter, FastAPI
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from services.http import metrics
from tests.serving import serve


def make_app(registry: CollectorRegistry, key: str = "") -> FastAPI:
    app = FastAPI()

    @app.get("/things/{thing}")
    def show(thing: int) -> int:
        return thing

    @app.get("/broken")
    def fail() -> None:
        raise RuntimeError

    router = APIRouter(prefix="/v1")

    @router.get("/parts/{part:path}/edge")
    def show_part(part: str) -> str:
        return part

    for prefix in ("/one", "/two"):
        app.include_router(router, prefix=prefix)

    metrics.install(app, registry, key)
    return app


@pytest.fixture
def url() -> Iterator[str]:
    """An app with routes, served on loopback."""
    with serve(make_app(metrics.make_registry())) as where:
        yield where


def test_the_version_is_told_where_the_package_runs_from_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_nothing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    installed = importlib.metadata.version("preceptor")
    monkeypatch.setattr(importlib.metadata, "version", find_nothing)
    assert f'preceptor_build_info{{version="{installed}"}} 1.0' in generate_latest(metrics.make_registry()).decode()


def scrape(url: str, key: str = "") -> dict[str, Metric]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    response = httpx2.get(f"{url}/metrics", headers=headers, timeout=None)
    assert response.status_code == 200, response.text
    return {family.name: family for family in text_string_to_metric_families(response.text)}


def value(families: dict[str, Metric], name: str, **labels: str) -> float | None:
    """The sample with these labels; None where there is none."""
    for family in families.values():
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return None


def test_requests_are_counted_by_the_template_of_their_route(url: str) -> None:
    for thing in ("1", "2", "no-number"):
        httpx2.get(f"{url}/things/{thing}", timeout=None)
    found = scrape(url)
    total = "preceptor_http_requests_total"
    assert value(found, total, method="GET", route="/things/{thing}", status="200") == 2
    assert value(found, total, method="GET", route="/things/{thing}", status="422") == 1
    assert value(found, "preceptor_http_request_seconds_count", method="GET", route="/things/{thing}") == 3


def test_a_router_included_under_a_prefix_is_counted_under_it(url: str) -> None:
    httpx2.get(f"{url}/one/v1/parts/a/b/edge", timeout=None)
    httpx2.get(f"{url}/two/v1/parts/c/edge", timeout=None)
    routes = {sample.labels["route"] for sample in scrape(url)["preceptor_http_requests"].samples}
    assert routes == {"/one/v1/parts/{part:path}/edge", "/two/v1/parts/{part:path}/edge"}


def test_addresses_and_methods_nobody_serves_make_one_series(url: str) -> None:
    for path in ("/a", "/b/c", "/d?e=f"):
        httpx2.get(f"{url}{path}", timeout=None)
        httpx2.request("PURGE", f"{url}{path}")
    total = scrape(url)["preceptor_http_requests"]
    labels = [sample.labels for sample in total.samples if sample.name.endswith("_total")]
    assert {label["route"] for label in labels} == {"unmatched"}
    assert {label["method"] for label in labels} == {"GET", "other"}


def test_a_handler_that_raises_counts_as_a_500() -> None:
    registry = metrics.make_registry()
    with TestClient(make_app(registry), raise_server_exceptions=False) as http:
        http.get("/broken")
    wanted = {"method": "GET", "route": "/broken", "status": "500"}
    assert registry.get_sample_value("preceptor_http_requests_total", wanted) == 1


def test_a_scrape_is_not_itself_counted(url: str) -> None:
    scrape(url)
    assert value(scrape(url), "preceptor_http_requests_total", method="GET", route="/metrics", status="200") is None


def test_from_another_machine_metrics_need_the_key() -> None:
    registry = metrics.make_registry()
    with TestClient(make_app(registry, "secret"), client=("192.0.2.7", 5000)) as http:
        assert http.get("/metrics").status_code == 403
        assert http.get("/metrics", headers={"Authorization": "Bearer wrong"}).status_code == 403
        assert http.get("/metrics", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_without_a_key_set_no_other_machine_gets_metrics() -> None:
    with TestClient(make_app(metrics.make_registry()), client=("192.0.2.7", 5000)) as http:
        assert http.get("/metrics", headers={"Authorization": "Bearer "}).status_code == 403


def test_a_process_without_a_server_serves_its_metrics_on_a_port_of_its_own() -> None:
    registry = metrics.make_registry()
    Counter("preceptor_example", "An example.", registry=registry).inc(3)
    with metrics.MetricsServer(registry, "127.0.0.1:0", "") as server:
        assert value(scrape(f"http://127.0.0.1:{server.port}"), "preceptor_example_total") == 3
        assert httpx2.get(f"http://127.0.0.1:{server.port}/", timeout=None).status_code == 404


def test_where_no_place_is_named_nothing_listens() -> None:
    assert metrics.open_server(metrics.make_registry(), "", "") is None
