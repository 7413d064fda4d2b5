"""The sandbox answers what its schema says, whatever it is sent to run."""

from collections.abc import Iterator
from typing import Any

import pytest
from schemathesis import Case

from sandbox.server.app import create_app
from sandbox.settings import SandboxSettings
from tests.contracts.checks import bounded, call, read_schema
from tests.sandbox.conftest import SandboxServer

pytestmark = [pytest.mark.integration, pytest.mark.namespaces]

KEY = "secret"
schema = read_schema(create_app(SandboxSettings()))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A sandbox in a process of its own."""
    with SandboxServer(key=KEY) as server:
        yield f"http://127.0.0.1:{server.port}"


@schema.parametrize()
@bounded
def test_the_sandbox_answers_as_its_schema_says(case: "Case[Any]", url: str) -> None:
    call(case, url, {"Authorization": f"Bearer {KEY}"})
