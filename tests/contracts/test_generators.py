"""Clients can be generated from every OpenAPI document of ours, without a warning, and they understand our errors."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast
from uuid import UUID

import pytest
from fastapi import FastAPI

from sandbox.server.app import create_app as create_sandbox
from sandbox.settings import SandboxSettings
from services.api.app import create_app
from services.experts.__main__ import build_app
from services.policy.engines.base import Engine
from services.policy.server.app import create_app as create_policy
from services.runtime.settings import Settings
from services.store.core.transaction import Store
from services.store.people import persons
from tests.api.conftest import app, broker, policy_url, settings, store, world
from tests.serving import serve

__all__ = ["app", "broker", "policy_url", "settings", "store", "world"]

PROBLEM: Final = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
OF_BODIES: Final = {"413", "422"}
Document = dict[str, Any]


@pytest.fixture(scope="module")
def documents() -> dict[str, Document]:
    """The OpenAPI document of every service."""
    return {
        "api": create_app(Settings()).openapi(),
        "experts": build_app(Settings()).openapi(),
        "policy": create_policy(cast(Engine, None), "secret").openapi(),
        "sandbox": create_sandbox(SandboxSettings()).openapi(),
    }


of_every_service = pytest.mark.parametrize("service", ["api", "experts", "policy", "sandbox"])


def references(value: object) -> Iterator[str]:
    """Every `$ref` in a part of a document."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def operations(document: Document) -> Iterator[tuple[str, Document]]:
    """Every operation of a document, with its method and path."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", operation


def generate(*command: str) -> None:
    """Run a generator; whatever it warns of is a failure."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # they format what they made with ruff
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-m", *command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path},
    )
    printed = ended.stdout + ended.stderr
    assert ended.returncode == 0, printed
    assert "warning" not in printed.lower(), printed


@of_every_service
def test_every_reference_leads_to_a_component(service: str, documents: dict[str, Document]) -> None:
    document = documents[service]
    components = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(references(document)) <= components


@of_every_service
def test_every_error_that_a_route_names_is_a_problem_document(service: str, documents: dict[str, Document]) -> None:
    for name, operation in operations(documents[service]):
        errors = {status: told for status, told in operation["responses"].items() if status >= "400"}
        assert "500" in errors, name
        assert [told.get("content") for told in errors.values()] == [PROBLEM] * len(errors), name
        if "requestBody" in operation:
            assert errors.keys() >= OF_BODIES, name
    assert "HTTPValidationError" not in documents[service]["components"]["schemas"]


@of_every_service
def test_models_are_generated_without_a_warning(
    service: str, documents: dict[str, Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, made = tmp_path / f"{service}.json", tmp_path / f"models_of_{service}.py"
    source.write_text(json.dumps(documents[service]))
    form = [
        "--input-file-type",
        "openapi",
        "--output-model-type",
        "pydantic_v2.BaseModel",
        "--formatters",
        "builtin",
        "--use-annotated",
    ]
    generate("datamodel_code_generator", "--input", str(source), "--output", str(made), *form)
    monkeypatch.syspath_prepend(tmp_path)
    models = importlib.import_module(made.stem)
    told = models.Problem.model_validate_json('{"type": "about:blank", "title": "No", "status": 404, "detail": "none"}')
    assert told.status == 404


@pytest.fixture(scope="session")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a client of each service is generated into, as the package `SERVICE_client`."""
    return tmp_path_factory.mktemp("clients")


@of_every_service
def test_a_client_is_generated_without_a_warning(service: str, documents: dict[str, Document], clients: Path) -> None:
    generate_client(service, documents[service], clients)


def generate_client(service: str, document: Document, folder: Path) -> Path:
    """The package of a service's client, generated the first time."""
    source, made = folder / f"{service}.json", folder / f"{service}_client"
    if not made.exists():
        source.write_text(json.dumps(document))
        paths = ["--path", str(source), "--output-path", str(made)]
        generate("openapi_python_client", "generate", *paths, "--meta", "none", "--fail-on-warning")
    return made


@pytest.mark.integration
def test_the_generated_client_reads_a_real_error_as_a_problem(
    documents: dict[str, Document], clients: Path, app: FastAPI, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = generate_client("api", documents["api"], clients).name
    monkeypatch.syspath_prepend(clients)
    with store.transaction() as session:
        key = persons.ensure_owner(session)

    def load(module: str) -> ModuleType:
        return importlib.import_module(f"{name}.{module}")

    problem, get_task = load("models").Problem, load("api.tasks.get_task_v1_tasks_task_id_get")
    import_tasks, body = load("api.tasks.import_tasks_v1_tasks_import_post"), load("models").TaskImport
    with serve(app) as url:
        with load("client").AuthenticatedClient(base_url=url, token=key) as client:
            missing = get_task.sync(UUID(int=0), client=client)
            refused = import_tasks.sync(client=client, body=body.from_dict({"tasks": [{"key": "k"}]}))
        with load("client").AuthenticatedClient(base_url=url, token=f"{key}x") as client:
            unknown = get_task.sync(UUID(int=0), client=client)
    assert all(isinstance(told, problem) for told in (missing, refused, unknown))
    assert (missing.status, missing.type_) == (404, "urn:preceptor:problem:task-not-found")
    assert (unknown.status, unknown.title) == (401, "API key not accepted")
    assert (refused.status, refused.errors[0].row, refused.errors[0].where) == (422, 1, "domain")
