"""All servers refuse requests with one kind of problem document."""

from typing import Any, Final, cast

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from sandbox.http.problems import Problem
from sandbox.server.app import create_app as create_sandbox
from sandbox.settings import SandboxSettings
from services.api.app import create_app
from services.experts.__main__ import build_app
from services.policy.engines.base import Engine
from services.policy.server.app import create_app as create_policy
from services.runtime.settings import Settings

APPS: Final[dict[str, FastAPI]] = {
    "api": create_app(Settings()),
    "experts": build_app(Settings()),
    "policy": create_policy(cast(Engine, None)),
    "sandbox": create_sandbox(SandboxSettings()),
}
of_every_server = pytest.mark.parametrize("app", APPS.values(), ids=APPS)


@of_every_server
def test_every_document_has_the_same_problem_among_its_components(app: FastAPI) -> None:
    def find(of: FastAPI) -> list[Any]:
        schemas = of.openapi()["components"]["schemas"]
        return [schemas["Problem"], schemas["Fault"]]

    assert find(app) == find(APPS["api"])


@of_every_server
def test_an_unknown_path_is_a_problem_that_says_where_the_routes_are_listed(app: FastAPI) -> None:
    answer = TestClient(app).get("/nothing/here")
    problem = Problem.model_validate_json(answer.content)
    assert (answer.status_code, problem.status, problem.type) == (404, 404, "about:blank")
    assert problem.instance == "/nothing/here"
    assert "/openapi.json" in problem.hint


@pytest.mark.parametrize(("server", "path"), [("experts", "/exact-match/v1/consult"), ("policy", "/v1/sample")])
def test_a_body_outside_its_contract_is_a_problem_with_every_fault_and_no_value(server: str, path: str) -> None:
    body = {"surprise": "not-to-be-seen", "prompts": 3, "protocol": "x"}
    answer = TestClient(APPS[server]).post(path, json=body)
    problem = Problem.model_validate_json(answer.content)
    assert (answer.status_code, problem.type) == (422, "urn:preceptor:problem:request-invalid")
    assert "surprise" in str([fault.where for fault in problem.errors])
    assert problem.detail.endswith(f"(and {len(problem.errors) - 1} more)")
    assert "not-to-be-seen" not in answer.text
