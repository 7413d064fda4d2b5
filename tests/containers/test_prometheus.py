"""What Prometheus is given in containers: targets that are there, and alerts about figures that are served."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest
import yaml

from services.store.views.under_way import LIVE

REPOSITORY: Final = Path(__file__).parents[2]
CONTAINERS: Final = REPOSITORY / "containers"
COMPOSE: Final = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]
TARGETS: Final = {
    (name, group["port"])
    for job in yaml.safe_load((CONTAINERS / "prometheus.yaml").read_text())["scrape_configs"]
    for group in job["dns_sd_configs"]
    for name in group["names"]
}
RULES: Final = yaml.safe_load((CONTAINERS / "alerts.yaml").read_text())["groups"][0]["rules"]


def find_figures() -> set[str]:
    """Every name that our sources give to a figure, and what Prometheus calls the parts of it."""
    sources = [path for folder in ("services", "trainer", "sandbox") for path in (REPOSITORY / folder).rglob("*.py")]
    names = {name for path in sources for name in re.findall(r'"(preceptor_\w+)"', path.read_text())}
    return names | {f"{name}_total" for name in names} | {f"preceptor_{noun}" for noun in LIVE}


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_an_alert_is_about_a_figure_that_is_served_and_says_what_it_means(
    rule: dict[str, str | dict[str, str]],
) -> None:
    used = set(re.findall(r"preceptor_\w+", str(rule["expr"]))) | ({"up"} & set(re.findall(r"\w+", str(rule["expr"]))))
    assert used
    assert used <= find_figures() | {"up"}  # which Prometheus makes itself
    assert isinstance(rule["annotations"], dict)
    assert rule["annotations"]["summary"]


@pytest.mark.parametrize(("name", "port"), sorted(TARGETS))
def test_a_target_is_a_container_that_listens_there_on_a_network_of_prometheus(name: str, port: int) -> None:
    service = COMPOSE[name]
    assert set(service["networks"]) & set(COMPOSE["prometheus"]["networks"])
    own = str(service.get("environment", {})) + str(service.get("healthcheck"))
    assert re.search(rf"(0\.0\.0\.0|127\.0\.0\.1):{port}\b", own)
    assert "secret-metrics:/run/secrets/metrics:ro" in service["volumes"]


def test_everyone_who_has_figures_is_a_target() -> None:
    having = {name for name, service in COMPOSE.items() if "secret-metrics" in str(service.get("volumes"))}
    assert having - {"secrets", "prometheus", "policy-gpu"} == {
        name for name, _ in TARGETS
    }  # that one is called policy


def test_prometheus_takes_the_alerts_and_raises_them_when_it_should() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("there is no promtool (Debian: apt-get install prometheus)")
    file = str(Path(__file__).with_name("alerts_tested.yaml"))
    checked = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
