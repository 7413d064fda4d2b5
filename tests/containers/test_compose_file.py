"""What docker-compose.yml says of every container, read without an engine."""

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest
import yaml
from pydantic import JsonValue, TypeAdapter

REPOSITORY: Final = Path(__file__).parents[2]
ONCE: Final = ("secrets", "migrate", "model", "init")
"""They run before others and end."""
TOOLS: Final = ("cli", "operator")
VARIABLE: Final = re.compile(r"\$\{\w+:?-([^}]*)\}")

Service = Mapping[str, JsonValue]


def read_services() -> dict[str, Service]:
    """Every service, of all profiles, with the defaults of its variables."""
    text = VARIABLE.sub(r"\1", (REPOSITORY / "docker-compose.yml").read_text())
    return TypeAdapter(dict[str, Service]).validate_python(yaml.safe_load(text)["services"])


SERVICES: Final = read_services()
every_service = pytest.mark.parametrize("name", SERVICES)


def find_user(target: str) -> str:
    """The user a target of the Dockerfile runs as, its own or that of the stage it is made from."""
    users: dict[str, str] = {}
    stage = ""
    for line in (REPOSITORY / "Dockerfile").read_text().splitlines():
        if begun := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            stage = begun[2]
            users[stage] = users.get(begun[1], "root")
        elif given := re.fullmatch(r"USER (\S+)", line):
            users[stage] = given[1]
    return users[target]


def target_of(service: Service) -> str:
    build = service.get("build", {"target": "services"})
    assert isinstance(build, dict)
    return str(build["target"])


def list_of(service: Service, key: str) -> list[str]:
    found = service.get(key, [])
    return [str(each) for each in found] if isinstance(found, list | dict) else [str(found)]


def secrets_of(name: str) -> set[str]:
    return {volume.split(":")[0] for volume in list_of(SERVICES[name], "volumes") if volume.startswith("secret-")}


@every_service
def test_no_container_runs_as_root(name: str) -> None:
    user = str(SERVICES[name].get("user") or find_user(target_of(SERVICES[name])))
    assert user.split(":")[0] not in ("root", "0")


@every_service
def test_a_container_has_no_capability_and_gains_no_privilege(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert not {"cap_add", "privileged", "devices", "pid", "ipc", "userns_mode"} & service.keys()
    assert "no-new-privileges:true" in list_of(service, "security_opt")


@every_service
def test_a_container_cannot_write_its_own_files(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert all("noexec,nosuid,nodev" in mount for mount in list_of(service, "tmpfs"))
    assert not [volume for volume in list_of(service, "volumes") if volume.startswith((".", "/", "~"))]


@every_service
def test_a_container_has_limits_of_memory_processes_and_logs(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"\d+[mg]", str(service["mem_limit"]))
    assert isinstance(service["pids_limit"], int)
    logging = service["logging"]
    assert isinstance(logging, dict)
    assert logging["options"] == {"max-size": "20m", "max-file": "5"}


@every_service
def test_what_goes_on_running_tells_its_health_and_is_started_again(name: str) -> None:
    service = SERVICES[name]
    runs_on = name not in ONCE + TOOLS
    assert ("healthcheck" in service) is runs_on
    assert service["restart"] == ("unless-stopped" if runs_on else "no")


def test_only_the_api_has_a_port_and_prometheus_when_asked_for_and_only_on_loopback() -> None:
    published = {name: list_of(service, "ports") for name, service in SERVICES.items() if "ports" in service}
    assert published == {"api": ["127.0.0.1:8700:8700"], "prometheus": ["127.0.0.1:9090:9090"]}
    assert SERVICES["prometheus"]["profiles"] == ["metrics"]


def test_only_the_network_of_those_who_ask_elsewhere_leads_out() -> None:
    networks = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["networks"]
    assert [name for name, options in networks.items() if not (options or {}).get("internal")] == ["outside"]
    outside = {name for name, service in SERVICES.items() if "outside" in list_of(service, "networks")}
    assert outside == {"api", "worker", "model", "init", "cli", "operator", "prometheus"}


def test_the_sandbox_meets_nobody_but_the_experts_who_call_it_and_who_reads_its_figures() -> None:
    assert list_of(SERVICES["sandbox"], "networks") == ["sandbox"]
    assert {name for name, service in SERVICES.items() if "sandbox" in list_of(service, "networks")} == {
        "sandbox",
        "experts",
        "prometheus",
        "operator",
    }


def test_a_container_sees_the_secrets_it_needs_and_no_other() -> None:
    assert {name: secrets_of(name) for name in SERVICES if name != "secrets"} == {
        "migrate": {"secret-database", "secret-owner"},
        "model": set(),
        "init": {"secret-database", "secret-policy", "secret-experts", "secret-owner"},
        "postgres": {"secret-database"},
        "redis": {"secret-broker"},
        "sandbox": {"secret-sandbox", "secret-metrics"},
        "policy": {"secret-policy", "secret-metrics"},
        "policy-gpu": {"secret-policy", "secret-metrics"},
        "experts": {"secret-database", "secret-policy", "secret-sandbox", "secret-experts", "secret-metrics"},
        "api": {"secret-database", "secret-broker", "secret-policy", "secret-metrics"},
        "worker": {"secret-database", "secret-broker", "secret-policy", "secret-metrics"},
        "beat": {"secret-broker"},
        "trainer": {"secret-database", "secret-broker", "secret-policy", "secret-metrics"},
        "trainer-gpu": {"secret-database", "secret-broker", "secret-policy", "secret-metrics"},
        "prometheus": {"secret-metrics"},
        "cli": {"secret-owner"},
        "operator": {f"secret-{name}" for name in ("database", "broker", "policy", "sandbox", "experts", "owner")},
    }


def test_secrets_are_written_only_by_who_makes_them() -> None:
    writers = {
        name
        for name, service in SERVICES.items()
        for volume in list_of(service, "volumes")
        if volume.startswith("secret-") and not volume.endswith(":ro")
    }
    assert writers == {"secrets", "migrate"}


def test_every_image_is_built_here_from_four_that_are_official() -> None:
    named = {name: service["image"] for name, service in SERVICES.items() if "image" in service}
    assert named == {"cli": "preceptor-api"}
    assert target_of(SERVICES["api"]) == "services"
    bases = re.findall(r"^FROM (\S+) AS", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE)
    assert {base for base in bases if ":" in base} == {
        "python:3.11-slim",
        "postgres:16-alpine",
        "redis:7-alpine",
        "prom/prometheus:v3.5.0",
    }


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_compose_takes_the_file_in_every_profile(profile: str) -> None:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("needs docker compose")
    asked = subprocess.run(
        ["docker", "compose", "--profile", profile, "config", "--services"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    models = {"cpu": {"policy", "trainer"}, "gpu": {"policy-gpu", "trainer-gpu"}}[profile]
    assert {name for name in asked.stdout.split() if name.startswith(("policy", "trainer"))} == models
